"""Calls over the socket for Envoy alone, by gRPC's library."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from sidecar.ext_proc.http2 import frames
from sidecar.ext_proc.http2 import listener as listener_module
from tests.ext_proc.http2.parts import (
    LARGEST,
    MB,
    WAIT_S,
    Handlers,
    channel_to,
    listening,
    one,
    raw,
    stream,
)
from tests.waiting import until


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


async def test_stop_lets_no_new_call_in_and_ends_what_does_not_end(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "_FLUSH_S", 0.05)
    handlers = Handlers()
    async with listening(socket, handlers) as listener, raw(socket) as peer:
        await peer.call(1, "/t.T/Wait")
        await until(lambda: handlers.waiting == 1)
        await listener.stop()

        assert await peer.ends_with(frames.GOAWAY) == frames.NO_ERROR
        assert handlers.cancelled == 1
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            await asyncio.open_unix_connection(socket)


async def test_call_that_ends_within_the_stop_is_answered(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "_FLUSH_S", WAIT_S)
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
