"""Compressed bodies, decoded for reading under a cap on what comes out.

Claude Code compresses large bodies with gzip, Codex with zstd; a few kilobytes of either can decode
to gigabytes, so no decoder is asked for more than the cap and a little.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Protocol

import brotli
from backports import zstd

_MAX_ENCODINGS = 3
"""Encodings on top of each other; more than one is legal, and hardly ever seen."""
_MAX_STREAMS = 256
"""Of a body. Each costs something, even one of nothing, which has a few bytes."""
_SLICE_BYTES = 32 * 1024
_ZSTD_WINDOW_LOG = 23
"""Largest zstd window, 8 MiB: the most that senders may use in HTTP (RFC 9659)."""
_GZIP, _ZLIB, _RAW = 31, 15, -15
"""`wbits` of zlib."""


class UndecodableError(Exception):
    """The body is not what `content-encoding` says, or that says something unknown."""


class TooLargeError(Exception):
    """The decoded body is beyond the cap."""


def decode(body: bytes, content_encoding: str, max_bytes: int) -> bytes | None:
    """The body without its encodings; None if it has none (`identity` is none).

    Args:
        content_encoding: value of the header, several encodings separated by commas.

    Raises:
        UndecodableError: an unknown encoding, wrong or incomplete data.
        TooLargeError: more than `max_bytes`, at any stage.
    """
    encodings = [name.strip().lower() for name in content_encoding.split(",")]
    encodings = [name for name in encodings if name not in ("", "identity")]
    if len(encodings) > _MAX_ENCODINGS:
        raise UndecodableError(f"{len(encodings)} encodings, at most {_MAX_ENCODINGS} are undone")
    if not encodings:
        return None
    for name in reversed(encodings):
        decoder = _DECODERS.get(name)
        if decoder is None:
            raise UndecodableError(f"an encoding that is not one of {', '.join(_DECODERS)}")
        body = decoder(body, max_bytes)
    return body


class _Stream(Protocol):
    """A decompressor of zlib or zstd, for one stream of it."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: memoryview, max_length: int, /) -> bytes: ...


def _one(stream: _Stream, body: memoryview, max_bytes: int) -> tuple[bytes, memoryview]:
    """Content of the stream that `body` begins with, and what follows it."""
    parts: list[bytes] = []
    position = 0
    while not stream.eof:
        if position >= len(body):
            raise UndecodableError("a compressed body without its end")
        # Behind its end a stream copies what it was given: no more than this.
        given = body[position : position + _SLICE_BYTES]
        position += len(given)
        try:
            part = stream.decompress(given, max_bytes + 1)
        except (zlib.error, zstd.ZstdError):
            raise UndecodableError("wrong data in a compressed body") from None
        max_bytes -= len(part)
        if max_bytes < 0:
            raise TooLargeError
        parts.append(part)
    return b"".join(parts), body[position - len(stream.unused_data) :]


def _all(new_stream: Callable[[], _Stream], body: bytes, max_bytes: int) -> bytes:
    """Content of all streams that `body` consists of: gzip has members (RFC 1952, 2.2), zstd has
    frames (RFC 8878, 3), and both may follow one another."""
    parts: list[bytes] = []
    rest = memoryview(body)
    while rest:
        if len(parts) == _MAX_STREAMS:
            raise UndecodableError(f"a compressed body of more than {_MAX_STREAMS} streams")
        part, rest = _one(new_stream(), rest, max_bytes)
        max_bytes -= len(part)
        parts.append(part)
    return b"".join(parts)


def _gzip(body: bytes, max_bytes: int) -> bytes:
    return _all(lambda: zlib.decompressobj(_GZIP), body, max_bytes)


def _zstd(body: bytes, max_bytes: int) -> bytes:
    options = {int(zstd.DecompressionParameter.window_log_max): _ZSTD_WINDOW_LOG}
    return _all(lambda: zstd.ZstdDecompressor(options=options), body, max_bytes)


def _deflate(body: bytes, max_bytes: int) -> bytes:
    data = memoryview(body)
    try:
        decoded, rest = _one(zlib.decompressobj(_ZLIB), data, max_bytes)
    except UndecodableError:
        # Some senders leave out the zlib wrapper that RFC 9110 (8.4.1.2) asks for.
        decoded, rest = _one(zlib.decompressobj(_RAW), data, max_bytes)
    if rest:
        raise UndecodableError("data after the end of a compressed body")
    return decoded


def _brotli(body: bytes, max_bytes: int) -> bytes:
    stream = brotli.Decompressor()
    parts: list[bytes] = []
    size = 0
    data = body
    try:
        while not stream.is_finished():
            part = stream.process(data, output_buffer_limit=max_bytes + 1 - size)
            if not part:
                # Everything was given and nothing more comes.
                break
            data = b""
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                raise TooLargeError
    except brotli.error:
        raise UndecodableError("wrong data in a compressed body") from None
    if not stream.is_finished():
        raise UndecodableError("a compressed body without its end")
    return b"".join(parts)


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
