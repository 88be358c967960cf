"""The Messages of Anthropic: results of tools come in the user's messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    documents_size,
    field_count,
    has_items,
    images_of,
    parts_of,
    raw_json,
    raw_parts,
    text_of,
)

_NULL = msgspec.Raw(b"null")


class _Message(msgspec.Struct):
    role: str
    content: Parts = None


_MESSAGE = msgspec.json.Decoder(_Message)


def read(fields: Fields, reading: Reading) -> Body:
    """Raises UnknownShapeError, msgspec.DecodeError."""
    if "messages" not in fields:
        raise UnknownShapeError("messages is missing")
    messages: list[Message] = []
    system = text_of(raw_parts(fields.get("system", _NULL)))
    if system:
        messages.append(Message(Role.SYSTEM, system))
    for raw in reading.newest(fields, "messages"):
        messages += _messages(_MESSAGE.decode(raw), reading)
    return Body(
        tuple(messages),
        tools=has_items(fields, "tools", "mcp_servers"),
        output_tokens=field_count(fields, "max_tokens"),
        refers_to=conversation_key(fields, ("container",)),
    )


def _messages(sent: _Message, reading: Reading) -> Iterator[Message]:
    parts = parts_of(sent.content)
    if sent.role == "user":
        reading.left_out += documents_size(parts)
        yield from _results(parts, reading)
        said = reading.user(parts)
        if said is not None:
            yield said
    elif sent.role == "assistant":
        reading.sealed = reading.sealed or any(map(_is_sealed, parts))
        yield Message(Role.ASSISTANT, text_of(parts), images_of(parts), tuple(_calls(parts)))
        # What the provider's own tools found stands in the assistant's message.
        yield from _results(parts, reading)
    elif sent.role == "system":
        yield Message(Role.SYSTEM, text_of(parts))
    else:
        raise UnknownShapeError("messages has a role that the API does not know")


def _is_sealed(part: Part) -> bool:
    signed = part.type == "thinking" and bool(as_text(part.signature))
    return signed or part.type in ("redacted_thinking", "web_search_tool_result")


def _results(parts: Sequence[Part], reading: Reading) -> Iterator[Message]:
    for part in parts:
        if part.type.endswith("tool_result"):
            content = raw_parts(part.content)
            reading.left_out += documents_size(content)
            reading.refer(content)
            yield Message(
                Role.TOOL,
                text_of(content),
                images_of(content),
                tool_call_id=as_text(part.tool_use_id),
            )


def _calls(parts: Sequence[Part]) -> Iterator[ToolCall]:
    for part in parts:
        if part.type.endswith("tool_use"):
            yield ToolCall(as_text(part.id), as_text(part.name), raw_json(part.input))
