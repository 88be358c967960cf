"""The top level of a JSON body, without reading what is below it.

A body has a handful of top-level fields and can have megabytes. msgspec walks over a value that is
asked for as `Raw` without making objects of it, ten times faster than a parser that does, and the
value stays a view of the body. The latter is also what tells where in the body the value of a key
stands: a search for the key's text would have to know strings, escapes and nesting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import msgspec
import numpy as np

_BOM = b"\xef\xbb\xbf"
_ABSENT = msgspec.Raw(b"")

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_MAX_SURROGATES = 128 * 1024
"""That are looked at in a body: each takes a microsecond, and others wait for their turn."""
_LOW = b"cdefCDEF"
_BACKSLASH = ord("\\")
_REPLACEMENT = rb"\ufffd"

_SEARCHED_BYTES = 8 * 1024
"""Of a body, in which to search twice for a value takes less than to ask where it stands."""

Fields = dict[str, msgspec.Raw]
"""Key, its escapes undone, to the bytes of its value. Of a key that is there twice the last value
counts, as in the parsers of Python, JavaScript, Go and Ruby."""

NotJsonError = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
"""What reading raises for bytes that are no JSON, or nested deeper than anyone needs."""


class FieldReader:
    """Reads the fields of those names, and walks over others: to make a dictionary of a million of
    them would hold the interpreter, and with it the event loop, for a second."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(dict.fromkeys(names))
        attributes = [f"f{index}" for index in range(len(self._names))]
        shape = msgspec.defstruct(
            "Fields",
            [(each, msgspec.Raw, _ABSENT) for each in attributes],
            rename=dict(zip(attributes, self._names, strict=True)),
        )
        self._decoder = msgspec.json.Decoder(shape)

    def read(self, body: bytes) -> Fields:
        """Fields of the object that `body` is. A byte order mark is skipped (RFC 8259, 8.1, lets a
        parser ignore it).

        Raises:
            msgspec.ValidationError: JSON, but no object.
            msgspec.DecodeError, RecursionError, UnicodeDecodeError: see `NotJsonError`.
        """
        text = memoryview(body)[len(_BOM) :] if body.startswith(_BOM) else body
        values = msgspec.structs.astuple(self._decoder.decode(text))
        named = zip(self._names, values, strict=True)
        return {name: value for name, value in named if value is not _ABSENT}


def without_lone_surrogates(body: bytes) -> bytes | None:
    """`body` with U+FFFD in place of escapes that are half a character, as clients write them who
    have cut a text within an emoji; None if it has none, or too many. JSON allows them (RFC 8259,
    8.2), msgspec does not. All else stands where it stood."""
    lone: list[int] = []
    high: int | None = None
    for number, found in enumerate(_SURROGATE.finditer(body)):
        if number == _MAX_SURROGATES:
            return None
        at = begin = found.start()
        while begin > 0 and body[begin - 1] == _BACKSLASH:
            begin -= 1
        if (at - begin) % 2:
            # The backslash is the second one of an escape.
            continue
        low = body[at + 3] in _LOW
        if low and high is not None and at - high == len(_REPLACEMENT):
            high = None
            continue
        lone += [each for each in (high, at if low else None) if each is not None]
        high = None if low else at
    if high is not None:
        lone.append(high)
    if not lone:
        return None
    mended = bytearray(body)
    for at in lone:
        mended[at : at + len(_REPLACEMENT)] = _REPLACEMENT
    return bytes(mended)


def splice(body: bytes, at: tuple[int, int], value: str) -> bytes:
    """`body` with the string `value` where another value stands; every other byte stays."""
    view = memoryview(body)
    return b"".join((view[: at[0]], json.dumps(value).encode(), view[at[1] :]))


def with_first(body: bytes, key: str, value: str) -> bytes:
    """`body`, an object that has fields, with another one before them; every other byte stays."""
    begin = body.index(b"{") + 1
    field = f"{json.dumps(key)}: {json.dumps(value)},".encode()
    view = memoryview(body)
    return b"".join((view[:begin], field, view[begin:]))


def span(body: bytes, value: msgspec.Raw) -> tuple[int, int]:
    """Where `value`, one of the fields of `body`, begins and ends in `body`."""
    text = bytes(value)
    if len(body) <= _SEARCHED_BYTES:
        start = body.find(text)
        if body.find(text, start + 1) < 0:
            return start, start + len(text)
    # Its bytes stand elsewhere too, or to search for them takes longer than this.
    start = _address(value) - _address(body)
    return start, start + len(text)


def _address(data: bytes | msgspec.Raw) -> int:
    """Address of the first byte. Only ever subtracted from another one."""
    return int(np.frombuffer(data, dtype=np.uint8).__array_interface__["data"][0])
