"""`sidecar soak` at its smallest, with a real Triton: every call is answered whatever breaks.

Triton killed and frozen is left to tests/integration/test_outages.py, which judges more.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from sidecar.bench.aims import aims
from sidecar.bench.faults import CLOCK_JUMPS, FAULTS, Revival, World
from sidecar.bench.jumping_clock import JumpingClock, NoClockError
from sidecar.bench.measuring import Sample
from sidecar.bench.own import Routes
from sidecar.bench.soak import Called, Memory, Plan, Soaked, Window, soak
from sidecar.cli.soak import exit_status
from sidecar.engines import EngineInfo
from sidecar.local import TritonServer
from tests.bench.patient import patient
from tests.virtual_time import keep_virtual_time

SLOW = {"Triton killed", "Triton frozen"}
FAST = sorted(set(FAULTS) - SLOW - ({CLOCK_JUMPS} if shutil.which("cc") is None else set()))


def test_every_call_is_answered_whatever_breaks(cpu_engine: EngineInfo, tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    given = [part for name in FAST for part in ("--fault", name)]
    options = ("--minutes=0", "--every=1", "--hold=0.7", "--rate=3", "--json", str(path))
    # Below the 3 s of answers that are made late.
    result = patient(2500, "soak", *options, *given)

    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(path.read_text())
    assert found["failed"] == 0
    assert [window["fault"] for window in found["windows"]] == FAST
    assert all(window["recovery_s"] is not None for window in found["windows"])
    # Whatever breaks is known: nothing falls through to the answer of a defect.
    assert not any("internal_error" in source for source in found["sources"]), found["sources"]
    outside = found["outside_faults"]
    assert sum(outside["sources"].values()) == pytest.approx(1 if outside["calls"] else 0)
    assert all(size > 0 for size in found["memory_bytes"])
    assert found["cache_bytes"][-1] > 0
    reached = {each["name"]: each["reached"] for each in found["aims"]}
    assert reached["calls without an answer"]
    assert reached["calls that say what decided"]
    assert all(name in result.stdout for name in reached)


def called(begun: float, source: str = "model", seconds: float = 0.1) -> Called:
    return Called(begun, Sample(seconds, source, by_model=source == "model"))


def test_calls_of_a_fault_are_told_from_those_between() -> None:
    calls = [called(0), called(1, "fallback:breaker_open"), called(2, "failed:UNAVAILABLE", 0.5)]
    window = Window("x", calls[1:], 0.3)
    found = Soaked(calls, [window])

    assert found.between() == calls[:1]
    assert (window.failed, window.slowest_ms) == (1, 500)


class Mortal(TritonServer):
    """Stands in for a Triton that a fault may kill, and that is started in no time."""

    def __init__(self) -> None:
        self.dead = False
        self.started = 0

    def exit_code(self) -> int | None:
        return -11 if self.dead else None

    def models_alive(self) -> bool:
        return not self.dead

    def kill(self) -> None:
        self.dead = True

    def spawn(self) -> None:
        self.started += 1

    def wait_ready(self, timeout_s: float | None = None) -> None:
        self.dead = False


class SlowWhileBroken(Routes):
    """Stands in for a sidecar: what it is asked while it is broken is answered long after it
    decides again."""

    def __init__(self) -> None:
        self.broken = False

    async def route(self, request: object) -> Sample:
        if not self.broken:
            return Sample(0.0, "model", by_model=True)
        await asyncio.sleep(0.5)
        return Sample(0.5, "fallback:deadline_exceeded")


async def test_calls_that_are_answered_after_the_recovery_belong_to_the_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_virtual_time(monkeypatch)
    routes = SlowWhileBroken()

    @asynccontextmanager
    async def broken(_: World) -> AsyncIterator[None]:
        routes.broken = True
        yield
        routes.broken = False

    monkeypatch.setitem(cast(dict[str, Any], FAULTS), "broken", broken)
    world = World(cast(Any, None), cast(Any, None), "", os.getpid(), Revival(Mortal()))
    found = await soak(world, routes, Plan(0, 0, 0.2, rate=100, faults=["broken"]))

    (window,) = found.windows
    late = [each for each in found.calls if each.sample.source.startswith("fallback")]
    assert late
    assert all(each in window.calls for each in late)
    assert window.slowest_ms == 500
    assert {each.sample.source for each in found.between()} <= {"model"}


async def test_the_recovery_does_not_wait_for_the_next_call_at_random(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @asynccontextmanager
    async def harmless(_: World) -> AsyncIterator[None]:
        yield

    monkeypatch.setitem(cast(dict[str, Any], FAULTS), "harmless", harmless)
    world = World(cast(Any, None), cast(Any, None), "", os.getpid(), Revival(Mortal()))
    async with asyncio.timeout(60):
        # The second call at random would come in a quarter of an hour.
        plan = Plan(0, 0, 0, rate=0.001, faults=["harmless"])
        found = await soak(world, SlowWhileBroken(), plan)

    (window,) = found.windows
    assert window.recovery_s is not None
    assert len(found.calls) >= 2


class DecidesWhileTritonLives(Routes):
    """Stands in for a sidecar."""

    def __init__(self, triton: Mortal) -> None:
        self.triton = triton

    async def route(self, request: object) -> Sample:
        if self.triton.dead:
            return Sample(0.0, "fallback:breaker_open")
        return Sample(0.0, "model", by_model=True)


@pytest.mark.parametrize("survives", [True, False])
async def test_a_triton_that_a_fault_has_killed_is_started_again(
    monkeypatch: pytest.MonkeyPatch, survives: bool
) -> None:
    triton = Mortal()

    @asynccontextmanager
    async def deadly(_: World) -> AsyncIterator[None]:
        yield
        triton.dead = not survives

    monkeypatch.setitem(cast(dict[str, Any], FAULTS), "deadly", deadly)
    world = World(triton, cast(Any, None), "", os.getpid(), Revival(triton))
    routes = DecidesWhileTritonLives(triton)
    found = await soak(world, routes, Plan(0, 0.4, 0.05, rate=100, faults=["deadly"]))

    (window,) = found.windows
    assert triton.started == window.restarts == (0 if survives else 1)
    assert window.recovery_s is not None
    fell_back = [each for each in found.calls if each.sample.source.startswith("fallback")]
    assert bool(fell_back) is not survives
    assert {each.sample.source for each in found.between()} <= {"model"}


async def test_a_triton_that_is_down_on_purpose_stays_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_virtual_time(monkeypatch)
    triton = Mortal()
    triton.dead = True
    revival = Revival(triton)
    revival.wanted = False
    watching = asyncio.create_task(revival.watch())
    await asyncio.sleep(0.25)
    watching.cancel()

    assert triton.started == 0


async def test_a_triton_that_was_ready_again_late_is_counted_all_the_same() -> None:
    revival = Revival(Mortal())
    revival.ready.append(7.0)

    assert await revival.after(moment=3.0, until=5.0) == 7.0
    assert await revival.after(moment=7.5, until=5.0) is None


@pytest.mark.parametrize(
    ("growth", "caches", "slope"),
    [(0, 0, 0.0), (1000, 0, 3_600_000.0), (1000, 1000, 0.0), (0, 1000, -3_600_000.0)],
)
def test_memory_that_grows_beside_the_caches_has_a_slope(
    growth: int, caches: int, slope: float
) -> None:
    memory = [Memory(float(s), 10**8 + growth * s, caches * s) for s in range(200)]

    assert Soaked(memory=memory).bytes_per_hour() == pytest.approx(slope)


CLOCKS = """
import datetime, sys, time
for _ in sys.stdin:
    clocks = time.time(), time.time_ns() / 1e9, datetime.datetime.now().timestamp()
    print(*clocks, time.monotonic(), flush=True)
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_wall_clock_of_one_process_is_moved_and_the_monotonic_one_is_not(
    tmp_path: Path,
) -> None:
    clock = JumpingClock(tmp_path)
    command = [sys.executable, "-c", CLOCKS]
    environment = {**os.environ, **clock.environment}
    moved: list[list[float]] = []
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for hours in (0, 5, -5, 0):
            clock.move(hours * 3600)
            print(file=process.stdin, flush=True)
            *walls, monotonic = map(float, process.stdout.readline().split())
            assert abs(monotonic - time.monotonic()) < 3600
            moved.append([round((wall - time.time()) / 3600) for wall in walls])
        process.stdin.close()

    assert moved == [[0] * 3, [5] * 3, [-5] * 3, [0] * 3]


def test_without_a_compiler_the_clock_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(NoClockError, match="there is no C compiler"):
        JumpingClock(tmp_path)


SOUND = [Memory(float(s), 10**8) for s in range(200)]

MISSED: dict[str, tuple[Soaked, str]] = {
    "no answer": (
        Soaked([called(0), called(1, "failed:UNAVAILABLE")], memory=SOUND),
        "calls without an answer",
    ),
    "no label": (
        Soaked([called(0), called(1, "fallback:unspecified")], memory=SOUND),
        "calls that say what decided",
    ),
    "decided by fallback without a fault": (
        Soaked([called(0), *[called(1, "fallback:overloaded")] * 2], memory=SOUND),
        "by the model or the cache outside faults",
    ),
    "slow to come back": (
        Soaked([called(0)], [Window("x", (), 2.1), Window("y", (), 0.1)], SOUND),
        "the model decides again after a fault",
    ),
    "never back": (
        Soaked([called(0)], [Window("x", (), None)], SOUND),
        "the model decides again after a fault",
    ),
    "memory that grows": (
        Soaked([called(0)], memory=[Memory(float(s), 10**8 + 10**5 * s) for s in range(200)]),
        "growth of the memory beside the caches",
    ),
}


@pytest.mark.parametrize(("found", "missed"), MISSED.values(), ids=MISSED.keys())
def test_an_aim_that_was_missed_is_told_and_fails_a_strict_run(found: Soaked, missed: str) -> None:
    told = {each.name: each for each in aims(found)}

    assert told[missed].reached is False
    assert "NOT reached" in str(told[missed])
    assert exit_status(found, strict=True) == 1
    assert exit_status(found, strict=False) == (1 if missed == "calls without an answer" else 0)


def test_a_sound_run_reaches_every_aim() -> None:
    found = Soaked([called(0), called(1, "cache")], [Window("x", (), 1.9)], SOUND)

    assert [each.reached for each in aims(found)] == [True] * 5
    assert exit_status(found, strict=True) == 0


def test_a_short_run_tells_no_slope() -> None:
    assert Soaked(memory=[Memory(0.0, 1), Memory(1.0, 2)]).bytes_per_hour() is None
