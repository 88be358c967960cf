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

pytestmark = pytest.mark.timeout(3600 if PROVING else 300)

REQUESTS = 24_000 if PROVING else 300
CALLERS = 64 if PROVING else 8
OUTAGES = 12 if PROVING else 1
TEXTS = [f"Question {number}: why does my loop never end?" for number in range(20)]
CLUSTERS = ("openai", "anthropic", "google", "mistral", "deepseek")
DECIDED = {"model", "cache", "pin"}
ANSWERED = {"matched", "domain", "no_match", "low_confidence"}
"""Reasons that mean that the routing model was heard."""


@dataclass(frozen=True)
class Seen:
    """One request: when it was sent, and what became of it."""

    at: float
    status: int
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
        command = [sys.executable, "-m", "sidecar.cli", "serve", "--uds", str(self.socket)]
        command += ["--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
        command += ["--policies", str(POLICIES), "--model", str(self.engine.path)]
        command += ["--triton", self.triton_address]
        environment = os.environ | {"SIDECAR_ROUTING__DECISION_BUDGET_MS": "1000"}
        self.process = ChildProcess(command, environment, self.folder / "sidecar.log")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def resident_kib(self) -> int:
        assert self.process is not None
        status = Path("/proc", str(self.process.pid), "status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])


@dataclass
class Traffic:
    """Callers that send one request after the other."""

    port: int
    upstreams: dict[str, Upstream]
    seen: list[Seen] = field(default_factory=list)
    left: int = REQUESTS
    sent: int = 0

    async def caller(self) -> None:
        while self.left > 0:
            self.left -= 1
            self.sent += 1
            await self.ask(TEXTS[self.sent % len(TEXTS)], str(self.sent))

    async def ask(self, text: str, mark: str) -> Seen:
        at = time.monotonic()
        answer = await post(self.port, chat(text), headers={"x-test-id": mark})
        got = self.arrived(mark)
        assert len(got) == 1, f"request {mark} arrived {len(got)} times, status {answer.status}"
        headers = got[0]
        seen = Seen(
            at, answer.status, headers.get("x-llm-source", ""), headers.get("x-llm-reason", "")
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
        """When a request was next decided on by the routing model."""
        async with asyncio.timeout(120):
            for number in range(10**6):
                seen = await self.ask(TEXTS[number % len(TEXTS)], f"probe-{time.monotonic_ns()}")
                if seen.source in DECIDED or seen.reason in ANSWERED:
                    return time.monotonic()
                await asyncio.sleep(0.05)
        raise AssertionError("unreachable")


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
            providers={n: f"http://127.0.0.1:{up.port}" for n, up in upstreams.items()},
        )
        await stack.enter_async_context(EnvoyServer(adapted(shipped_config().read_text(), options)))
        traffic = Traffic(options.port, upstreams)
        await traffic.decided()
        traffic.seen.clear()
        outages = await _play(life, triton, traffic)
        _check(traffic, outages)
        if PROVING:
            print(f"\nmemory of the sidecar at the end: {life.resident_kib() / 1024:.0f} MiB")  # noqa: T201


async def _play(life: Life, triton: TritonServer, traffic: Traffic) -> list[tuple[float, float]]:
    """Begin and end of each outage."""
    callers = [asyncio.ensure_future(traffic.caller()) for _ in range(CALLERS)]
    outages = []
    for number in range(OUTAGES):
        # Spread over the requests, however long they take.
        due = REQUESTS * (2 * number + 1) // (2 * OUTAGES)
        while traffic.sent < due:
            await asyncio.sleep(0.01)
        began = time.monotonic()
        await outage(life, triton, number, traffic)
        outages.append((began, time.monotonic()))
    await asyncio.gather(*callers)
    return outages


def _check(traffic: Traffic, outages: list[tuple[float, float]]) -> None:
    outside = [
        seen
        for seen in traffic.seen
        # What was begun a budget before an outage can be hit by it.
        if not any(began - 2 <= seen.at <= ended for began, ended in outages)
    ]
    decided = [seen for seen in outside if seen.source in DECIDED or seen.reason in ANSWERED]
    statuses = Counter(seen.status for seen in traffic.seen)
    if PROVING:
        sources = Counter(seen.source or "without the sidecar" for seen in traffic.seen)
        print(f"\n{len(traffic.seen)} requests, {len(outages)} outages: {dict(sources)}")  # noqa: T201
        print(f"outside the outages {len(decided)} of {len(outside)} decided")  # noqa: T201
    assert statuses == {200: len(traffic.seen)}
    assert len(traffic.seen) >= REQUESTS
    assert len(decided) >= 0.99 * len(outside) or not PROVING
