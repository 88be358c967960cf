"""One connection: its streams and their flow control."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

import hpack
import structlog
from google.protobuf.message import Message

from sidecar.ext_proc.http2 import frames
from sidecar.ext_proc.http2.call import Call, Metadata
from sidecar.ext_proc.http2.frames import Http2Error

_log = structlog.get_logger(__name__)

_STREAM_WINDOW = 1024 * 1024
_CONNECTION_WINDOW = 2**30
"""Bounded by the windows of the streams: one that is not read must not hold up the others."""
_REFILL = 2**24
_LARGEST_WINDOW = 2**31 - 1
_FIRST_WINDOW = 65_535
_MAX_HEADER_BYTES = 64 * 1024
_CANCELLED = 1
"""Status of gRPC."""

if TYPE_CHECKING:
    _Waiter: TypeAlias = asyncio.Future[None]


class Serving(Protocol):
    """Runs calls."""

    @property
    def max_calls(self) -> int: ...

    @property
    def max_message_bytes(self) -> int: ...

    def decoder(self, path: str) -> Callable[[bytes], Message]:
        """Of the messages of the method; that of a method there is none of is never called."""
        ...

    async def run(self, path: str, call: Call) -> tuple[int, str]:
        """Runs the method's handler. The gRPC status of the end, and a text to it."""
        ...

    def opened(self, connection: Connection) -> None: ...

    def closed(self, connection: Connection) -> None: ...


@dataclass(frozen=True, slots=True)
class _Running:
    call: Call
    task: asyncio.Task[None]


class Connection(asyncio.Protocol):
    """Reads frames, starts a task for each call, and cancels it when its stream is reset or the
    connection is lost."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._loop = asyncio.get_running_loop()
        self._headers = _Headers()
        self._running: dict[int, _Running] = {}
        self._last_stream = 0
        self._window = _FIRST_WINDOW
        self._first_stream_window = _FIRST_WINDOW
        self._received = 0
        self._paused = False
        self._going_away = False
        self._ended = False
        self._waiters: list[_Waiter] = []
        self._unread = b""
        self._begun = False
        self._block: tuple[int, int, bytes] | None = None

    # --- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked: uvloop's do not inherit asyncio's types.
        self._transport = cast("asyncio.WriteTransport", transport)
        self._serving.opened(self)
        ours = (
            (frames.MAX_CONCURRENT_STREAMS, self._serving.max_calls),
            (frames.INITIAL_WINDOW_SIZE, _STREAM_WINDOW),
        )
        more = frames.window_update(0, _CONNECTION_WINDOW - _FIRST_WINDOW)
        self.send(frames.settings(ours) + more)

    def connection_lost(self, exc: Exception | None) -> None:
        for each in self._running.values():
            each.task.cancel()
        self._running.clear()
        self._serving.closed(self)

    def data_received(self, data: bytes) -> None:
        if self._ended or self._transport.is_closing():
            return
        try:
            self._unread = self._read(self._unread + data if self._unread else data)
        except Http2Error as error:
            _log.warning("connection of Envoy ended", why=str(error))
            self._transport.write(frames.goaway(self._last_stream, error.code, str(error)))
            self._transport.close()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    # --- For calls and the listener ---------------------------------------------------------------

    def send(self, data: bytes) -> None:
        if not self._ended:
            self._transport.write(data)

    def sendable(self, call: Call) -> int:
        return 0 if self._paused else min(self._window, call.send_window)

    def sent(self, call: Call, size: int) -> None:
        self._window -= size
        call.send_window -= size

    async def until_sendable(self, call: Call) -> None:
        while self.sendable(call) <= 0:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def go_away(self) -> None:
        """No new calls are taken. Those that are running go on."""
        if not self._going_away:
            self._going_away = True
            self.send(frames.goaway(self._last_stream, frames.NO_ERROR))
            if not self._running:
                self._half_close()

    def close(self) -> None:
        """Ends it now; calls that are running are cancelled."""
        for each in self._running.values():
            each.task.cancel()
        self._transport.close()

    def _half_close(self) -> None:
        """Nothing more is sent; the caller closes when it has read the answers. Closed from here,
        its next write would fail, and with it the calls whose answers it has not read."""
        if not self._ended and not self._transport.is_closing():
            self._ended = True
            self._transport.write_eof()

    # --- Frames -----------------------------------------------------------------------------------

    def _read(self, data: bytes) -> bytes:
        """Takes whole frames off `data`; the rest is returned. Raises Http2Error."""
        position, available = 0, len(data)
        if not self._begun:
            if not frames.PREFACE.startswith(data[: len(frames.PREFACE)]):
                raise Http2Error(frames.PROTOCOL_ERROR, "no HTTP/2; Envoy alone is served")
            if available < len(frames.PREFACE):
                return data
            self._begun = True
            position = len(frames.PREFACE)
        while available - position >= frames.HEADER_BYTES:
            length = int.from_bytes(data[position : position + 3], "big")
            if length > frames.MAX_FRAME_BYTES:
                raise Http2Error(frames.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            begin = position + frames.HEADER_BYTES
            end = begin + length
            if end > available:
                break
            stream = int.from_bytes(data[position + 5 : begin], "big") & _LARGEST_WINDOW
            self._frame(data[position + 3], data[position + 4], stream, data[begin:end])
            position = end
        return data[position:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._block is not None and kind != frames.CONTINUATION:
            raise Http2Error(frames.PROTOCOL_ERROR, "headers that do not go on")
        if kind == frames.DATA:
            self._data(flags, stream, payload)
        elif kind == frames.HEADERS:
            block = frames.unpadded(flags, payload)
            self._block_of(flags, stream, block[5:] if flags & frames.HAS_PRIORITY else block)
        elif kind == frames.CONTINUATION:
            if self._block is None or self._block[1] != stream:
                raise Http2Error(frames.PROTOCOL_ERROR, "headers that did not begin")
            first, _, begun = self._block
            self._block_of(first | flags & frames.END_HEADERS, stream, begun + payload)
        elif kind == frames.WINDOW_UPDATE:
            self._more_window(stream, payload)
        elif kind == frames.RST_STREAM:
            running = self._running.pop(stream, None)
            if running is not None:
                running.task.cancel()
        elif kind == frames.SETTINGS:
            if not flags & frames.ACK:
                self._settings(payload)
        elif kind == frames.PING:
            if not flags & frames.ACK:
                self.send(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.PUSH_PROMISE:
            raise Http2Error(frames.PROTOCOL_ERROR, "a client cannot push")
        # GOAWAY, PRIORITY, and kinds that came after this was written, need no answer.

    def _data(self, flags: int, stream: int, payload: bytes) -> None:
        size = len(payload)
        self._received += size
        if self._received >= _REFILL:
            self.send(frames.window_update(0, self._received))
            self._received = 0
        running = self._running.get(stream)
        if running is not None:
            end = bool(flags & frames.END_STREAM)
            running.call.received(frames.unpadded(flags, payload), size, end)
        elif stream > self._last_stream and not self._going_away:
            raise Http2Error(frames.PROTOCOL_ERROR, "data of a stream that did not begin")

    def _block_of(self, flags: int, stream: int, block: bytes) -> None:
        """Headers, or their beginning."""
        if len(block) > _MAX_HEADER_BYTES:
            raise Http2Error(frames.ENHANCE_YOUR_CALM, "too many headers")
        if not flags & frames.END_HEADERS:
            self._block = (flags, stream, block)
            return
        self._block = None
        # Decoded even where nobody wants them: the table is one for all streams.
        path, metadata = self._headers.decode(block)
        end = bool(flags & frames.END_STREAM)
        running = self._running.get(stream)
        if running is not None:
            # Trailers, in which gRPC's callers have nothing to say.
            running.call.received(b"", 0, end)
        elif stream > self._last_stream and not self._going_away:
            # One that comes after GOAWAY is tried again by the caller, elsewhere.
            self._begin(stream, path, metadata, end)

    def _begin(self, stream: int, path: str, metadata: Metadata, end: bool) -> None:
        if stream % 2 == 0:
            raise Http2Error(frames.PROTOCOL_ERROR, "a client's streams have odd numbers")
        self._last_stream = stream
        serving = self._serving
        call = Call(
            self,
            stream,
            metadata,
            _STREAM_WINDOW,
            serving.max_message_bytes,
            serving.decoder(path),
        )
        call.send_window = self._first_stream_window
        call.ended = end
        task = self._loop.create_task(self._run(path, call))
        self._running[stream] = _Running(call, task)

    async def _run(self, path: str, call: Call) -> None:
        try:
            status, message = await self._serving.run(path, call)
        except asyncio.CancelledError:
            self._end(call, _CANCELLED, "")
            raise
        self._end(call, status, message)

    def _end(self, call: Call, status: int, message: str) -> None:
        # It is not there any more where the caller has reset the stream.
        there = self._running.pop(call.stream, None) is not None
        if there and not self._transport.is_closing():
            self.send(call.end(status, message))
        if self._going_away and not self._running:
            self._half_close()

    def _settings(self, payload: bytes) -> None:
        for name, value in frames.read_settings(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                if value > _LARGEST_WINDOW:
                    raise Http2Error(frames.FLOW_CONTROL_ERROR, "a window beyond 2^31")
                for each in self._running.values():
                    each.call.send_window += value - self._first_stream_window
                self._first_stream_window = value
        self.send(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._wake()

    def _more_window(self, stream: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Http2Error(frames.FRAME_SIZE_ERROR, "WINDOW_UPDATE not of 4 bytes")
        more = struct.unpack(">I", payload)[0] & _LARGEST_WINDOW
        if stream == 0:
            self._window += more
        elif (running := self._running.get(stream)) is not None:
            running.call.send_window += more
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class _Headers:
    """Decodes the headers of requests.

    Envoy sends the same with each, as numbers of its table alone: such a block changes nothing in
    the table, so that the next one that is equal means the same.
    """

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(_MAX_HEADER_BYTES)
        self._last = b""
        self._meaning: tuple[str, Metadata] = ("", ())

    def decode(self, block: bytes) -> tuple[str, Metadata]:
        """Path, and what is no pseudo header. Raises Http2Error."""
        if block == self._last and block:
            return self._meaning
        try:
            fields = [
                (_text(name), _text(value)) for name, value in self._decoder.decode(block, raw=True)
            ]
        except (hpack.HPACKError, UnicodeDecodeError):
            why = "headers that cannot be decoded"
            raise Http2Error(frames.COMPRESSION_ERROR, why) from None
        path = next((value for name, value in fields if name == ":path"), "")
        self._meaning = path, tuple([field for field in fields if not field[0].startswith(":")])
        # From 0x81 to 0xfe: an index of one byte (RFC 7541, 6.1).
        self._last = block if min(block, default=0) > 0x80 and max(block) < 0xFF else b""
        return self._meaning


def _text(data: bytes | str) -> str:
    return data if isinstance(data, str) else data.decode("latin-1")
