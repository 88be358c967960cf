"""Requests through a real Envoy while the sidecar is killed and restarted, and, with `make prove`,
Triton too: none fails, none is lost, and outside the outages the routing model decides."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sidecar.engines import EngineInfo
from sidecar.local import (
    ChildProcess,
    EnvoyServer,
    GatewayOptions,
    TritonServer,
    adapted,
    free_ports,
    shipped_config,
)
from tests.ext_proc.client import post
from tests.ext_proc.standins import chat
from tests.ext_proc.upstream import Upstream
from tests.integration.running_sidecar import POLICIES
from tests.integration.test_outages import PROVING

pytestmark = pytest.mark.timeout(3600 if PROVING else 900)

REQUESTS = int(os.environ.get("SIDECAR_PROVE_REQUESTS", "24000")) if PROVING else 300
"""Fewer than the default are a rehearsal, on a machine that does other things too."""
WHOLE = PROVING and REQUESTS >= 24_000
BUDGET_MS = 1000 if WHOLE else 10_000
MARGIN_S = 2 * BUDGET_MS / 1000
CALLERS = 64 if PROVING else 8
OUTAGES = max(2, REQUESTS // 2000) if PROVING else 1
TEXTS = [f"Question {number}: why does my loop never end?" for number in range(20)]
GROWTH = 1.05
"""Of a sidecar's memory, from a third of its life to the end: what allocators need to settle."""
CLUSTERS = ("openai", "anthropic", "google", "mistral", "deepseek")
DECIDED = {"model", "cache", "pin"}
ANSWERED = {"matched", "domain", "no_match", "low_confidence"}
"""Reasons that mean that the routing model was heard."""


@dataclass(frozen=True)
class Seen:
    """One request: when it was sent, and what became of it. `arrived`: times at a provider."""

    at: float
    status: int
    arrived: int
    source: str
    reason: str


@dataclass
class Life:
    """The sidecar as a process that is killed and started again."""

    folder: Path
    triton_address: str
    engine: EngineInfo
    process: ChildProcess | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "sidecar.sock"

    def start(self) -> None:
        command = [sys.executable, "-m", "sidecar.cli", "serve", "--envoy-uds", str(self.socket)]
        command += ["--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
        command += ["--policies", str(POLICIES), "--model", str(self.engine.path)]
        command += ["--triton", self.triton_address]
        environment = os.environ | {
            "SIDECAR_ROUTING__DECISION_BUDGET_MS": str(BUDGET_MS),
            "SIDECAR_EXT_PROC__MESSAGE_TIMEOUT_MS": str(BUDGET_MS + 200),
        }
        self.process = ChildProcess(command, environment, self.folder / "sidecar.log")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def resident_kib(self) -> tuple[int, int]:
        """Its process id, and the memory it takes; 0 if it is just gone."""
        assert self.process is not None
        pid = self.process.pid
        try:
            status = Path("/proc", str(pid), "status").read_text()
        except OSError:
            return pid, 0
        # A process that has ended and was not waited for has no such line.
        return pid, int((status.partition("VmRSS:")[2].split() or ["0"])[0])


@dataclass
class Memory:
    """What the sidecar takes as requests come: for each life, pairs of requests and KiB."""

    lives: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    async def sample(self, life: Life, traffic: Traffic) -> None:
        while True:
            pid, kib = life.resident_kib()
            if kib:
                self.lives.setdefault(pid, []).append((traffic.sent, kib))
            await asyncio.sleep(0.5)

    def settled(self) -> list[list[tuple[int, int]]]:
        """Of each life that was long enough what came after its first third, in which connections
        are made, the policies are warmed and each text is seen for the first time."""
        kept = [life[len(life) // 3 :] for life in self.lives.values() if len(life) >= 12]
        return [life for life in kept if life[-1][0] - life[0][0] >= REQUESTS / 30]


def kib_per_thousand(samples: list[tuple[int, int]]) -> float:
    """Slope of the straight line through the samples by least squares."""
    number = len(samples)
    mean_x = sum(x for x, _ in samples) / number
    mean_y = sum(y for _, y in samples) / number
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    if not spread:
        return 0.0
    return 1000 * sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread


@dataclass
class Traffic:
    """Callers that send one request after the other."""

    port: int
    upstreams: dict[str, Upstream]
    seen: list[Seen] = field(default_factory=list)
    sent: int = 0
    pause_s: float = 0.0
    ended: bool = False

    async def caller(self) -> None:
        while not self.ended:
            self.sent += 1
            await self.ask(TEXTS[self.sent % len(TEXTS)], str(self.sent))
            await asyncio.sleep(self.pause_s)

    async def more(self, requests: int) -> None:
        """Waits for so many."""
        due = self.sent + requests
        while self.sent < due:
            await asyncio.sleep(0.01)

    async def ask(self, text: str, mark: str) -> Seen:
        at = time.monotonic()
        answer = await post(self.port, chat(text), headers={"x-test-id": mark})
        got = self.arrived(mark)
        headers = got[0] if got else {}
        seen = Seen(
            at,
            answer.status,
            len(got),
            headers.get("x-llm-source", ""),
            headers.get("x-llm-reason", ""),
        )
        self.seen.append(seen)
        return seen

    def arrived(self, mark: str) -> list[dict[str, str]]:
        """Takes the requests with that mark from what the providers got."""
        found = []
        for upstream in self.upstreams.values():
            mine = [each for each in upstream.requests if each.headers.get("x-test-id") == mark]
            found += [dict(each.headers) for each in mine]
            for each in mine:
                upstream.requests.remove(each)
        return found

    async def decided(self) -> float:
        """When the routing model, and not its encoder alone, next decided on a request: one that no
        pin and no cache knows, and that says too little for the encoder to be sure."""
        async with asyncio.timeout(120):
            while True:
                mark = f"probe-{time.monotonic_ns()}"
                seen = await self.ask(f"And what of {mark}?", mark)
                if seen.reason in ANSWERED:
                    return time.monotonic()
                await asyncio.sleep(0.05)


async def outage(life: Life, triton: TritonServer, number: int, traffic: Traffic) -> None:
    if PROVING and number % 2:
        await asyncio.to_thread(triton.kill)
        await asyncio.sleep(1)
        triton.spawn()
        await asyncio.to_thread(triton.wait_ready)
    else:
        life.kill()
        await asyncio.sleep(0.5)
        life.start()
    await traffic.decided()


async def test_no_request_fails_or_is_lost(
    cpu_engine: EngineInfo, cpu_repository: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with AsyncExitStack() as stack:
        if PROVING:
            # One that can be killed; otherwise that of all tests.
            triton = TritonServer(cpu_repository, exit_timeout_s=1)
            await stack.enter_async_context(triton)
        else:
            triton = request.getfixturevalue("triton")
        upstreams = {n: await stack.enter_async_context(Upstream(n)) for n in CLUSTERS}
        life = Life(tmp_path, triton.grpc_address, cpu_engine)
        life.start()
        stack.callback(life.kill)
        options = GatewayOptions(
            port=free_ports(1)[0],
            sidecar=life.socket,
            message_timeout_s=(BUDGET_MS + 200) / 1000,
            providers={n: f"http://127.0.0.1:{up.port}" for n, up in upstreams.items()},
        )
        await stack.enter_async_context(EnvoyServer(adapted(shipped_config().read_text(), options)))
        traffic = Traffic(options.port, upstreams)
        await traffic.decided()
        traffic.seen.clear()
        memory = Memory()
        sampling = asyncio.ensure_future(memory.sample(life, traffic))
        outages = await _play(life, triton, traffic)
        sampling.cancel()
        _check(traffic, outages)
        if PROVING:
            _check_memory(memory)


async def _play(life: Life, triton: TritonServer, traffic: Traffic) -> list[tuple[float, float]]:
    """Begin and end of each outage. Before, between and after them all requests are sent, those in
    an outage are on top: without the sidecar they take no time."""
    callers = [asyncio.ensure_future(traffic.caller()) for _ in range(CALLERS)]
    outages = []
    for number in range(OUTAGES):
        await traffic.more(REQUESTS // (OUTAGES + 1))
        # Those that the outage may hit are not counted among the others.
        await asyncio.sleep(MARGIN_S if WHOLE else 0)
        # A sidecar that starts needs the processor, which is scarce in a run of all tests.
        traffic.pause_s = 0.0 if WHOLE else 0.2
        began = time.monotonic()
        await outage(life, triton, number, traffic)
        outages.append((began, time.monotonic()))
        traffic.pause_s = 0.0
    await traffic.more(REQUESTS // (OUTAGES + 1) + OUTAGES)
    traffic.ended = True
    await asyncio.gather(*callers)
    return outages


def _check(traffic: Traffic, outages: list[tuple[float, float]]) -> None:
    outside = [
        seen
        for seen in traffic.seen
        # What was begun shortly before an outage can be hit by it.
        if not any(began - MARGIN_S <= seen.at <= ended for began, ended in outages)
    ]
    decided = [seen for seen in outside if seen.source in DECIDED or seen.reason in ANSWERED]
    failed = Counter(seen.status for seen in traffic.seen if seen.status != 200)
    lost = sum(seen.arrived == 0 for seen in traffic.seen)
    doubled = sum(seen.arrived > 1 for seen in traffic.seen)
    if PROVING:
        sources = Counter(seen.source or "without the sidecar" for seen in traffic.seen)
        share = 100 * len(decided) / max(1, len(outside))
        report(f"{len(traffic.seen)} requests by {CALLERS} callers, {len(outages)} outages")
        report(f"failed: {failed.total()}, lost: {lost}, doubled: {doubled}")
        report(f"decided by: {dict(sources)}")
        report(f"outside the outages {len(decided)} of {len(outside)} decided: {share:.2f} %")
        others = Counter(seen.reason or "without the sidecar" for seen in outside) - Counter(
            seen.reason for seen in decided
        )
        report(f"the others: {dict(others)}")
    assert not failed
    assert (lost, doubled) == (0, 0)
    assert len(traffic.seen) >= REQUESTS
    if WHOLE:
        assert len(outside) >= REQUESTS // 2
        assert len(decided) >= 0.99 * len(outside)


def _check_memory(memory: Memory) -> None:
    for life in memory.settled():
        (_, first), (_, last) = life[0], life[-1]
        report(
            f"memory of a sidecar over {life[-1][0] - life[0][0]} requests: "
            f"{first / 1024:.1f} MiB, at the end {last / 1024:.1f} MiB, "
            f"{kib_per_thousand(life):+.0f} KiB per 1000 requests"
        )
        if WHOLE:
            assert last <= GROWTH * first, "the sidecar's memory grows with the requests"


def report(line: str) -> None:
    print(line, flush=True)  # noqa: T201
