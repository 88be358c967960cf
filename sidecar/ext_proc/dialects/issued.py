"""The id that a provider gives what it keeps: a response or a conversation of the Responses API.

Of `{"id": "resp_1", …}`, and of a stream that begins with
`data: {"type": "response.created", "response": {"id": "resp_1", …}}`, only the beginning is read:
what follows can be megabytes, and comes over minutes.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

import brotli
from backports import zstd

_MAX_BYTES = 64 * 1024
"""Decoded, in which the id must stand; a stream's first event repeats the tools of the request, but
behind the id."""
_MAX_PARTS = 64
_MAX_ID = 256
_GZIP_OR_ZLIB = 47
"""`wbits` of zlib."""

_IN_BODY = (b"id",)
_IN_EVENT = (b"response", b"id")
_DATA = b"data:"
_TOKEN = re.compile(rb'["{}\[\],:]')
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_ID = re.compile(rb"[!#-\[\]-~]{1,%d}" % _MAX_ID)

Decode = Callable[[bytes], bytes]


class IssuedId:
    """Reads an id from the parts of a body, as they come.

    Args:
        content_type: of the response; JSON and event streams are read.
        content_encoding: of the response.
    """

    def __init__(self, content_type: str, content_encoding: str) -> None:
        kind = content_type.partition(";")[0].strip().lower()
        events = kind == "text/event-stream"
        self._decode = _decoder(content_encoding.strip().lower())
        self._reading: _Events | _StringAt = _Events() if events else _StringAt(_IN_BODY)
        self._size = 0
        self._parts = 0
        self.id = ""
        """Empty while there is none."""
        self.wants_more = self._decode is not None and (events or kind == "application/json")

    def feed(self, part: bytes) -> None:
        """Takes the next part of the body. Never raises."""
        if not self.wants_more or self._decode is None:
            return
        self._parts += 1
        try:
            text = self._decode(part)
        except (zlib.error, zstd.ZstdError, brotli.error, EOFError):
            self.wants_more = False
            return
        self._reading.feed(text)
        self.id = self._reading.found
        self._size += len(text)
        enough = self._size >= _MAX_BYTES or self._parts >= _MAX_PARTS
        self.wants_more = not self.id and not enough


def _decoder(encoding: str) -> Decode | None:
    """None: one that cannot be read."""
    match encoding:
        case "" | "identity":
            return lambda data: data[:_MAX_BYTES]
        case "gzip" | "x-gzip" | "deflate":
            inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
            return lambda data: inflater.decompress(data, _MAX_BYTES)
        case "br":
            unbrotli = brotli.Decompressor()
            return lambda data: unbrotli.process(data, output_buffer_limit=_MAX_BYTES)
        case "zstd":
            unzstd = zstd.ZstdDecompressor()
            return lambda data: unzstd.decompress(data, _MAX_BYTES)
    return None


class _Events:
    """The id of the first event of a response that has one, of events that come in parts."""

    def __init__(self) -> None:
        self._begins = b""
        """What the line begins with; as much as tells whether it has data."""
        self._data = _StringAt(_IN_EVENT)
        self.found = ""

    def feed(self, part: bytes) -> None:
        for piece in part.splitlines(keepends=True):
            rest = piece[len(_DATA) - len(self._begins) :]
            self._begins += piece[: len(piece) - len(rest)]
            if self._begins == _DATA:
                self._data.feed(rest)
                self.found = self._data.found
            if self.found:
                return
            if piece.endswith((b"\n", b"\r")):
                if self._begins == _DATA:
                    self._data = _StringAt(_IN_EVENT)
                self._begins = b""


class _StringAt:
    """The string at `path` of a JSON text that comes in parts, of which each byte is read once;
    empty if it is not there, or is no id."""

    def __init__(self, path: tuple[bytes, ...]) -> None:
        *self._around, self._key = path
        self._within: list[bytes] = []
        """Names of the values that are open, that of the whole left out; an array's elements have
        none."""
        self._arrays: list[bool] = []
        self._name, self._is_value = b"", False
        self._open = b""
        """The beginning of a string that has not come whole, with its quote."""
        self._looked = 0
        """Bytes behind that quote that do not end it."""
        self._ended = False
        self.found = ""

    def feed(self, part: bytes) -> None:
        text, position = self._open + part, 0
        self._open = b""
        while not self._ended and (token := _TOKEN.search(text, position)):
            position = token.end()
            if token[0] != b'"':
                self._structure(token[0])
                continue
            inside = _IN_STRING.match(text, position + self._looked)
            assert inside is not None, "nothing is inside a string, too"
            end = inside.end()
            if text[end : end + 1] != b'"':
                self._open, self._looked = text[token.start() :], end - position
                return
            self._looked = 0
            self._string(text[position:end])
            position = end + 1

    def _structure(self, token: bytes) -> None:
        if token in (b":", b","):
            self._is_value = token == b":"
            return
        if token in (b"{", b"["):
            if self._arrays:
                self._within.append(self._name)
            self._arrays.append(token == b"[")
        else:
            del self._arrays[-1:], self._within[-1:]
            self._ended = not self._arrays
        self._name, self._is_value = b"", False

    def _string(self, text: bytes) -> None:
        if self._is_value and self._name == self._key and self._within == self._around:
            self._ended = True
            self.found = text.decode() if _ID.fullmatch(text) else ""
        elif not self._is_value and self._arrays and not self._arrays[-1]:
            self._name = text
