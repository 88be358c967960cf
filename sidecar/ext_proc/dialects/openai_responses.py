"""The Responses of OpenAI: typed items instead of messages, and state kept by the provider."""

from __future__ import annotations

from typing import Any

import msgspec

from sidecar.core.conversation import Message, Role, ToolCall
from sidecar.ext_proc.dialects.json_fields import Fields
from sidecar.ext_proc.dialects.keys import conversation_key
from sidecar.ext_proc.dialects.parts import (
    Body,
    Part,
    Parts,
    Reading,
    UnknownShapeError,
    as_text,
    field_count,
    field_items,
    field_text,
    has_items,
    images_of,
    parts_of,
    raw_json,
    raw_parts,
    text_of,
)

_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.DEVELOPER,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
}
_NULL = msgspec.Raw(b"null")
_STATEFUL = ("previous_response_id", "conversation", "prompt")
"""With one of these the provider has input of its own, and the body may have none."""


class _Item(msgspec.Struct):
    type: Any = None
    role: Any = None
    content: Parts = None
    id: Any = None
    call_id: Any = None
    name: Any = None
    arguments: msgspec.Raw = _NULL
    input: msgspec.Raw = _NULL
    action: msgspec.Raw = _NULL
    output: msgspec.Raw = _NULL
    encrypted_content: Any = None


class _Tool(msgspec.Struct):
    vector_store_ids: Any = None
    container: Any = None


_ITEM = msgspec.json.Decoder(_Item)
_TOOL = msgspec.json.Decoder(_Tool)
_REFERRING = (b'"vector_store_ids"', b'"container"')
_MAX_TOOLS = 1024


def read(fields: Fields, reading: Reading) -> Body:
    """Raises UnknownShapeError, msgspec.DecodeError."""
    if "input" not in fields and not any(key in fields for key in _STATEFUL):
        raise UnknownShapeError("input is missing")
    messages: list[Message] = []
    instructions = field_text(fields, "instructions")
    if instructions:
        messages.append(Message(Role.SYSTEM, instructions))
    messages += _input(fields, reading)
    return Body(
        tuple(messages),
        tools=has_items(fields, "tools"),
        output_tokens=field_count(fields, "max_output_tokens"),
        continues=field_text(fields, "previous_response_id")
        or conversation_key(fields, ("conversation",)),
        refers_to=_tools_refer_to(fields) or conversation_key(fields, ("prompt",)),
    )


def _tools_refer_to(fields: Fields) -> str:
    text = bytes(fields.get("tools", _NULL))
    if not any(name in text for name in _REFERRING):
        return ""
    for tool in map(_TOOL.decode, field_items(fields, "tools")[:_MAX_TOOLS]):
        stores = tool.vector_store_ids
        for named in (*(stores if isinstance(stores, list) else ()), tool.container):
            if isinstance(named, str) and named:
                return named
    return ""


def _input(fields: Fields, reading: Reading) -> list[Message]:
    value = fields.get("input", _NULL)
    if bytes(memoryview(value)[:1]) == b'"':
        said = reading.user([Part("text", field_text(fields, "input"))])
        return [] if said is None else [said]
    read = (_message(_ITEM.decode(raw), reading) for raw in reading.newest(fields, "input"))
    return [message for message in read if message is not None]


def _message(item: _Item, reading: Reading) -> Message | None:
    kind = as_text(item.type)
    if not kind:
        # Both messages and references may leave it out; of the latter only the id is required.
        refers = item.role is None and as_text(item.id)
        kind = "item_reference" if refers else "message"
    if kind == "message":
        role = _ROLES.get(as_text(item.role))
        if role is None:
            raise UnknownShapeError("input has a message whose role the API does not know")
        parts = parts_of(item.content)
        if role is Role.USER:
            return reading.user(parts)
        return Message(role, text_of(parts), images_of(parts))
    if kind.endswith("_call_output"):
        parts = raw_parts(item.output)
        reading.refer(parts)
        return Message(
            Role.TOOL,
            text_of(parts),
            images_of(parts),
            tool_call_id=as_text(item.call_id) or as_text(item.id),
        )
    if kind.endswith("_call"):
        return Message(Role.ASSISTANT, tool_calls=(_call(item, kind),))
    # Reasoning, compacted history, references to items at the provider: nothing to read.
    if as_text(item.encrypted_content):
        reading.sealed = True
    elif kind in ("item_reference", "reasoning"):
        # Of reasoning that came without its content, the provider looks that up by the id.
        reading.refers_to = as_text(item.id) or reading.refers_to
    return None


def _call(item: _Item, kind: str) -> ToolCall:
    """Calls of functions have a name; of what the provider has built in, the type is the name."""
    asked = raw_json(item.arguments) or raw_json(item.input) or raw_json(item.action)
    return ToolCall(
        as_text(item.call_id) or as_text(item.id),
        as_text(item.name) or kind.removesuffix("_call"),
        asked,
    )
