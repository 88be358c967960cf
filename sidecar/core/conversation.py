"""What the router reads: the messages of a chat."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant message asks for. `arguments` is the caller's JSON text, unread."""

    id: str
    name: str
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    `text` holds the text parts joined by a newline; images are counted, not kept.
    """

    role: Role
    text: str = ""
    images: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, oldest first."""

    messages: tuple[Message, ...]

    @property
    def images(self) -> int:
        return sum(message.images for message in self.messages)

    def shown_to_router(self) -> tuple[Message, ...]:
        """User and assistant messages that have text: nothing else is shown to the router.

        System prompts describe the application, not the request, and tool results are data; both
        can be long and both can carry instructions that the router must not follow.
        """
        return tuple(
            message
            for message in self.messages
            if message.role in (Role.USER, Role.ASSISTANT) and message.text
        )
