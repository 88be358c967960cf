"""Calls over the socket for Envoy alone: by gRPC's library, and by bytes that it does not send."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import hpack
import pytest
import uvloop
from google.protobuf.wrappers_pb2 import BytesValue

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.ext_proc.http2 import frames
from sidecar.ext_proc.http2.listener import Listener, Method
from sidecar.grpc_api.interceptors import Errors
from sidecar.grpc_api.listening import bound_unix
from tests.waiting import until

WAIT_S = 20
LARGEST = 10 * 1024 * 1024
MB = 1024 * 1024


class Handlers:
    """What the methods do, and what became of them."""

    def __init__(self) -> None:
        self.waiting = 0
        self.cancelled = 0
        self.seen: list[tuple[tuple[str, str | bytes], ...]] = []
        self.go = asyncio.Event()

    async def echo(self, _: object, call: Any) -> None:
        self.seen.append(call.invocation_metadata())
        while (message := await call.read()) is not None:
            await call.write(message)

    async def wait(self, _: object, call: Any) -> None:
        self.waiting += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        await call.write(BytesValue(value=b"at last"))

    async def one(self, request: BytesValue, call: Any) -> BytesValue:
        if request.value == b"refuse":
            raise SidecarError(ErrorCode.POLICY_NOT_FOUND, "grün, 100 %")
        if request.value == b"abort":
            await call.abort(grpc.StatusCode.NOT_FOUND, "not here")
        if request.value == b"defect":
            raise RuntimeError("a secret")
        return request


@asynccontextmanager
async def listening(
    socket: Path, handlers: Handlers, max_calls: int = 100
) -> AsyncIterator[Listener]:
    methods = {
        "t.T/Echo": Method(handlers.echo, BytesValue, streaming=True),
        "t.T/Wait": Method(handlers.wait, BytesValue, streaming=True),
        "t.T/One": Method(handlers.one, BytesValue),
    }
    listener = Listener(methods, [Errors()], max_calls, LARGEST)
    await listener.start(bound_unix(socket))
    try:
        yield listener
    finally:
        await listener.stop()


def stream(channel: grpc.aio.Channel, method: str) -> Any:
    multi: Any = channel.stream_stream(
        f"/t.T/{method}", BytesValue.SerializeToString, BytesValue.FromString
    )
    return multi(timeout=WAIT_S)


async def one(channel: grpc.aio.Channel, value: bytes, method: str = "One") -> bytes:
    multi: Any = channel.unary_unary(
        f"/t.T/{method}", BytesValue.SerializeToString, BytesValue.FromString
    )
    answer = await multi(BytesValue(value=value), timeout=WAIT_S)
    value = answer.value
    return value


def channel_to(socket: Path) -> grpc.aio.Channel:
    options = [("grpc.max_receive_message_length", -1)]
    return grpc.aio.insecure_channel(f"unix:{socket}", options=options)


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """The sidecar runs on uvloop, where there is one."""
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 70_000, 3 * MB])
async def test_messages_of_any_size_come_and_go(socket: Path, size: int) -> None:
    async with listening(socket, Handlers()), channel_to(socket) as channel:
        call = stream(channel, "Echo")
        for number in range(3):
            value = bytes([number]) * size
            await call.write(BytesValue(value=value))
            assert (await call.read()).value == value
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_slow_reader_holds_up_no_other_call(socket: Path) -> None:
    """Of what it does not read, no more is sent than its window; the rest waits here."""
    async with listening(socket, Handlers()), channel_to(socket) as channel:
        slow = stream(channel, "Echo")
        await slow.write(BytesValue(value=b"x" * 8 * MB))

        assert await one(channel, b"quick") == b"quick"
        assert len((await slow.read()).value) == 8 * MB


async def test_many_calls_at_once(socket: Path) -> None:
    async with listening(socket, Handlers()), channel_to(socket) as channel:
        values = [b"%d" % number for number in range(80)]
        assert await asyncio.gather(*(one(channel, each) for each in values)) == values


@pytest.mark.parametrize(
    ("value", "method", "code", "details"),
    [
        (b"refuse", "One", grpc.StatusCode.NOT_FOUND, "grün, 100 %"),
        (b"abort", "One", grpc.StatusCode.NOT_FOUND, "not here"),
        (b"defect", "One", grpc.StatusCode.INTERNAL, None),
        (b"", "None", grpc.StatusCode.UNIMPLEMENTED, None),
        (b"x" * (LARGEST + 1), "One", grpc.StatusCode.RESOURCE_EXHAUSTED, None),
    ],
)
async def test_errors_are_statuses(
    socket: Path, value: bytes, method: str, code: grpc.StatusCode, details: str | None
) -> None:
    async with listening(socket, Handlers()), channel_to(socket) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await one(channel, value, method)

        assert caught.value.code() is code
        assert "secret" not in str(caught.value.details())
        assert details is None or caught.value.details() == details
        assert await one(channel, b"goes on") == b"goes on"


async def test_what_is_no_message_is_refused(socket: Path) -> None:
    async with listening(socket, Handlers()), channel_to(socket) as channel:
        multi: Any = channel.unary_unary("/t.T/One")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await multi(b"\xff\xff", timeout=WAIT_S)

        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_more_calls_than_are_taken_are_refused(socket: Path) -> None:
    handlers = Handlers()
    async with listening(socket, handlers, max_calls=1) as listener, channel_to(socket) as channel:
        waiting = stream(channel, "Wait")
        await until(lambda: handlers.waiting == 1)
        # As a caller that has not read the settings: gRPC's client waits for its turn.
        async with raw(socket) as peer:
            await peer.call(1, "/t.T/One")
            assert await peer.trailers(1) == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])

        handlers.go.set()
        assert (await waiting.read()).value == b"at last"
        assert listener.max_calls == 1


async def test_caller_that_leaves_cancels_the_handler(socket: Path) -> None:
    handlers = Handlers()
    async with listening(socket, handlers), channel_to(socket) as channel:
        call = stream(channel, "Wait")
        await until(lambda: handlers.waiting == 1)
        call.cancel()
        await until(lambda: handlers.cancelled == 1)

        assert await one(channel, b"goes on") == b"goes on"


async def test_connection_that_ends_cancels_its_handlers(socket: Path) -> None:
    handlers = Handlers()
    async with listening(socket, handlers):
        async with raw(socket) as peer:
            await peer.call(1, "/t.T/Wait")
            await until(lambda: handlers.waiting == 1)
        await until(lambda: handlers.cancelled == 1)


async def test_stop_lets_no_new_call_in_and_ends_at_once_what_waits(socket: Path) -> None:
    handlers = Handlers()
    async with listening(socket, handlers) as listener, raw(socket) as peer:
        await peer.call(1, "/t.T/Wait")
        await until(lambda: handlers.waiting == 1)
        await listener.stop()

        assert await peer.ends_with(frames.GOAWAY) == frames.NO_ERROR
        assert handlers.cancelled == 1


async def test_call_that_ends_within_the_stop_is_answered(socket: Path) -> None:
    handlers = Handlers()
    async with listening(socket, handlers) as listener, channel_to(socket) as channel:
        call = stream(channel, "Wait")
        await until(lambda: handlers.waiting == 1)
        stopping = asyncio.ensure_future(listener.stop())
        await asyncio.sleep(0)
        handlers.go.set()

        assert (await call.read()).value == b"at last"
        assert await call.code() is grpc.StatusCode.OK
        await stopping


# --- By bytes -------------------------------------------------------------------------------------


class Peer:
    """A caller that sends what a test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.encoder = hpack.Encoder()
        self._reader = reader
        self._writer = writer

    def send(self, *parts: bytes) -> None:
        self._writer.write(b"".join(parts))

    def block(self, path: str, more: Mapping[str, str] | None = None) -> bytes:
        fields = {":method": "POST", ":path": path, **(more or {})}
        encoded: bytes = self.encoder.encode(fields.items(), huffman=False)
        return encoded

    async def call(self, stream: int, path: str, more: Mapping[str, str] | None = None) -> None:
        block = self.block(path, more)
        self.send(frames.frame(frames.HEADERS, frames.END_HEADERS, stream, block))

    async def next(self) -> tuple[int, int, int, bytes]:
        """Kind, flags, stream and payload."""
        async with asyncio.timeout(WAIT_S):
            head = await self._reader.readexactly(frames.HEADER_BYTES)
            payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
        return head[3], head[4], int.from_bytes(head[5:], "big"), payload

    async def wanted(self, kind: int, stream: int) -> tuple[int, bytes]:
        """Flags and payload of the next such frame."""
        while True:
            found, flags, of, payload = await self.next()
            if (found, of) == (kind, stream):
                return flags, payload

    async def trailers(self, stream: int) -> str:
        """The status of a call."""
        decoder = hpack.Decoder()
        while True:
            flags, payload = await self.wanted(frames.HEADERS, stream)
            fields = dict(decoder.decode(payload, raw=True))
            if flags & frames.END_STREAM:
                return fields[b"grpc-status"].decode()

    async def ends_with(self, kind: int) -> int:
        """The code of the GOAWAY with which the connection ends."""
        code = -1
        try:
            while True:
                found, _, _, payload = await self.next()
                if found == kind:
                    code = struct.unpack(">I", payload[4:8])[0]
        except asyncio.IncompleteReadError:
            return code


@asynccontextmanager
async def raw(socket: Path, preface: bytes = frames.PREFACE) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_unix_connection(socket)
    peer = Peer(reader, writer)
    peer.send(preface, frames.settings(()))
    try:
        yield peer
    finally:
        writer.close()


def message(value: bytes) -> bytes:
    data = BytesValue(value=value).SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data


def data(stream: int, payload: bytes, flags: int = 0) -> bytes:
    return frames.frame(frames.DATA, flags, stream, payload)


VIOLATIONS: Mapping[str, tuple[bytes, int]] = {
    "data before headers": (data(1, b"x"), frames.PROTOCOL_ERROR),
    "frame too large": (b"\xff\xff\xff" + bytes(6), frames.FRAME_SIZE_ERROR),
    "settings cut off": (frames.frame(frames.SETTINGS, 0, 0, b"x"), frames.FRAME_SIZE_ERROR),
    "window of 2^31": (
        frames.settings([(frames.INITIAL_WINDOW_SIZE, 2**31)]),
        frames.FLOW_CONTROL_ERROR,
    ),
    "update cut off": (frames.frame(frames.WINDOW_UPDATE, 0, 0, b"x"), frames.FRAME_SIZE_ERROR),
    "push": (frames.frame(frames.PUSH_PROMISE, 0, 1), frames.PROTOCOL_ERROR),
    "headers that cannot be decoded": (
        frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xff\xff"),
        frames.COMPRESSION_ERROR,
    ),
    "number of a server": (
        frames.frame(frames.HEADERS, frames.END_HEADERS, 2, b"\x83"),
        frames.PROTOCOL_ERROR,
    ),
    "headers interrupted": (
        frames.frame(frames.HEADERS, 0, 1, b"\x83") + frames.frame(frames.PING, 0, 0, bytes(8)),
        frames.PROTOCOL_ERROR,
    ),
    "headers without end": (
        frames.frame(frames.HEADERS, 0, 1)
        + frames.frame(frames.CONTINUATION, 0, 1, bytes(16_000)) * 5,
        frames.ENHANCE_YOUR_CALM,
    ),
    "continued without beginning": (
        frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1),
        frames.PROTOCOL_ERROR,
    ),
    "padding beyond the frame": (
        frames.frame(frames.HEADERS, frames.END_HEADERS | frames.PADDED, 1, b"\x09\x83"),
        frames.PROTOCOL_ERROR,
    ),
}


@pytest.mark.parametrize("name", VIOLATIONS)
async def test_broken_protocol_ends_the_connection(socket: Path, name: str) -> None:
    sent, code = VIOLATIONS[name]
    async with listening(socket, Handlers()), raw(socket) as peer:
        peer.send(sent)

        assert await peer.ends_with(frames.GOAWAY) == code


async def test_http1_is_told_to_go_away(socket: Path) -> None:
    async with listening(socket, Handlers()), raw(socket, b"GET / HTTP/1.1\r\n") as peer:
        assert await peer.ends_with(frames.GOAWAY) == frames.PROTOCOL_ERROR


async def test_more_than_the_window_ends_the_connection(socket: Path) -> None:
    async with listening(socket, Handlers()), raw(socket) as peer:
        await peer.call(1, "/t.T/Wait")
        part = data(1, message(b"x" * 16_000))
        # With the last of them: what came after it would find the connection closed.
        peer.send(*[part] * (MB // (len(part) - frames.HEADER_BYTES) + 1))

        assert await peer.ends_with(frames.GOAWAY) == frames.FLOW_CONTROL_ERROR


async def test_padded_prioritized_and_continued_headers_are_read(socket: Path) -> None:
    async with listening(socket, Handlers()), raw(socket) as peer:
        block = peer.block("/t.T/One")
        padded = bytes([3]) + bytes(5) + block[:4] + bytes(3)
        flags = frames.PADDED | frames.HAS_PRIORITY
        peer.send(
            frames.frame(frames.HEADERS, flags, 1, padded),
            frames.frame(frames.CONTINUATION, 0, 1, block[4:6]),
            frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, block[6:]),
            data(1, bytes([2]) + message(b"hello") + bytes(2), frames.PADDED | frames.END_STREAM),
        )

        _, payload = await peer.wanted(frames.DATA, 1)
        assert payload == message(b"hello")
        assert await peer.trailers(1) == "0"


async def test_message_in_pieces_and_messages_in_one_piece(socket: Path) -> None:
    async with listening(socket, Handlers()), raw(socket) as peer:
        await peer.call(1, "/t.T/Echo")
        both = message(b"first") + message(b"second")
        for byte in both[:8]:
            peer.send(data(1, bytes([byte])))
        peer.send(data(1, both[8:], frames.END_STREAM))

        assert (await peer.wanted(frames.DATA, 1))[1] == message(b"first")
        assert (await peer.wanted(frames.DATA, 1))[1] == message(b"second")
        assert await peer.trailers(1) == "0"


async def test_equal_headers_mean_what_the_table_says_now(socket: Path) -> None:
    """The same bytes after the table has changed are other headers."""
    handlers = Handlers()
    async with listening(socket, handlers), raw(socket) as peer:
        for number, team in enumerate(["a", "a", "a", "b", "b", "a"]):
            await peer.call(1 + 2 * number, "/t.T/Echo", {"x-team": team})
        await until(lambda: len(handlers.seen) == 6)

        assert [dict(each)["x-team"] for each in handlers.seen] == list("aaabba")


async def test_pings_are_answered(socket: Path) -> None:
    async with listening(socket, Handlers()), raw(socket) as peer:
        peer.send(frames.frame(frames.PING, 0, 0, b"01234567"))

        assert await peer.wanted(frames.PING, 0) == (frames.ACK, b"01234567")


async def test_answers_wait_for_the_callers_window(socket: Path) -> None:
    async with listening(socket, Handlers()), raw(socket) as peer:
        peer.send(frames.settings([(frames.INITIAL_WINDOW_SIZE, 10)]))
        await peer.call(1, "/t.T/Echo")
        peer.send(data(1, message(b"x" * 20), frames.END_STREAM))
        whole = message(b"x" * 20)

        assert (await peer.wanted(frames.DATA, 1))[1] == whole[:10]
        peer.send(frames.window_update(1, 5))
        assert (await peer.wanted(frames.DATA, 1))[1] == whole[10:15]
        peer.send(frames.settings([(frames.INITIAL_WINDOW_SIZE, 1000)]))
        assert (await peer.wanted(frames.DATA, 1))[1] == whole[15:]
        assert await peer.trailers(1) == "0"


async def test_caller_that_does_not_end_is_told_not_to_send_the_rest(socket: Path) -> None:
    async with listening(socket, Handlers()), raw(socket) as peer:
        await peer.call(1, "/t.T/One")
        peer.send(data(1, message(b"x")))

        assert await peer.trailers(1) == "0"
        assert (await peer.wanted(frames.RST_STREAM, 1))[1] == bytes(4)
