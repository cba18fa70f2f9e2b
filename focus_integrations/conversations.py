"""Chat messages as the engine takes them: roles that alternate, plain text."""

from __future__ import annotations

from collections.abc import Iterable

from focus_core.text.chat import Message


def merged(messages: Iterable[tuple[str, str]], system_prompt: str | None = None) -> list[Message]:
    """Neighbours of the same role become one message; `system_prompt` comes first, if it is not there already.

    Args:
        messages: role and text of each
    """
    listed = list(messages)
    if system_prompt and ("system", system_prompt) not in listed[:1]:
        listed.insert(0, ("system", system_prompt))
    joined: list[Message] = []
    for role, text in listed:
        if joined and joined[-1]["role"] == role:
            text = f"{joined.pop()['content']}\n\n{text}"
        joined.append({"role": role, "content": text})
    return joined
