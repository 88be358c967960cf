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

# A quote that no other one ends is a string that has not come whole.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|["{}\[\],:]', re.DOTALL)
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
        self._events = kind == "text/event-stream"
        self._decode = _decoder(content_encoding.strip().lower())
        self._seen = b""
        self._parts = 0
        self.id = ""
        """Empty while there is none."""
        self.wants_more = self._decode is not None and (self._events or kind == "application/json")

    def feed(self, part: bytes) -> None:
        """Takes the next part of the body. Never raises."""
        if not self.wants_more or self._decode is None:
            return
        self._parts += 1
        try:
            self._seen += self._decode(part)
        except (zlib.error, zstd.ZstdError, brotli.error, EOFError):
            self.wants_more = False
            return
        self.id = _in_events(self._seen) if self._events else _string_at(self._seen, (b"id",))
        enough = len(self._seen) >= _MAX_BYTES or self._parts >= _MAX_PARTS
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


def _in_events(text: bytes) -> str:
    """The id of the first event of a response that has one."""
    for line in text.splitlines():
        if line.startswith(b"data:") and (found := _string_at(line[5:], (b"response", b"id"))):
            return found
    return ""


def _string_at(text: bytes, path: tuple[bytes, ...]) -> str:
    """The string at `path` of the JSON that `text` begins with; empty if it is not there, or is no
    id."""
    within: list[bytes] = []
    """Names of the values that are open, that of the whole left out; an array's elements have none.
    """
    arrays: list[bool] = []
    name, is_value = b"", False
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == b'"':
            return ""
        if token in (b"{", b"["):
            within += [name] if arrays else []
            arrays.append(token == b"[")
            name, is_value = b"", False
        elif token in (b"}", b"]"):
            arrays = arrays[:-1]
            within = within[:-1]
            name, is_value = b"", False
            if not arrays:
                return ""
        elif token in (b":", b","):
            is_value = token == b":"
        elif is_value and (*within, name) == path:
            return token[1:-1].decode() if _ID.fullmatch(token[1:-1]) else ""
        elif not is_value and arrays and not arrays[-1]:
            name = token[1:-1]
    return ""
