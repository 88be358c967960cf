"""Every cell of the matrix, with a real Envoy and upstreams that record what they get.

The sidecar's service and dialects are the real ones; the router is a stand-in that decides by a
word of the conversation. Where the sidecar is killed or frozen it is a process of its own.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import brotli
import pytest
import pytest_asyncio
from backports import zstd

from sidecar.ext_proc.dialects import LlmDialects
from sidecar.local import ChildProcess, EnvoyServer, free_ports
from tests.ext_proc.client import Answer, exchange, post
from tests.ext_proc.gateway import gateway
from tests.ext_proc.matrix import (
    EVENTS,
    IDLE_S,
    MODES,
    TIMEOUT_S,
    Cell,
    cell,
    count,
    legend,
    table,
)
from tests.ext_proc.matrix import Upstream as Got
from tests.ext_proc.standins import RunningService, StubRouter, chat, service_on, spliced
from tests.ext_proc.upstream import Recorded, Upstream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
CODE = chat("code", size=1000)
HOLD = chat("hold", size=1000)
JSON = {"host": "gateway", "content-type": "application/json"}


@dataclass
class Stage:
    """What a test plays on."""

    live: dict[str, int]
    """Mode -> port of an Envoy whose sidecar lives."""
    faulty: dict[str, int]
    """Mode -> port of an Envoy whose sidecar is what the test makes of it."""
    service: RunningService
    small: Upstream
    big: Upstream
    fault_socket: Path
    process: ChildProcess | None = None
    faults: dict[str, dict[str, tuple[Answer, bytes]]] = field(default_factory=dict)
    """Fault -> mode -> what the client saw and sent; a fault is played in all modes at once."""

    def clear(self) -> None:
        for upstream in (self.small, self.big):
            upstream.requests.clear()
            upstream.cut_off = 0
            upstream.reset = False
        self.service.router.gate = None
        self.service.router.error = None
        self.service.router.delay_s = 0.0
        self.service.router.requests.clear()

    def got(self, mark: str = "") -> list[tuple[str, Recorded]]:
        """What the upstreams got, with the header `x-test-id`."""
        return [
            (up.name, each)
            for up in (self.small, self.big)
            for each in up.requests
            if each.headers.get("x-test-id", "") == mark
        ]

    async def start_process(self) -> None:
        """A sidecar to be broken."""
        self.fault_socket.unlink(missing_ok=True)
        self._held_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.ext_proc.service_process", str(self.fault_socket)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = ChildProcess(command, environment, self.fault_socket.with_suffix(".log"))
        await until(self.fault_socket.exists)

    @property
    def _held_file(self) -> Path:
        return self.fault_socket.with_suffix(".held")

    def held(self) -> int:
        """Decisions that are waiting in the process."""
        return len(self._held_file.read_bytes()) if self._held_file.exists() else 0

    def end_process(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process = None
        self.fault_socket.unlink(missing_ok=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("matrix")
    async with AsyncExitStack() as stack:
        small = await stack.enter_async_context(Upstream("small"))
        big = await stack.enter_async_context(Upstream("big"))
        clusters = {"small": small.port, "big": big.port}
        service = await stack.enter_async_context(
            service_on(folder / "live", None, StubRouter(), LlmDialects())
        )
        live = dict(zip(MODES, free_ports(len(MODES)), strict=True))
        faulty = dict(zip(MODES, free_ports(len(MODES)), strict=True))
        for ports, socket in ((live, folder / "live"), (faulty, folder / "faulty")):
            listeners = {
                port: replace(MODES[mode], message_timeout_s=TIMEOUT_S, idle_timeout_s=IDLE_S)
                for mode, port in ports.items()
            }
            config = gateway(listeners, clusters, socket, folder / "access.log")
            await stack.enter_async_context(EnvoyServer(config))
        made = Stage(live, faulty, service, small, big, folder / "faulty")
        yield made
        made.end_process()


# --- Events ---------------------------------------------------------------------------------------

Play = Callable[[Stage, str], Awaitable[tuple[Answer, bytes]]]
"""Plays an event in a mode; what the client saw and what it sent."""


def sends(body: bytes, **how: object) -> Play:
    async def play(stage: Stage, mode: str) -> tuple[Answer, bytes]:
        return await post(stage.live[mode], body, **how), body  # type: ignore[arg-type]

    return play


def compressed(encoding: str, compress: Callable[[bytes], bytes], body: bytes = CODE) -> Play:
    return sends(compress(body), headers={"content-encoding": encoding})


async def two_packets(stage: Stage, mode: str) -> tuple[Answer, bytes]:
    headers = JSON | {"content-length": str(len(CODE)), "connection": "close"}
    pieces = [CODE[:500], CODE[500:]]
    path = "/v1/chat/completions"
    return await exchange(stage.live[mode], "POST", path, headers, pieces, 0.05), CODE


async def no_body(stage: Stage, mode: str) -> tuple[Answer, bytes]:
    headers = {"host": "gateway", "connection": "close"}
    return await exchange(stage.live[mode], "GET", "/v1/chat/completions", headers), b""


async def slow_decision(stage: Stage, mode: str) -> tuple[Answer, bytes]:
    stage.service.router.delay_s = 0.5
    return await post(stage.live[mode], CODE), CODE


async def defect(stage: Stage, mode: str) -> tuple[Answer, bytes]:
    stage.service.router.error = RuntimeError("a defect")
    return await post(stage.live[mode], CODE), CODE


async def gone_sending(stage: Stage, mode: str) -> tuple[Answer, bytes]:
    _, writer = await asyncio.open_connection("127.0.0.1", stage.live[mode])
    lines = "".join(f"{k}: {v}\r\n" for k, v in (JSON | {"content-length": "2000"}).items())
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + CODE)
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    await asyncio.sleep(0.2)
    return Answer(0, {}, b""), CODE


async def gone_deciding(stage: Stage, mode: str) -> tuple[Answer, bytes]:
    router = stage.service.router
    router.gate = asyncio.Event()
    cancelled = router.cancelled
    _, writer = await asyncio.open_connection("127.0.0.1", stage.live[mode])
    headers = JSON | {"content-length": str(len(CODE))}
    lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + CODE)
    await until(lambda: bool(router.requests))
    writer.close()
    if mode != "observability":
        # The decision is ended, and with it the work of the routing model.
        await until(lambda: router.cancelled > cancelled)
    router.gate.set()
    await asyncio.sleep(0.05)
    return Answer(0, {}, b""), CODE


async def upstream_reset(stage: Stage, mode: str) -> tuple[Answer, bytes]:
    stage.small.reset = stage.big.reset = True
    return await post(stage.live[mode], CODE), CODE


# --- Faults, in all modes at once -----------------------------------------------------------------


def mark_of(mode: str, event: str) -> str:
    return f"{mode} {event}".replace(",", "").replace(" ", "-")


async def ask_all(stage: Stage, event: str, body: bytes) -> dict[str, tuple[Answer, bytes]]:
    async def ask(mode: str, port: int) -> tuple[Answer, bytes]:
        # Longer than every time limit of Envoy: it is not the client that ends a request.
        headers = {"x-test-id": mark_of(mode, event)}
        return await post(port, body, headers=headers, timeout_s=60), body

    answers = await asyncio.gather(*(ask(mode, port) for mode, port in stage.faulty.items()))
    return dict(zip(stage.faulty, answers, strict=True))


async def dead(stage: Stage) -> dict[str, tuple[Answer, bytes]]:
    stage.end_process()
    return await ask_all(stage, "sidecar dead", CODE)


async def killed(stage: Stage) -> dict[str, tuple[Answer, bytes]]:
    await stage.start_process()
    asking = asyncio.ensure_future(ask_all(stage, "sidecar killed", HOLD))
    await until(lambda: stage.held() == len(MODES))
    stage.end_process()
    return await asking


async def frozen(stage: Stage) -> dict[str, tuple[Answer, bytes]]:
    await stage.start_process()
    assert stage.process is not None
    asking = asyncio.ensure_future(ask_all(stage, "sidecar frozen", HOLD))
    await until(lambda: stage.held() == len(MODES))
    stage.process.signal(signal.SIGSTOP)
    answers = await asking
    stage.end_process()
    return answers


async def restarted(stage: Stage) -> dict[str, tuple[Answer, bytes]]:
    """Once Envoy has connected again, which it does with every request it tries."""
    stage.end_process()
    await ask_all(stage, "before", CODE)
    await stage.start_process()
    async with asyncio.timeout(30):
        while "BUFFERED-again" not in {each.headers["x-test-id"] for each in stage.big.requests}:
            await ask_all(stage, "again", CODE)
    return await ask_all(stage, "sidecar restarted", CODE)


PLAYED_AT_ONCE = {
    "sidecar dead": dead,
    "sidecar killed": killed,
    "sidecar frozen": frozen,
    "sidecar restarted": restarted,
}

LARGE = chat("code", size=8_000_000)
PLAYS: dict[str, Play] = {
    "whole": sends(CODE),
    "two packets": two_packets,
    "chunked": sends(CODE, chunks=[CODE[:300], CODE[300:600], CODE[600:]], pause_s=0.02),
    "trailers": sends(CODE, chunks=[CODE[:300], CODE[300:]], trailers={"x-sum": "1"}),
    "gzip": compressed("gzip", gzip.compress),
    "gzip, right model": compressed("gzip", gzip.compress, chat("code", model="coder-1")),
    "br": compressed("br", brotli.compress),
    "zstd": compressed("zstd", zstd.compress),
    "200 kB": sends(chat("code", size=200_000)),
    "8 MB": sends(LARGE),
    "8 MB chunked": sends(LARGE, chunks=[LARGE[n : n + 65536] for n in range(0, 8_000_038, 65536)]),
    "over the cap": sends(chat("code", size=13_000_000)),
    "concrete model": sends(chat("hello", model="big/coder", size=1000)),
    "malformed": sends(b'{"model": "auto", "messages": ['),
    "other path": sends(b"x" * 90_000, path="/v1/files"),
    "no body": no_body,
    "empty body": sends(b""),
    "slow decision": slow_decision,
    "defect": defect,
    "client gone, sending": gone_sending,
    "client gone, deciding": gone_deciding,
    "upstream reset": upstream_reset,
}


# --- Cells ----------------------------------------------------------------------------------------


def outcome(stage: Stage, answer: Answer, sent: bytes, mark: str = "") -> Cell | str:
    """The cell that was seen; a text that tells what is in none."""
    got = stage.got(mark)
    if not got:
        cut = stage.small.cut_off + stage.big.cut_off
        return Cell(answer.status, Got.CUT if cut else Got.NOTHING)
    if len(got) != 1:
        return f"{answer.status}, {len(got)} requests upstream"
    name, request = got[0]
    what = _arrived(name, request, sent)
    return Cell(answer.status, what) if isinstance(what, Got) else f"{answer.status} {what}"


def _arrived(name: str, request: Recorded, sent: bytes) -> Got | str:
    encoding = request.headers.get("content-encoding", "")
    if name == "small":
        return Got.DEFAULT if request.body == sent else f"changed: {len(request.body)} bytes"
    if encoding and request.body == sent:
        return Got.AS_IS
    if not encoding and request.body == spliced(CODE, "coder-1") != spliced(sent, "coder-1"):
        return Got.PLAIN
    if request.body == spliced(sent, "coder-1"):
        return Got.ROUTED
    return f"{name} got {len(request.body)} bytes of {len(sent)}"


@pytest.mark.parametrize("event", PLAYS)
@pytest.mark.parametrize("mode", MODES)
async def test_cell(stage: Stage, mode: str, event: str) -> None:
    stage.clear()

    answer, sent = await PLAYS[event](stage, mode)

    assert outcome(stage, answer, sent) == cell(mode, event)
    if event == "trailers":
        assert stage.got()[0][1].trailers == {"x-sum": "1"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("event", PLAYED_AT_ONCE)
async def test_cell_of_a_fault(stage: Stage, mode: str, event: str) -> None:
    if event not in stage.faults:
        stage.clear()
        stage.faults[event] = await PLAYED_AT_ONCE[event](stage)

    answer, sent = stage.faults[event][mode]

    assert outcome(stage, answer, sent, mark_of(mode, event)) == cell(mode, event)


async def test_documentation_has_the_matrix() -> None:
    assert PLAYS.keys() | PLAYED_AT_ONCE.keys() == EVENTS.keys()
    text = (ROOT / "docs" / "ext-proc.md").read_text()
    assert all(part in text for part in (table(), legend(), count()))
