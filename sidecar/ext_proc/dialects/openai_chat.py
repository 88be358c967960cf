"""Chat Completions of OpenAI, which most other providers and servers speak too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from sidecar.core.conversation import Message, Role, ToolCall
from sidecar.ext_proc.dialects.json_fields import Fields
from sidecar.ext_proc.dialects.parts import (
    Body,
    Parts,
    Reading,
    UnknownShapeError,
    as_text,
    field_count,
    has_items,
    images_of,
    parts_of,
    text_of,
)

_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.DEVELOPER,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
    # The result of a `function_call`, the predecessor of tool calls.
    "function": Role.TOOL,
}


class _Function(msgspec.Struct):
    name: Any = None
    arguments: Any = None
    input: Any = None


class _Call(msgspec.Struct):
    id: Any = None
    function: _Function | None = None
    custom: _Function | None = None


class _Message(msgspec.Struct):
    role: str
    content: Parts = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None
    tool_call_id: Any = None


_MESSAGE = msgspec.json.Decoder(_Message)


def read(fields: Fields, reading: Reading) -> Body:
    """Raises UnknownShapeError, msgspec.DecodeError."""
    if "messages" not in fields:
        raise UnknownShapeError("messages is missing")
    sent = [_MESSAGE.decode(raw) for raw in reading.newest(fields, "messages")]
    messages = [_message(each, reading) for each in sent]
    return Body(
        tuple([each for each in messages if each is not None]),
        tools=has_items(fields, "tools", "functions"),
        output_tokens=field_count(fields, "max_completion_tokens", "max_tokens"),
    )


def _message(sent: _Message, reading: Reading) -> Message | None:
    role = _ROLES.get(sent.role)
    if role is None:
        raise UnknownShapeError("messages has a role that the API does not know")
    parts = parts_of(sent.content)
    if role is Role.USER:
        return reading.user(parts)
    return Message(
        role,
        text_of(parts),
        images_of(parts),
        tuple(_calls(sent)) if role is Role.ASSISTANT else (),
        as_text(sent.tool_call_id) if role is Role.TOOL else "",
    )


def _calls(sent: _Message) -> Iterator[ToolCall]:
    for call in sent.tool_calls or ():
        called = call.function or call.custom or _Function()
        arguments = as_text(called.arguments) or as_text(called.input)
        yield ToolCall(as_text(call.id), as_text(called.name), arguments)
    if sent.function_call is not None:
        yield ToolCall("", as_text(sent.function_call.name), as_text(sent.function_call.arguments))
