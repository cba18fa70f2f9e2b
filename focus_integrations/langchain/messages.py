"""LangChain's messages as the engine takes them: plain roles and text, and the documents they carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage

from focus_core.errors import ConfigError, DocumentError, FocusError
from focus_core.text.chat import Message
from focus_integrations.conversations import merged

_ROLES: dict[type[BaseMessage], str] = {HumanMessage: "user", AIMessage: "assistant", SystemMessage: "system"}


class NamedText(NamedTuple):
    """What a `text-plain` block holds, its title, and which characters are the block's own text."""

    text: str
    name: str | None
    own: tuple[int, int]


@dataclass(frozen=True)
class Conversation:
    """Messages of alternating roles, and the documents that came as `text-plain` blocks, in their order."""

    messages: list[Message]
    documents: list[NamedText]


def conversation_from(messages: Sequence[BaseMessage], system_prompt: str | None = None) -> Conversation:
    """Neighbours of the same role become one message; `system_prompt` comes first.

    Raises:
        ConfigError: a message or a block that a text model cannot read; nothing is left out
    """
    if not messages:
        raise ConfigError("There are no messages to answer.")
    documents: list[NamedText] = []
    spoken = [(_role(message), _text(message, documents)) for message in messages]
    return Conversation(merged(spoken, system_prompt), documents)


def countable(messages: Sequence[BaseMessage], system_prompt: str | None = None) -> Conversation:
    """As `conversation_from`, of any messages: what this model cannot read is there with its text, as the user's."""
    documents: list[NamedText] = []
    spoken: list[tuple[str, str]] = []
    for message in messages:
        try:
            spoken.append((_role(message), _text(message, documents)))
        except FocusError:
            calls = f"{message.tool_calls}" if isinstance(message, AIMessage) and message.tool_calls else ""
            spoken.append(("user", f"{message.text}{calls}"))
    return Conversation(merged(spoken, system_prompt), documents)


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    role = next((role for kind, role in _ROLES.items() if isinstance(message, kind)), None)  # chunks are subclasses
    if role is None:
        raise ConfigError(f"A {type(message).__name__} cannot be read: this model takes no tools.")
    if isinstance(message, AIMessage) and message.tool_calls:
        raise ConfigError("An AIMessage holds tool calls, which cannot be read: this model takes no tools.")
    return role


def _text(message: BaseMessage, documents: list[NamedText]) -> str:
    """What the message says; the texts of its documents are added to `documents`."""
    blocks = [message.content] if isinstance(message.content, str) else message.content
    parts: list[str] = []
    found: list[NamedText] = []
    for block in blocks:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") == "text":
            parts.append(_text_of(block))
        elif block.get("type") == "text-plain":
            found.append(_document(block))
        else:
            raise ConfigError(
                f"A content block of type {block.get('type')!r} cannot be read: this model reads text only."
            )
    documents += found
    return "\n\n".join(part for part in parts if part)


def _text_of(block: dict[str, object]) -> str:
    text = block.get("text")
    if not isinstance(text, str):
        raise ConfigError(f"A text block holds {text!r} for its text: give a string.")
    return text


def _document(block: dict[str, object]) -> NamedText:
    """The block's title and context, where it has them, and its text."""
    text = block.get("text")
    if not isinstance(text, str):
        raise DocumentError("A text-plain block without `text`: url, file id and base64 are not read. Give the text.")
    lead = [str(block[name]) for name in ("title", "context") if block.get(name)]
    shown = "\n\n".join([*lead, text])
    own = len(shown) - len(text), len(shown)
    return NamedText(shown, str(block["title"]) if block.get("title") else None, own)
