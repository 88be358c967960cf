"""What the APIs have in common below the top level: contents, tools, fields by their path.

Shapes name what is read and nothing else, so that a provider's new fields do not matter. `Any`
stands where an API lets several types in, or may come to; what is not of the expected type then
reads as absent, while the frame (a list of messages with roles) must be right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sidecar.core.conversation import Message, Role
from sidecar.ext_proc.dialects.harness import Beginnings, HarnessText, said_in_result
from sidecar.ext_proc.dialects.json_fields import Fields

_NULL = msgspec.Raw(b"null")
_TEXTS = frozenset({"text", "input_text", "output_text"})
_IMAGES = frozenset({"image", "image_url", "input_image", "computer_screenshot"})
_FILES = frozenset({"file", "input_file", "input_image", "image", "document", "container_upload"})
_MAX_REFERENCE = 1024
"""Bytes of an object that names a file; one that is longer has the file's data."""


class UnknownShapeError(Exception):
    """JSON, but not a request of the API. The text names the field, never its content."""


@dataclass(frozen=True, slots=True)
class Body:
    """What a body of some API says.

    Args:
        tools: it offers the model tools.
        output_tokens: the most that the answer may have; 0 if it does not say.
        continues: id of what the provider keeps of the conversation; empty if there is none.
        refers_to: see `RoutingRequest`; besides what `Reading` has seen.
    """

    messages: tuple[Message, ...]
    tools: bool = False
    output_tokens: int = 0
    continues: str = ""
    refers_to: str = ""


class Part(msgspec.Struct):
    """A part of a message's content, or the block of Anthropic's API. Image data is not read."""

    type: str = ""
    text: Any = None
    id: Any = None
    name: Any = None
    input: msgspec.Raw = _NULL
    tool_use_id: Any = None
    content: msgspec.Raw = _NULL
    source: msgspec.Raw = _NULL
    signature: Any = None
    file_id: Any = None
    file: msgspec.Raw = _NULL


class _File(msgspec.Struct):
    file_id: Any = None


class _Source(msgspec.Struct):
    """Of a document. Its data is a view of the body."""

    type: Any = None
    data: msgspec.Raw = _NULL
    content: msgspec.Raw = _NULL


Parts = str | list[str | Part] | Part | None
"""Content as APIs allow it."""

_PARTS: msgspec.json.Decoder[Parts] = msgspec.json.Decoder(Parts)
_SOURCE = msgspec.json.Decoder(_Source)
_FILE = msgspec.json.Decoder(_File)
_TEXT: msgspec.json.Decoder[str | None] = msgspec.json.Decoder(str | None)
_LIST: msgspec.json.Decoder[list[msgspec.Raw] | None] = msgspec.json.Decoder(
    list[msgspec.Raw] | None
)
_MAX_DIGITS = 9
"""Of a number of tokens."""


def parts_of(content: Parts) -> Sequence[Part]:
    if content is None:
        return ()
    if isinstance(content, Part):
        return (content,)
    if isinstance(content, str):
        return (Part("text", content),)
    return [Part("text", each) if isinstance(each, str) else each for each in content]


def raw_parts(content: msgspec.Raw) -> Sequence[Part]:
    """As `parts_of`; of content of another shape nothing."""
    try:
        return parts_of(_PARTS.decode(content))
    except msgspec.ValidationError:
        return ()


def text_of(parts: Iterable[Part]) -> str:
    """The text parts, joined as in `Message`."""
    texts = [part.text for part in parts if part.type in _TEXTS]
    return "\n".join([text for text in texts if isinstance(text, str)])


def images_of(parts: Iterable[Part]) -> int:
    return len([part for part in parts if part.type in _IMAGES])


def file_of(part: Part) -> str:
    """Id of the file that the provider has; empty if the part is of none."""
    if part.type not in _FILES:
        return ""
    if named := as_text(part.file_id):
        return named
    for raw in (part.file, part.source):
        if raw is not _NULL and len(memoryview(raw)) <= _MAX_REFERENCE:
            try:
                return as_text(_FILE.decode(raw).file_id)
            except msgspec.ValidationError:
                continue
    return ""


def documents_size(parts: Iterable[Part]) -> int:
    """Bytes of the documents that are text. What a file holds is not known."""
    size = 0
    for part in parts:
        if part.type == "search_result":
            size += size_of(text_of(raw_parts(part.content)))
        elif part.type == "document":
            size += _document_size(part.source)
    return size


def _document_size(source: msgspec.Raw) -> int:
    try:
        read = _SOURCE.decode(source)
    except msgspec.ValidationError:
        return 0
    if read.type == "text":
        return len(memoryview(read.data))
    return size_of(text_of(raw_parts(read.content))) if read.type == "content" else 0


def as_text(value: object) -> str:
    """`value` if it is text, else nothing."""
    return value if isinstance(value, str) else ""


def raw_json(value: msgspec.Raw) -> str:
    """The JSON text as it stands; nothing for null."""
    text = bytes(value).decode(errors="replace")
    return "" if text == "null" else text


def field_text(fields: Fields, key: str) -> str:
    """A field that is text or absent. Raises UnknownShapeError."""
    try:
        return _TEXT.decode(fields.get(key, _NULL)) or ""
    except msgspec.ValidationError:
        raise UnknownShapeError(f"{key} is not text") from None


def field_items(fields: Fields, key: str) -> Sequence[msgspec.Raw]:
    """A field that is a list or absent. Raises UnknownShapeError."""
    try:
        return _LIST.decode(fields.get(key, _NULL)) or ()
    except msgspec.ValidationError:
        raise UnknownShapeError(f"{key} is not a list") from None


def field_count(fields: Fields, *keys: str) -> int:
    """The first of `keys` that has a whole number above 0, else 0."""
    for key in keys:
        value = fields.get(key)
        if value is None:
            continue
        digits = bytes(memoryview(value)[: _MAX_DIGITS + 1])
        if digits.isdigit() and len(digits) <= _MAX_DIGITS and int(digits) > 0:
            return int(digits)
    return 0


def has_items(fields: Fields, *keys: str) -> bool:
    """One of `keys` is a list that is not empty."""
    there = [key for key in keys if key in fields]
    return any([len(field_items(fields, key)) > 0 for key in there])


def size_of(text: str) -> int:
    """Bytes. Most texts are ASCII, of which they are known without encoding them."""
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


@dataclass(slots=True)
class Reading:
    """How the messages of one body are read.

    Args:
        harness, max_messages: see `DialectOptions`.
        left_out: bytes of text that are in none of the messages that were read.
        sealed, refers_to: see `RoutingRequest`; of several files the newest.
    """

    harness: HarnessText
    max_messages: int
    left_out: int = 0
    sealed: bool = False
    refers_to: str = ""
    beginnings: Beginnings = field(default_factory=Beginnings)

    def newest(self, fields: Fields, key: str) -> Sequence[msgspec.Raw]:
        """The newest items of the list at `key`. Raises UnknownShapeError."""
        return field_items(fields, key)[-self.max_messages :]

    def refer(self, parts: Iterable[Part]) -> None:
        """Notes which file they name."""
        for part in parts:
            self.refers_to = file_of(part) or self.refers_to

    def user(self, parts: Sequence[Part]) -> Message | None:
        """What the user wrote; None if all of it is a harness's. What a tool has found, which some
        send as the user's, is a message of the system."""
        self.refer(parts)
        whole = text_of(parts)
        text, images = self.harness.cleaned(whole, self.beginnings), images_of(parts)
        role = Role.USER
        said = said_in_result(text)
        if said:
            text = said
        elif said is not None:
            role = Role.SYSTEM
        if text is not whole:
            self.left_out += size_of(whole) - size_of(text)
        return Message(role, text, images) if text or images else None
