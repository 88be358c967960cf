"""Every cell of the matrix, with a real Envoy and upstreams that record what they get.

The sidecar's service and dialects are the real ones; the router is a stand-in that decides by a
word of the conversation. Where the sidecar is killed or frozen it is a process of its own.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import socket
import ssl
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import brotli
import pytest
import pytest_asyncio
from backports import zstd

from sidecar.core.policy import Model
from sidecar.engines import EngineInfo
from sidecar.ext_proc.dialects import LlmDialects
from sidecar.local import ChildProcess, EnvoyServer, free_ports
from tests.ext_proc.client import Answer, exchange, post
from tests.ext_proc.gateway import Tls, gateway
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
from tests.ext_proc.standins import (
    ALONE,
    CATALOG,
    RunningService,
    StubRouter,
    chat,
    service_on,
    spliced,
)
from tests.ext_proc.upstream import Recorded, Upstream
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
FIXTURES = Path(__file__).with_name("fixtures")
SOCKET = os.environ.get("MATRIX_SOCKET", ALONE)
"""Ending of the sockets' names: `ALONE`, or `.grpc` to have them served by gRPC's library, which
leaves the matrix as it is."""
CODE = chat("code", size=1000)
HOLD = chat("hold", size=1000)
POLICY = """\
apiVersion: llmrouter.v1
kind: ModelCatalog
models:
  - {id: big/coder, upstream_model: coder-1, cluster: big, dialects: [openai-chat]}
---
apiVersion: llmrouter.v1
kind: Policy
name: default
default: {models: [big/coder]}
routes:
  - {name: coding, description: Writing and reviewing code., models: [big/coder]}
"""
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
    secure: Upstream
    """Like `big`, over https."""
    fault_socket: Path
    model: Path
    """A routing model's, for a whole sidecar."""
    bridge: int
    """Port of what speaks HTTP/2 to an Envoy whose sidecar lives."""
    process: ChildProcess | None = None
    faults: dict[str, dict[str, tuple[Answer, bytes]]] = field(default_factory=dict)
    """Fault -> mode -> what the client saw and sent; a fault is played in all modes at once."""

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        return self.small, self.big, self.secure

    def clear(self) -> None:
        for upstream in self.upstreams:
            upstream.requests.clear()
            upstream.begun = upstream.cut_off = 0
            upstream.reset = False
            upstream.delay_s = 0.0
        self.service.router.gate = None
        self.service.router.error = None
        self.service.router.delay_s = 0.0
        self.service.router.requests.clear()

    def got(self, mark: str = "") -> list[tuple[str, Recorded]]:
        """What the upstreams got, with the header `x-test-id`."""
        return [
            (up.name, each)
            for up in self.upstreams
            for each in up.requests
            if each.headers.get("x-test-id", "") == mark
        ]

    async def start_process(self) -> None:
        """A sidecar to be broken."""
        await self._start(["-m", "tests.ext_proc.service_process", str(self.fault_socket)])

    async def start_sidecar(self) -> None:
        """The whole one, whose Triton is not there."""
        policies = self.fault_socket.with_name("policies")
        policies.mkdir(exist_ok=True)
        (policies / "default.yaml").write_text(POLICY)
        (closed,) = free_ports(1)
        command = ["-m", "sidecar.cli", "serve"]
        if SOCKET == ALONE:
            command += ["--envoy-uds", str(self.fault_socket)]
        else:
            command += ["--uds", str(self.fault_socket)]
        command += ["--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
        command += ["--policies", str(policies), "--model", str(self.model)]
        await self._start([*command, "--triton", f"127.0.0.1:{closed}"])

    async def _start(self, command: list[str]) -> None:
        self.end_process()
        self._held_file.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        log = self.fault_socket.with_suffix(".log")
        self.process = ChildProcess([sys.executable, *command], environment, log)
        await until(self._is_listened_to)

    def _is_listened_to(self) -> bool:
        """The socket's file is there a moment before."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.fault_socket)) == 0

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


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stage(
    tmp_path_factory: pytest.TempPathFactory, cpu_engine: EngineInfo
) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("matrix")
    async with AsyncExitStack() as stack:
        small = await stack.enter_async_context(Upstream("small"))
        big = await stack.enter_async_context(Upstream("big"))
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(FIXTURES / "tls_server.pem")
        secure = await stack.enter_async_context(Upstream("secure", tls=server))
        clusters = {"small": small.port, "big": big.port}
        router = StubRouter()
        router.catalog = {**CATALOG, "big/secure": Model("big/secure", "coder-1", cluster="secure")}
        service = await stack.enter_async_context(
            service_on(folder / f"live{SOCKET}", None, router, LlmDialects())
        )
        live = dict(zip(MODES, free_ports(len(MODES)), strict=True))
        faulty = dict(zip(MODES, free_ports(len(MODES)), strict=True))
        bridge = 0
        for ports, socket in (
            (live, folder / f"live{SOCKET}"),
            (faulty, folder / f"faulty{SOCKET}"),
        ):
            listeners = {
                port: replace(MODES[mode], message_timeout_s=TIMEOUT_S, idle_timeout_s=IDLE_S)
                for mode, port in ports.items()
            }
            tls = Tls(
                FIXTURES / "tls_server.pem",
                FIXTURES / "tls_ca.pem",
                {"secure": secure.port},
                free_ports(1)[0],
            )
            bridge = bridge or tls.bridge
            config = gateway(listeners, clusters, socket, folder / "access.log", tls)
            await stack.enter_async_context(EnvoyServer(config))
        made = Stage(
            live,
            faulty,
            service,
            small,
            big,
            secure,
            folder / f"faulty{SOCKET}",
            cpu_engine.path,
            bridge,
        )
        yield made
        made.end_process()


# --- Events ---------------------------------------------------------------------------------------

Play = Callable[[Stage, str], Awaitable[tuple[Answer, bytes]]]
"""Plays an event in a mode; what the client saw and what it sent."""


def sends(body: bytes, **how: object) -> Play:
    async def play(stage: Stage, mode: str) -> tuple[Answer, bytes]:
        return await post(stage.live[mode], body, **how), body  # type: ignore[arg-type]

    return play


def over_http2(how: str = "http2", **sent: object) -> Play:
    """Sends it by way of the bridge."""

    async def play(stage: Stage, mode: str) -> tuple[Answer, bytes]:
        to = {"x-bridge": f"{how}-{stage.live[mode]}"}
        return await post(stage.bridge, CODE, headers=to, **sent), CODE  # type: ignore[arg-type]

    return play


async def https(stage: Stage, mode: str) -> tuple[Answer, bytes]:
    trusted = ssl.create_default_context(cafile=str(FIXTURES / "tls_ca.pem"))
    return await post(stage.live[mode], CODE, tls=trusted), CODE


async def https_provider(stage: Stage, mode: str) -> tuple[Answer, bytes]:
    body = chat("hello", model="big/secure", size=1000)
    answer = await post(stage.live[mode], body)
    return answer, body


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
    if mode == "observability":
        # It goes on as it comes.
        await until(lambda: any(upstream.begun for upstream in stage.upstreams))
        writer.close()
        await until(lambda: any(upstream.cut_off for upstream in stage.upstreams))
    else:
        await asyncio.sleep(0.1)
        writer.close()
        await asyncio.sleep(0.2)
    return Answer(0, {}, b""), CODE


async def gone_deciding(stage: Stage, mode: str) -> tuple[Answer, bytes]:
    return await leaves_deciding(stage, mode, stage.live[mode], {})


async def http2_gone(stage: Stage, mode: str) -> tuple[Answer, bytes]:
    to = {"x-bridge": f"http2-{stage.live[mode]}"}
    return await leaves_deciding(stage, mode, stage.bridge, to)


async def leaves_deciding(
    stage: Stage, mode: str, port: int, more: dict[str, str]
) -> tuple[Answer, bytes]:
    router = stage.service.router
    router.gate = asyncio.Event()
    cancelled = router.cancelled
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    headers = JSON | {"content-length": str(len(CODE))} | more
    lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + CODE)
    await until(lambda: bool(router.requests))
    if mode == "observability":
        # Nothing waits for the decision.
        await until(lambda: bool(stage.got()))
    writer.close()
    if mode != "observability":
        # The decision is ended, and with it the work of the routing model.
        await until(lambda: router.cancelled > cancelled)
    router.gate.set()
    await asyncio.sleep(0.05)
    return Answer(0, {}, b""), CODE


async def gone_receiving(stage: Stage, mode: str) -> tuple[Answer, bytes]:
    for upstream in stage.upstreams:
        upstream.delay_s = 1.0
    _, writer = await asyncio.open_connection("127.0.0.1", stage.live[mode])
    headers = JSON | {"content-length": str(len(CODE))}
    lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + CODE)
    await until(lambda: bool(stage.got()))
    writer.close()
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


async def paused(stage: Stage) -> dict[str, tuple[Answer, bytes]]:
    await connected(stage)
    assert stage.process is not None
    stage.process.signal(signal.SIGSTOP)
    asking = asyncio.ensure_future(ask_all(stage, "sidecar paused", CODE))
    await asyncio.sleep(1)
    stage.process.signal(signal.SIGCONT)
    return await asking


async def triton_dead(stage: Stage) -> dict[str, tuple[Answer, bytes]]:
    await stage.start_sidecar()
    await until_routed(stage)
    answers = await ask_all(stage, "Triton dead", CODE)
    sources = [
        each.headers.get("x-llm-source")
        for mode in stage.faulty
        for _, each in stage.got(mark_of(mode, "Triton dead"))
    ]
    assert sources.count("fallback") == len(MODES) - 1
    stage.end_process()
    return answers


async def restarted(stage: Stage) -> dict[str, tuple[Answer, bytes]]:
    await connected(stage)
    return await ask_all(stage, "sidecar restarted", CODE)


async def connected(stage: Stage) -> None:
    """Starts the sidecar anew after Envoy has found it dead."""
    stage.end_process()
    await ask_all(stage, "before", CODE)
    await stage.start_process()
    await until_routed(stage)


async def until_routed(stage: Stage) -> None:
    """Until Envoy has connected, which it does with every request it tries."""
    async with asyncio.timeout(60):
        while "BUFFERED-again" not in {each.headers["x-test-id"] for each in stage.big.requests}:
            await ask_all(stage, "again", CODE)


PLAYED_AT_ONCE = {
    "Triton dead": triton_dead,
    "sidecar dead": dead,
    "sidecar killed": killed,
    "sidecar frozen": frozen,
    "sidecar paused": paused,
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
    "deflate": compressed("deflate", zlib.compress),
    "br": compressed("br", brotli.compress),
    "zstd": compressed("zstd", zstd.compress),
    "200 kB": sends(chat("code", size=200_000)),
    "8 MB": sends(LARGE),
    "8 MB chunked": sends(LARGE, chunks=[LARGE[n : n + 65536] for n in range(0, 8_000_038, 65536)]),
    "over the cap": sends(chat("code", size=13_000_000)),
    "concrete model": sends(chat("hello", model="big/coder", size=1000)),
    "no model": sends(CODE.replace(b'"model": "auto", ', b"")),
    "malformed": sends(b'{"model": "auto", "messages": ['),
    "other path": sends(b"x" * 90_000, path="/v1/files"),
    "no body": no_body,
    "empty body": sends(b""),
    "slow decision": slow_decision,
    "defect": defect,
    "client gone, sending": gone_sending,
    "client gone, deciding": gone_deciding,
    "client gone, receiving": gone_receiving,
    "upstream reset": upstream_reset,
    "HTTP/2": over_http2(),
    "HTTP/2, no length": over_http2(chunks=[CODE[:300], CODE[300:600], CODE[600:]], pause_s=0.02),
    "HTTP/2, trailers": over_http2(chunks=[CODE[:300], CODE[300:]], trailers={"x-sum": "1"}),
    "HTTP/2, client gone": http2_gone,
    "HTTP/2 over TLS": over_http2("tls"),
    "https": https,
    "https provider": https_provider,
}


# --- Cells ----------------------------------------------------------------------------------------


def outcome(stage: Stage, answer: Answer, sent: bytes, mark: str = "") -> Cell | str:
    """The cell that was seen; a text that tells what is in none."""
    got = stage.got(mark)
    if not got:
        cut = sum(upstream.cut_off for upstream in stage.upstreams)
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
    if event in ("trailers", "HTTP/2, trailers"):
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
