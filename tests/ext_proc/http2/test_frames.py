"""Calls over the socket for Envoy alone, by bytes that gRPC's library does not send."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import hpack
import pytest

from sidecar.ext_proc.http2 import connection, frames, listener
from tests.ext_proc.http2.parts import MB, WAIT_S, Handlers, Peer, data, listening, message, raw
from tests.waiting import until

HEADERS = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\x83")

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
    "headers in parts without end": (
        frames.frame(frames.HEADERS, 0, 1) + frames.frame(frames.CONTINUATION, 0, 1) * 20,
        frames.ENHANCE_YOUR_CALM,
    ),
    "headers of no stream": (
        frames.frame(frames.HEADERS, frames.END_HEADERS, 0, b"\x83"),
        frames.PROTOCOL_ERROR,
    ),
    "data of no stream": (data(0, b"x"), frames.PROTOCOL_ERROR),
    "data after the end": (
        HEADERS + data(1, b"", frames.END_STREAM) + data(1, b"x"),
        frames.STREAM_CLOSED,
    ),
    "trailers after the end": (
        HEADERS
        + data(1, b"", frames.END_STREAM)
        + frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, b"\x83"),
        frames.STREAM_CLOSED,
    ),
    "headers in the middle": (HEADERS + HEADERS, frames.PROTOCOL_ERROR),
    "reset before headers": (frames.reset(1, frames.NO_ERROR), frames.PROTOCOL_ERROR),
    "reset cut off": (frames.frame(frames.RST_STREAM, 0, 1, b"x"), frames.FRAME_SIZE_ERROR),
    "ping cut off": (frames.frame(frames.PING, 0, 0, b"x"), frames.FRAME_SIZE_ERROR),
    "settings of a stream": (frames.frame(frames.SETTINGS, 0, 1), frames.PROTOCOL_ERROR),
    "settings taken, with values": (
        frames.frame(frames.SETTINGS, frames.ACK, 0, bytes(6)),
        frames.FRAME_SIZE_ERROR,
    ),
    "push allowed twice": (frames.settings([(frames.ENABLE_PUSH, 2)]), frames.PROTOCOL_ERROR),
    "frames of a byte": (frames.settings([(frames.MAX_FRAME_SIZE, 1)]), frames.PROTOCOL_ERROR),
    "update by nothing": (frames.window_update(0, 0), frames.PROTOCOL_ERROR),
    "update before headers": (frames.window_update(1, 5), frames.PROTOCOL_ERROR),
    "connection's window beyond 2^31": (
        frames.window_update(0, 2**31 - 1),
        frames.FLOW_CONTROL_ERROR,
    ),
    "stream's window beyond 2^31": (
        HEADERS + frames.window_update(1, 2**31 - 1),
        frames.FLOW_CONTROL_ERROR,
    ),
    "stream's window beyond 2^31 by settings": (
        HEADERS
        + frames.window_update(1, 2**31 - 1 - 65_535)
        + frames.settings([(frames.INITIAL_WINDOW_SIZE, 65_536)]),
        frames.FLOW_CONTROL_ERROR,
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


KEPT: Mapping[str, tuple[bytes, bool]] = {
    "numbers": (b"\x83\xbf\xff\x00", True),
    "a number of several bytes": (b"\xff\x80\x01\x83", True),
    "a value of its own": (b"\x83\x04\x04/t.T\xbe", True),
    "a value of its own, of a name with a large number": (b"\x0f\x2f\x02\x40\x40\x83", True),
    "a name and a value of their own": (b"\x00\x01\x40\x01\x20\x83", True),
    "a value that goes into no table": (b"\x14\x01\x40", True),
    "a value for the table": (b"\x83\x44\x01/", False),
    "a value for the table behind a long one": (b"\x04\x7f\x02" + b"/" * 129 + b"\x40", False),
    "a size for the table": (b"\x20\x83", False),
}


@pytest.mark.parametrize("name", KEPT)
def test_headers_that_leave_the_table_as_it_was(name: str) -> None:
    block, kept = KEPT[name]

    assert frames.keeps_table(block) is kept


async def test_equal_headers_are_decoded_once(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []

    class Decoder(hpack.Decoder):
        def decode(self, data: bytes, raw: bool = False) -> Any:
            decoded.append(data)
            return super().decode(data, raw)

    monkeypatch.setattr(hpack, "Decoder", Decoder)
    # As Envoy encodes them: the path has its number alone from the table, the rest is in it.
    path = b"\x04\x08/t.T/One"
    first, later = b"\x83\x40\x01a\x01b" + path, b"\x83\xbe" + path
    async with listening(socket, Handlers()), raw(socket) as peer:
        for number, block in enumerate([first, later, later, later]):
            stream = 1 + 2 * number
            peer.send(
                frames.frame(frames.HEADERS, frames.END_HEADERS, stream, block),
                data(stream, message(b"hello"), frames.END_STREAM),
            )
            assert await peer.trailers(stream) == "0"

    assert [block for block in decoded if block.endswith(path)] == [first, later]


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


async def test_settings_come_first(socket: Path) -> None:
    preface = frames.PREFACE + frames.frame(frames.PING, 0, 0, bytes(8))
    async with listening(socket, Handlers()), raw(socket, preface) as peer:
        assert await peer.ends_with(frames.GOAWAY) == frames.PROTOCOL_ERROR


async def test_defect_ends_the_connection(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one, nobody knows where in the frames it stands."""
    handlers = Handlers()
    async with listening(socket, handlers), raw(socket) as peer:
        await peer.call(1, "/t.T/Wait")
        await until(lambda: handlers.waiting == 1)
        monkeypatch.setattr("hpack.Decoder.decode", lambda *_, **__: 1 / 0)
        await peer.call(3, "/t.T/Wait", {"x": "y"})

        assert await peer.ends_with(frames.GOAWAY) == frames.INTERNAL_ERROR
        assert handlers.cancelled == 1


async def test_message_that_is_cut_off_is_an_error(socket: Path) -> None:
    async with listening(socket, Handlers()), raw(socket) as peer:
        await peer.call(1, "/t.T/Echo")
        peer.send(data(1, message(b"x" * 20)[:10], frames.END_STREAM))

        assert await peer.trailers(1) == str(grpc.StatusCode.INTERNAL.value[0])


async def test_slow_handler_holds_up_its_caller(socket: Path) -> None:
    """What waits to be read is not made up for: without end, it would fill the memory."""
    handlers = Handlers()
    async with listening(socket, handlers), raw(socket) as peer:
        await peer.call(1, "/t.T/Slow")
        size = 0
        while size < MB * 3 // 4:
            part = message(b"x" * 1000)
            peer.send(data(1, part))
            size += len(part)
        await until(lambda: handlers.waiting == 1)
        await peer.ping()
        handlers.go.set()
        await until(lambda: handlers.waiting == 2)

        assert frames.WINDOW_UPDATE not in [kind for kind, _, of, _ in await peer.ping() if of == 1]
        handlers.further.set()
        _, more = await peer.wanted(frames.WINDOW_UPDATE, 1)
        assert int.from_bytes(more, "big") >= MB // 2


async def sending_on(peer: Peer, sent: bytes) -> None:
    while True:
        peer.send(sent)
        await peer.sent()


async def test_caller_that_does_not_read_answers_is_cut_off(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_WRITE_AHEAD", 65_536)
    monkeypatch.setattr(connection, "_MAX_UNREAD", 65_536)
    monkeypatch.setattr(connection, "_LINGER_S", 0.01)
    handlers = Handlers()
    async with listening(socket, handlers), raw(socket) as peer:
        await peer.call(1, "/t.T/Wait")
        await until(lambda: handlers.waiting == 1)
        pings = frames.frame(frames.PING, 0, 0, bytes(8)) * 1000
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(sending_on(peer, pings), WAIT_S)

        await until(lambda: handlers.cancelled == 1)


async def test_calls_beyond_the_setting_are_refused_unseen(socket: Path) -> None:
    handlers = Handlers()
    async with listening(socket, handlers, max_calls=1), raw(socket) as peer:
        await peer.call(1, "/t.T/Wait")
        await peer.call(3, "/t.T/Wait")

        refused = frames.REFUSED_STREAM.to_bytes(4, "big")
        assert (await peer.wanted(frames.RST_STREAM, 3))[1] == refused
        assert handlers.waiting == 1


async def test_calls_that_are_reset_at_once_leave_nothing(socket: Path) -> None:
    """The attack called rapid reset (CVE-2023-44487)."""
    handlers = Handlers()
    async with listening(socket, handlers, max_calls=10) as served, raw(socket) as peer:
        for number in range(1, 2000, 2):
            await peer.call(number, "/t.T/Wait")
            peer.send(frames.reset(number, frames.NO_ERROR))
        await peer.call(2001, "/t.T/One")
        peer.send(data(2001, message(b"x"), frames.END_STREAM))

        assert await peer.trailers(2001) == "0"
        await until(lambda: handlers.cancelled == handlers.waiting)
        assert served.running == 0


async def test_reset_of_a_call_that_waits_to_send_leaves_nothing(socket: Path) -> None:
    handlers = Handlers()
    async with listening(socket, handlers) as serving, raw(socket) as peer:
        peer.send(frames.settings([(frames.INITIAL_WINDOW_SIZE, 0)]))
        await peer.call(1, "/t.T/Echo")
        peer.send(data(1, message(b"x")))
        await peer.ping()
        (served,) = serving.connections
        await until(lambda: served.waiting_to_send == 1)
        peer.send(frames.reset(1, frames.NO_ERROR))

        await until(lambda: served.waiting_to_send == 0)


async def test_calls_on_their_way_when_it_goes_are_taken(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_FLUSH_S", WAIT_S)
    handlers = Handlers()
    async with listening(socket, handlers) as served, raw(socket) as peer:
        await peer.ping()
        stopping = asyncio.ensure_future(served.stop())
        first = await peer.wanted(frames.GOAWAY, 0)
        _, asked = await peer.wanted(frames.PING, 0)
        await peer.call(1, "/t.T/One")
        peer.send(data(1, message(b"x"), frames.END_STREAM))
        peer.send(frames.frame(frames.PING, frames.ACK, 0, asked))
        await peer.call(3, "/t.T/One")

        assert first[1][:4] == (2**31 - 1).to_bytes(4, "big")
        assert (await peer.wanted(frames.GOAWAY, 0))[1][:4] == (1).to_bytes(4, "big")
        assert await peer.trailers(1) == "0"
        assert await peer.ends_with(frames.GOAWAY) == -1
        peer.close()
        await stopping
