"""A listener with methods to test with, and callers: gRPC's library, and one by bytes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import hpack
from google.protobuf.wrappers_pb2 import BytesValue

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.ext_proc.http2 import frames
from sidecar.ext_proc.http2.listener import Listener, Method
from sidecar.grpc_api.interceptors import Errors
from sidecar.grpc_api.listening import bound_unix

WAIT_S = 60
LARGEST = 10 * 1024 * 1024
MB = 1024 * 1024


class Handlers:
    """What the methods do, and what became of them."""

    def __init__(self) -> None:
        self.waiting = 0
        self.cancelled = 0
        self.seen: list[tuple[tuple[str, str | bytes], ...]] = []
        self.go = asyncio.Event()
        self.further = asyncio.Event()

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

    async def slow(self, _: object, call: Any) -> None:
        self.waiting += 1
        await self.go.wait()
        await call.read()
        self.waiting += 1
        await self.further.wait()
        while await call.read() is not None:
            pass

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
        "t.T/Slow": Method(handlers.slow, BytesValue, streaming=True),
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


class Peer:
    """A caller that sends what a test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.encoder = hpack.Encoder()
        self._reader = reader
        self._writer = writer

    def send(self, *parts: bytes) -> None:
        self._writer.write(b"".join(parts))

    async def sent(self) -> None:
        """Waits until most of it has been. Raises ConnectionError."""
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()

    async def ping(self) -> list[tuple[int, int, int, bytes]]:
        """Until all that was sent has been read; what came before the answer."""
        self.send(frames.frame(frames.PING, 0, 0, b"is there"))
        came = [await self.next()]
        while came[-1][3] != b"is there":
            came.append(await self.next())
        return came

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
        except (asyncio.IncompleteReadError, ConnectionError):
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
