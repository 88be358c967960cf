"""One call: its messages and its end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.ext_proc.http2 import frames

_PREFIX_BYTES = 5
"""Of a message: whether it is compressed, and its length."""

_AT_ONCE = 16 * frames.MAX_FRAME_BYTES
"""Bytes that are handed over together, before it is seen whether the caller takes them."""

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]

if TYPE_CHECKING:
    _Waiter: TypeAlias = asyncio.Future[None]


class CallEnd(grpc.aio.AbortError):
    """Ends the call with a status other than OK. The text goes to the caller."""

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status


class Sender(Protocol):
    """The connection, as its calls see it."""

    def send(self, data: bytes) -> None: ...

    def send_all(self, parts: Sequence[bytes | memoryview]) -> None:
        """One after the other; they are kept and must not change."""
        ...

    def sendable(self, call: Call) -> int:
        """Bytes of messages that may be sent now."""
        ...

    def sent(self, call: Call, size: int) -> None:
        """So many of them have been."""
        ...

    async def until_sendable(self, call: Call) -> None: ...


class Call:
    """What a handler gets, with the methods of `grpc.aio.ServicerContext` that are used here.

    Args:
        stream: number of the stream.
        window: bytes that the caller may send ahead of what is read.
        max_message_bytes: larger messages end the call.
        decode: makes a message of its bytes.
    """

    def __init__(
        self,
        sender: Sender,
        stream: int,
        metadata: Metadata,
        window: int,
        max_message_bytes: int,
        decode: Callable[[bytes], Message],
    ) -> None:
        self.stream = stream
        self.send_window = 0
        self.ended = False
        """By the caller: nothing more comes."""
        self._sender = sender
        self._metadata = metadata
        self._window = window
        self._max_message_bytes = max_message_bytes
        self._decode = decode
        self._buffer = bytearray()
        self._messages: deque[bytes | bytearray] = deque()
        self._waiting = 0
        """Bytes of the messages that are not read."""
        self._unpaid = 0
        """Bytes that came and that the caller has not been let send again."""
        self._begun = False
        self._waiter: _Waiter | None = None
        self._broken: CallEnd | None = None
        self._status: grpc.StatusCode | None = None

    # --- For handlers -----------------------------------------------------------------------------

    async def read(self) -> Message | None:
        """The next message; None at the end. Raises CallEnd or SidecarError for what is none."""
        while not self._messages:
            if self._broken is not None:
                raise self._broken
            if self.ended:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._messages.popleft()
        self._waiting -= _PREFIX_BYTES + len(message)
        self._pay()
        try:
            # Python's protobuf reads a bytearray where it stands.
            return self._decode(message)  # type: ignore[arg-type]
        except DecodeError:
            raise SidecarError(
                ErrorCode.INVALID_REQUEST,
                "the request is not a message of the method's type; "
                "generate the client from the .proto files of this API",
            ) from None

    async def write(self, message: Message) -> None:
        """Waits where the caller does not take more."""
        data = message.SerializeToString()
        data = b"%b%b%b" % (b"\0", len(data).to_bytes(4, "big"), data)
        head = b"" if self._begun else frames.response_headers(self.stream)
        self._begun = True
        size = len(data)
        if size <= frames.MAX_FRAME_BYTES and size <= self._sender.sendable(self):
            self._sender.send(head + frames.frame(frames.DATA, 0, self.stream, data))
            self._sender.sent(self, size)
            return
        if head:
            self._sender.send(head)
        await self._write_by_parts(memoryview(data))

    async def _write_by_parts(self, rest: memoryview) -> None:
        while rest:
            size = min(len(rest), _AT_ONCE, self._sender.sendable(self))
            if size <= 0:
                await self._sender.until_sendable(self)
                continue
            parts: list[bytes | memoryview] = []
            for start in range(0, size, frames.MAX_FRAME_BYTES):
                part = rest[start : min(start + frames.MAX_FRAME_BYTES, size)]
                parts += (frames.header(frames.DATA, 0, self.stream, len(part)), part)
            self._sender.send_all(parts)
            self._sender.sent(self, size)
            rest = rest[size:]

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        self._status = code
        raise CallEnd(code, details)

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        await self.abort(status.code, status.details)

    def code(self) -> grpc.StatusCode | None:
        """What it was aborted with; None: nothing, as yet."""
        return self._status

    # --- For the connection -----------------------------------------------------------------------

    def received(self, data: bytes | memoryview, size: int, end: bool) -> None:
        """The next part of the messages, for which `size` bytes were taken of the window.

        Raises Http2Error: more than the window lets in, or something after the end.
        """
        if self.ended:
            raise frames.Http2Error(frames.STREAM_CLOSED, "a stream that goes on after its end")
        self._unpaid += size
        if self._unpaid > self._window:
            raise frames.Http2Error(frames.FLOW_CONTROL_ERROR, "more than the window")
        self.ended = end
        if self._broken is not None:
            # Nothing more can be read, and the caller may send no more than the window.
            return
        self._buffer += data
        try:
            while self._take():
                pass
            if end and self._buffer:
                raise CallEnd(grpc.StatusCode.INTERNAL, "the last message ends before its end")
        except CallEnd as error:
            self._broken = error
            self._buffer.clear()
        # Of one that has not come whole, the rest must be able to come.
        self._pay()
        waiter = self._waiter
        if waiter is not None and (self._messages or end or self._broken):
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def end(self, status: int, message: str) -> bytes:
        """The frames that end the call from this side."""
        ending = frames.trailers(self.stream, status, message, alone=not self._begun)
        if not self.ended:
            # The caller should not send the rest (RFC 9113, 8.1).
            ending += frames.reset(self.stream, frames.NO_ERROR)
        return ending

    def _take(self) -> bool:
        """Takes a message off the buffer, if one is whole. Raises CallEnd."""
        buffer = self._buffer
        if len(buffer) < _PREFIX_BYTES:
            return False
        size = int.from_bytes(buffer[1:_PREFIX_BYTES], "big")
        if size > self._max_message_bytes:
            why = f"a message of {size} bytes is larger than {self._max_message_bytes}"
            raise CallEnd(grpc.StatusCode.RESOURCE_EXHAUSTED, why)
        if buffer[0]:
            why = "compressed messages are not taken: no grpc-encoding was offered"
            raise CallEnd(grpc.StatusCode.UNIMPLEMENTED, why)
        end = _PREFIX_BYTES + size
        if len(buffer) < end:
            return False
        if len(buffer) == end:
            # Not copied: it can have megabytes.
            del buffer[:_PREFIX_BYTES]
            self._messages.append(buffer)
            self._buffer = bytearray()
        else:
            self._messages.append(bytes(memoryview(buffer)[_PREFIX_BYTES:end]))
            del buffer[:end]
        self._waiting += end
        return True

    def _pay(self) -> None:
        """Lets the caller send as much more as has been taken, in large pieces. What waits to be
        read has not been, so that a handler that is slow holds up its caller."""
        due = self._unpaid - self._waiting
        if due * 2 >= self._window and not self.ended:
            self._sender.send(frames.window_update(self.stream, due))
            self._unpaid -= due
