"""LangChain's messages as the engine takes them: plain roles and text, and the documents they carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage

from focus_core.errors import ConfigError, DocumentError
from focus_core.text.chat import Message
from focus_integrations.conversations import merged

_ROLES: dict[type[BaseMessage], str] = {HumanMessage: "user", AIMessage: "assistant", SystemMessage: "system"}


@dataclass(frozen=True)
class Conversation:
    """Messages of alternating roles, and the texts that came as `text-plain` blocks, in their order."""

    messages: list[Message]
    documents: list[str]


def conversation_from(messages: Sequence[BaseMessage], system_prompt: str | None = None) -> Conversation:
    """Neighbours of the same role become one message; `system_prompt` comes first.

    Raises:
        ConfigError: a message or a block that a text model cannot read; nothing is left out
    """
    if not messages:
        raise ConfigError("There are no messages to answer.")
    documents: list[str] = []
    spoken = [(_role(message), _text(message, documents)) for message in messages]
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


def _text(message: BaseMessage, documents: list[str]) -> str:
    blocks = [message.content] if isinstance(message.content, str) else message.content
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") == "text":
            parts.append(block["text"])
        elif block.get("type") == "text-plain":
            documents.append(_document(block))
        else:
            raise ConfigError(
                f"A content block of type {block.get('type')!r} cannot be read: this model reads text only."
            )
    return "\n\n".join(part for part in parts if part)


def _document(block: dict[str, object]) -> str:
    """The block's title and context, where it has them, and its text."""
    text = block.get("text")
    if not isinstance(text, str):
        raise DocumentError("A text-plain block without `text`: url, file id and base64 are not read. Give the text.")
    lead = [str(block[name]) for name in ("title", "context") if block.get(name)]
    return "\n\n".join([*lead, text])
