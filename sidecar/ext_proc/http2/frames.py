"""Frames of HTTP/2 (RFC 9113, section 4 and 6) as bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TypeVar
from urllib.parse import quote

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9
MAX_FRAME_BYTES = 16_384
"""Largest payload that a peer takes who has not said otherwise."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 2, 3, 4
MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 5, 6

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0x0, 0x1, 0x2, 0x3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM = 0x5, 0x6, 0x7
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x9, 0xB

_OF_STREAMS = frozenset({DATA, HEADERS, PRIORITY, RST_STREAM, PUSH_PROMISE, CONTINUATION})
_OF_CONNECTIONS = frozenset({SETTINGS, PING, GOAWAY})
_LENGTHS = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_LARGEST_WINDOW = 2**31 - 1
_FRAME_SIZES = range(2**14, 2**24)

_HEADER = struct.Struct(">IBI")
"""Length and kind, flags, stream."""

_DIGITS_AND_LETTERS = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class Http2Error(Exception):
    """The peer has broken the protocol; the connection cannot go on. `code`: of RFC 9113, 7."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def header(kind: int, flags: int, stream: int, length: int) -> bytes:
    """What a frame with so many bytes of payload begins with."""
    return _HEADER.pack(length << 8 | kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return _HEADER.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *each) for each in values))


def window_update(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def reset(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def goaway(last_stream: int, code: int, why: str = "") -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream, code) + why.encode())


def check(kind: int, stream: int, length: int) -> None:
    """Of any frame: the stream that it may be of, and the length of its payload. Raises
    Http2Error."""
    if kind in (_OF_CONNECTIONS if stream else _OF_STREAMS):
        raise Http2Error(PROTOCOL_ERROR, f"a frame of kind {kind} of stream {stream}")
    if length != _LENGTHS.get(kind, length):
        raise Http2Error(FRAME_SIZE_ERROR, f"a frame of kind {kind} of {length} bytes")


def read_settings(payload: bytes) -> dict[int, int]:
    """The last value of each setting. Raises Http2Error."""
    if len(payload) % 6:
        raise Http2Error(FRAME_SIZE_ERROR, "SETTINGS of a length that is no multiple of 6")
    values: dict[int, int] = {}
    for name, value in struct.iter_unpack(">HI", payload):
        if name == INITIAL_WINDOW_SIZE and value > _LARGEST_WINDOW:
            raise Http2Error(FLOW_CONTROL_ERROR, "a window beyond 2^31")
        if name == ENABLE_PUSH and value > 1:
            raise Http2Error(PROTOCOL_ERROR, f"ENABLE_PUSH of {value}")
        if name == MAX_FRAME_SIZE and value not in _FRAME_SIZES:
            raise Http2Error(PROTOCOL_ERROR, f"MAX_FRAME_SIZE of {value}")
        values[name] = value
    return values


def enlarged(window: int, more: int) -> int:
    """A window of ours that the peer makes larger. Raises Http2Error."""
    if window + more > _LARGEST_WINDOW:
        raise Http2Error(FLOW_CONTROL_ERROR, "a window beyond 2^31")
    return window + more


Payload = TypeVar("Payload", bytes, memoryview)


def unpadded(flags: int, payload: Payload) -> Payload:
    """The payload of a DATA or HEADERS frame without its padding. Raises Http2Error."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error(PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def keeps_table(block: bytes) -> bool:
    """Whether a block of headers, which can be decoded, leaves HPACK's table as it was: it has
    neither fields that go into it (RFC 7541, 6.2.1) nor a size for it (6.3)."""
    position = 0
    while position < len(block):
        first = block[position]
        if first & 0x80:
            _, position = _integer(block, position, 0x7F)
        elif first & 0x60:
            return False
        else:
            name, position = _integer(block, position, 0x0F)
            # Without a number, the name stands there as well as the value.
            for _ in range(1 if name else 2):
                size, position = _integer(block, position, 0x7F)
                position += size
    return True


def _integer(block: bytes, position: int, most: int) -> tuple[int, int]:
    """The integer whose prefix has room for `most` (RFC 7541, 5.1), and where it ends."""
    value = block[position] & most
    position += 1
    if value < most:
        return value, position
    shift = 0
    while block[position] & 0x80:
        value += (block[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return value + (block[position] << shift), position + 1


def response_headers(stream: int) -> bytes:
    """What begins the answer to a call."""
    return frame(HEADERS, END_HEADERS, stream, _RESPONSE)


def trailers(stream: int, status: int, message: str, alone: bool) -> bytes:
    """What ends the answer to a call.

    Args:
        status: of gRPC.
        alone: nothing of the answer has been sent (`Trailers-Only` of gRPC over HTTP/2).
    """
    fields = _GRPC_OK if status == 0 else _literal("grpc-status", str(status))
    if message:
        fields += _literal("grpc-message", quote(message, safe=_DIGITS_AND_LETTERS))
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, (_RESPONSE if alone else b"") + fields)


def _literal(name: str, value: str) -> bytes:
    """A field that goes into no table, so that answers need no state (RFC 7541, 6.2.2)."""
    text = value.encode()[:_LONGEST]
    return b"\x00%b%b%b" % (bytes((len(name),)), name.encode(), _length(len(text)) + text)


_LONGEST = 1024


def _length(size: int) -> bytes:
    """An integer with a prefix of seven bits (RFC 7541, 5.1)."""
    if size < 0x7F:
        return bytes((size,))
    rest, encoded = size - 0x7F, bytearray((0x7F,))
    while rest >= 0x80:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


# `:status: 200` and the name `content-type` stand in HPACK's static table, as 8 and 31.
_CONTENT_TYPE = b"application/grpc"
_RESPONSE = b"\x88\x0f\x10%b%b" % (bytes((len(_CONTENT_TYPE),)), _CONTENT_TYPE)
_GRPC_OK = _literal("grpc-status", "0")
