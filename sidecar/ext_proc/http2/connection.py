"""One connection: its streams and their flow control."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
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
_MAX_CONTINUATIONS = 16
"""Frames of one header block after its first; so many bytes fit into four."""
_MAX_KNOWN = 16
"""Blocks of headers whose meaning is kept: as many as there are routes with metadata of their own,
where these are few."""
_WRITE_AHEAD = 256 * 1024
_MAX_UNREAD = 4 * 1024 * 1024
"""Bytes of answers that wait for a caller who does not read them. Messages are held back long
before; what is not are answers to frames, such as PING."""
_LINGER_S = 1.0
"""How long a caller may take to read the last answers."""
_TOLD = b"goingawy"
"""What a PING carries whose answer says that the caller has read the first GOAWAY."""
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


@dataclass(slots=True)
class _Block:
    """Headers that have begun."""

    flags: int
    stream: int
    data: bytes
    continued: int = 0


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
        self._leaving = False
        self._going_away = False
        self._ended = False
        self._waiters: set[_Waiter] = set()
        self._unread = b""
        self._begun = False
        self._set_up = False
        self._block: _Block | None = None
        self._linger: asyncio.TimerHandle | None = None

    # --- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked: uvloop's do not inherit asyncio's types.
        self._transport = cast("asyncio.Transport", transport)
        # By themselves they would wait for a turn of the event loop every 64 kB.
        self._transport.set_write_buffer_limits(high=_WRITE_AHEAD)
        self._serving.opened(self)
        ours = (
            (frames.MAX_CONCURRENT_STREAMS, self._serving.max_calls),
            (frames.INITIAL_WINDOW_SIZE, _STREAM_WINDOW),
            (frames.MAX_HEADER_LIST_SIZE, _MAX_HEADER_BYTES),
        )
        more = frames.window_update(0, _CONNECTION_WINDOW - _FIRST_WINDOW)
        self.send(frames.settings(ours) + more)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        for each in self._running.values():
            each.task.cancel()
        self._running.clear()
        self._serving.closed(self)

    def data_received(self, data: bytes) -> None:
        if self._ended or self._transport.is_closing():
            return
        try:
            self._unread = self._read(self._unread + data if self._unread else data)
            if self._paused and self._transport.get_write_buffer_size() > _MAX_UNREAD:
                raise Http2Error(frames.ENHANCE_YOUR_CALM, "answers are not read")
        except Http2Error as error:
            _log.warning("connection of Envoy ended", why=str(error))
            self._fail(error.code, str(error))
        except Exception:
            # Where it stands in the frames is not known any more.
            _log.exception("connection of Envoy ended")
            self._fail(frames.INTERNAL_ERROR, "a defect of the sidecar; see its log")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    # --- For calls and the listener ---------------------------------------------------------------

    def send(self, data: bytes) -> None:
        if not self._ended:
            self._transport.write(data)

    def send_all(self, parts: Sequence[bytes | memoryview]) -> None:
        if not self._ended:
            self._transport.writelines(parts)

    def sendable(self, call: Call) -> int:
        return 0 if self._paused else min(self._window, call.send_window)

    def sent(self, call: Call, size: int) -> None:
        self._window -= size
        call.send_window -= size

    @property
    def waiting_to_send(self) -> int:
        """Calls whose messages the caller does not take now."""
        return len(self._waiters)

    async def until_sendable(self, call: Call) -> None:
        while self.sendable(call) <= 0:
            waiter = self._loop.create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def go_away(self) -> None:
        """No new calls are taken as soon as the caller knows, for those that are on their way would
        be lost (RFC 9113, 6.8). Calls that are running go on."""
        if not self._leaving:
            self._leaving = True
            first = frames.goaway(_LARGEST_WINDOW, frames.NO_ERROR)
            self.send(first + frames.frame(frames.PING, 0, 0, _TOLD))

    def close(self) -> None:
        """Ends it; calls that are running are cancelled."""
        for each in self._running.values():
            each.task.cancel()
        if not self._transport.is_closing():
            self._transport.close()
            self._linger = self._loop.call_later(_LINGER_S, self._transport.abort)

    def _fail(self, code: int, why: str) -> None:
        self._transport.write(frames.goaway(self._last_stream, code, why))
        self.close()

    def _refuse_calls(self) -> None:
        """The caller knows that it should begin none."""
        if self._leaving and not self._going_away:
            self._going_away = True
            self.send(frames.goaway(self._last_stream, frames.NO_ERROR))
            self._half_close()

    def _half_close(self) -> None:
        """Nothing more is sent, once nothing is to be; the caller closes when it has read the
        answers. Closed from here, its next write would fail, and with it the calls whose answers it
        has not read."""
        if not self._going_away or self._running:
            return
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
            kind, flags = data[position + 3], data[position + 4]
            stream = int.from_bytes(data[position + 5 : begin], "big") & _LARGEST_WINDOW
            if kind == frames.DATA and stream and self._block is None and self._set_up:
                # Not copied: bodies have megabytes.
                self._data(flags, stream, memoryview(data)[begin:end])
            else:
                frames.check(kind, stream, length)
                self._frame(kind, flags, stream, data[begin:end])
            position = end
        return data[position:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """All but DATA."""
        if self._block is not None and kind != frames.CONTINUATION:
            raise Http2Error(frames.PROTOCOL_ERROR, "headers that do not go on")
        if not self._set_up and kind != frames.SETTINGS:
            raise Http2Error(frames.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if kind == frames.HEADERS:
            block = frames.unpadded(flags, payload)
            block = block[5:] if flags & frames.HAS_PRIORITY else block
            self._headers_of(_Block(flags, stream, block))
        elif kind == frames.CONTINUATION:
            self._headers_of(self._continued(flags, stream, payload))
        elif kind == frames.WINDOW_UPDATE:
            self._more_window(stream, payload)
        elif kind == frames.RST_STREAM:
            self._reset(stream)
        elif kind == frames.SETTINGS:
            self._settings(flags, payload)
        elif kind == frames.PING:
            if not flags & frames.ACK:
                self.send(frames.frame(frames.PING, frames.ACK, 0, payload))
            elif payload == _TOLD:
                self._refuse_calls()
        elif kind == frames.PUSH_PROMISE:
            raise Http2Error(frames.PROTOCOL_ERROR, "a client cannot push")
        # GOAWAY, PRIORITY, and kinds that came after this was written, need no answer.

    def _check_begun(self, stream: int) -> None:
        """Raises Http2Error for what is of a stream without headers. Those that came after GOAWAY
        were not looked at."""
        if stream > self._last_stream and not self._going_away:
            raise Http2Error(frames.PROTOCOL_ERROR, "a frame of a stream that did not begin")

    def _data(self, flags: int, stream: int, payload: memoryview) -> None:
        size = len(payload)
        self._received += size
        if self._received >= _REFILL:
            self.send(frames.window_update(0, self._received))
            self._received = 0
        running = self._running.get(stream)
        if running is not None:
            end = bool(flags & frames.END_STREAM)
            running.call.received(frames.unpadded(flags, payload), size, end)
        else:
            # It was answered or reset, and this was on its way.
            self._check_begun(stream)

    def _continued(self, flags: int, stream: int, payload: bytes) -> _Block:
        """The headers that have begun, with their next part. Raises Http2Error."""
        block = self._block
        if block is None or block.stream != stream:
            raise Http2Error(frames.PROTOCOL_ERROR, "headers that did not begin")
        # Also where they add nothing: each costs something, and there would be no end to them.
        if block.continued >= _MAX_CONTINUATIONS:
            raise Http2Error(frames.ENHANCE_YOUR_CALM, "headers in too many parts")
        flags = block.flags | flags & frames.END_HEADERS
        return _Block(flags, stream, block.data + payload, block.continued + 1)

    def _headers_of(self, block: _Block) -> None:
        """Headers, or their beginning."""
        if len(block.data) > _MAX_HEADER_BYTES:
            raise Http2Error(frames.ENHANCE_YOUR_CALM, "too many headers")
        if not block.flags & frames.END_HEADERS:
            self._block = block
            return
        self._block = None
        # Decoded even where nobody wants them: the table is one for all streams.
        path, metadata = self._headers.decode(block.data)
        stream, end = block.stream, bool(block.flags & frames.END_STREAM)
        running = self._running.get(stream)
        if running is not None:
            # Trailers, in which gRPC's callers have nothing to say.
            if not end:
                raise Http2Error(frames.PROTOCOL_ERROR, "headers in the middle of a stream")
            running.call.received(b"", 0, end)
        elif stream > self._last_stream and not self._going_away:
            # One that comes after GOAWAY is tried again by the caller, elsewhere.
            self._begin(stream, path, metadata, end)

    def _begin(self, stream: int, path: str, metadata: Metadata, end: bool) -> None:
        if stream % 2 == 0:
            raise Http2Error(frames.PROTOCOL_ERROR, "a client's streams have odd numbers")
        self._last_stream = stream
        serving = self._serving
        if len(self._running) >= serving.max_calls:
            # It was told how many it may begin. How many all connections may, they are not.
            self.send(frames.reset(stream, frames.REFUSED_STREAM))
            return
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
        self._half_close()

    def _reset(self, stream: int) -> None:
        running = self._running.pop(stream, None)
        if running is None:
            self._check_begun(stream)
            return
        running.task.cancel()
        self._half_close()

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            if payload:
                raise Http2Error(frames.FRAME_SIZE_ERROR, "SETTINGS with ACK and values")
            return
        self._set_up = True
        # Once for all of them: a frame has room for thousands.
        window = frames.read_settings(payload).get(frames.INITIAL_WINDOW_SIZE)
        if window is not None:
            more, self._first_stream_window = window - self._first_stream_window, window
            for each in self._running.values():
                each.call.send_window = frames.enlarged(each.call.send_window, more)
        self.send(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._wake()

    def _more_window(self, stream: int, payload: bytes) -> None:
        more = int.from_bytes(payload, "big") & _LARGEST_WINDOW
        if more == 0:
            raise Http2Error(frames.PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
        if stream == 0:
            self._window = frames.enlarged(self._window, more)
        elif (running := self._running.get(stream)) is not None:
            running.call.send_window = frames.enlarged(running.call.send_window, more)
        else:
            self._check_begun(stream)
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class _Headers:
    """Decodes the headers of requests.

    Envoy sends the same with each request of a route: entries of the table, and the path, which it
    leaves out of it. Such a block changes nothing in the table, so that an equal one means the same
    for as long as no other has changed it.
    """

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(_MAX_HEADER_BYTES)
        self._known: dict[bytes, tuple[str, Metadata]] = {}

    def decode(self, block: bytes) -> tuple[str, Metadata]:
        """Path, and what is no pseudo header. Raises Http2Error."""
        known = self._known.get(block)
        if known is not None:
            return known
        try:
            fields = [
                (_text(name), _text(value)) for name, value in self._decoder.decode(block, raw=True)
            ]
        except (hpack.HPACKError, UnicodeDecodeError):
            why = "headers that cannot be decoded"
            raise Http2Error(frames.COMPRESSION_ERROR, why) from None
        path = next((value for name, value in fields if name == ":path"), "")
        meaning = path, tuple([field for field in fields if not field[0].startswith(":")])
        kept = frames.keeps_table(block)
        if not kept or len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        if kept:
            self._known[block] = meaning
        return meaning


def _text(data: bytes | str) -> str:
    return data if isinstance(data, str) else data.decode("latin-1")
