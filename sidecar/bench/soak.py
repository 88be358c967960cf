"""Steady calls while faults come and go, and what became of the calls."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

from sidecar.bench import traffic
from sidecar.bench.faults import FAULTS, World
from sidecar.bench.measuring import Sample, numbers
from sidecar.bench.own import Routes
from sidecar.bench.processes import own_bytes
from sidecar.bench.rows import shares

_RECOVERY_S = 60.0
_POLL_S = 0.02
_ASK_S = 0.5
_WORDS = 15
_MEMORY_EVERY_S = 1.0
_ENOUGH = 60
"""Measurements of memory from which a slope is told."""


@dataclass(frozen=True, slots=True)
class Called:
    """A call of the steady load, begun at `begun` (`time.perf_counter()`)."""

    begun: float
    sample: Sample

    @property
    def decided(self) -> bool:
        """By the model or by the cache: what there is without a fault."""
        return self.sample.by_model or self.sample.source == "cache"


@dataclass(frozen=True, slots=True)
class Window:
    """One fault.

    Args:
        calls: begun from the fault's beginning until the model decided again.
        recovery_s: from the fault's end until the first call that the model decided was answered;
            None if none was within a minute. Where Triton did not survive the fault, from when it
            had been started again.
        restarts: how often it had to be.
    """

    fault: str
    calls: Sequence[Called]
    recovery_s: float | None
    restarts: int = 0

    @property
    def failed(self) -> int:
        return failed(self.calls)

    @property
    def slowest_ms(self) -> float:
        return max((each.sample.seconds for each in self.calls), default=0.0) * 1000


def failed(calls: Sequence[Called]) -> int:
    """Calls without an answer."""
    return sum(each.sample.failed for each in calls)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that the sidecar has for itself, `at_s` seconds after the start.

    Args:
        caches: of which its caches say that they hold them, by their own estimate.
    """

    at_s: float
    own: int
    caches: int = 0

    @property
    def beside(self) -> int:
        """Without the caches."""
        return self.own - self.caches


CacheBytes = Callable[[], Awaitable[int]]
"""What the sidecar's caches hold now, in bytes."""


async def no_caches() -> int:
    """Nothing is known of them."""
    return 0


@dataclass(slots=True)
class Soaked:
    """What a run found.

    Args:
        memory: of the sidecar, once a second.
    """

    calls: list[Called] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)

    def between(self) -> list[Called]:
        """Calls outside every window."""
        within = {id(each) for window in self.windows for each in window.calls}
        return [each for each in self.calls if id(each) not in within]

    def sources(self) -> dict[str, float]:
        return shares([each.sample for each in self.calls])

    def bytes_per_hour(self) -> float | None:
        """Slope of the sidecar's memory beside its caches, by least squares over what is left of
        the run after its first third; None for a run too short to tell.

        What the caches hold has a bound of its own. By then every fault has come, in a run that is
        long enough, and each leaves the most memory that it takes: of a message of megabytes, or of
        hundreds of calls at once, the allocator keeps a part.
        """
        points = [(each.at_s, each.beside) for each in self.memory[len(self.memory) // 3 :]]
        if len(points) < _ENOUGH:
            return None
        mean_t = sum(t for t, _ in points) / len(points)
        mean_m = sum(m for _, m in points) / len(points)
        over = sum((t - mean_t) * (m - mean_m) for t, m in points)
        return over / sum((t - mean_t) ** 2 for t, _ in points) * 3600


class Load:
    """Calls at random, `rate` a second, each with another conversation, until it is stopped.
    `calls`: those that have ended, in that order."""

    def __init__(self, routes: Routes, rate: float) -> None:
        self.calls: list[Called] = []
        self._routes = routes
        self._rate = rate
        self._running: set[asyncio.Task[None]] = set()
        self._drawn = random.Random(0)  # noqa: S311 -- not a secret

    async def run(self) -> None:
        while True:
            self.call()
            await asyncio.sleep(self._drawn.expovariate(self._rate))

    def call(self) -> None:
        """Makes a call now, beside those at random."""
        task = asyncio.create_task(self._one())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def ended(self) -> None:
        """Waits for the calls that have begun by now."""
        await asyncio.gather(*self._running)

    async def _one(self) -> None:
        begun = time.perf_counter()
        sample = await self._routes.route(traffic.request(next(numbers), _WORDS, "default"))
        self.calls.append(Called(begun, sample))


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a run is and what it does.

    Args:
        seconds: of the whole; every fault comes at least once.
        every_s: between the beginnings of two faults.
        hold_s: of a fault.
        rate: calls a second.
        faults: by name.
    """

    seconds: float
    every_s: float
    hold_s: float
    rate: float
    faults: Sequence[str] = tuple(FAULTS)


async def soak(
    world: World,
    routes: Routes,
    plan: Plan,
    tell: Callable[[str], None] = lambda line: None,
    caches: CacheBytes = no_caches,
) -> Soaked:
    """Runs `plan`; `tell` gets a line for each fault."""
    load = Load(routes, plan.rate)
    found = Soaked(load.calls)
    steady = asyncio.create_task(load.run())
    watching = asyncio.create_task(_watch_memory(world.sidecar_pid, caches, found.memory))
    reviving = asyncio.create_task(world.revival.watch())
    started = time.perf_counter()
    try:
        for number in count():
            if number >= len(plan.faults) and time.perf_counter() - started > plan.seconds:
                break
            name = plan.faults[number % len(plan.faults)]
            window = await _window(name, world, plan, load)
            found.windows.append(window)
            tell(_line(window))
    finally:
        await _end(steady, watching, reviving)
    await load.ended()
    return found


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _window(name: str, world: World, plan: Plan, load: Load) -> Window:
    """The fault and what is left of the time until the next one, in which it may turn out that
    Triton did not survive it."""
    before, begun = len(load.calls), time.perf_counter()
    async with FAULTS[name](world):
        await asyncio.sleep(plan.hold_s)
    ended = time.perf_counter()
    recovered = await _recovered(load, before, ended)
    restarts = 0
    while (again := await world.revival.after(ended, begun + plan.every_s)) is not None:
        ended, restarts = again, restarts + 1
        recovered = await _recovered(load, before, ended)
    until = recovered if recovered is not None else time.perf_counter()
    # The slowest of them may still be waiting.
    await load.ended()
    during = [each for each in load.calls[before:] if begun <= each.begun <= until]
    return Window(name, during, None if recovered is None else recovered - ended, restarts)


async def _recovered(load: Load, before: int, ended: float) -> float | None:
    """Asks at once and again: where calls are few the next one would come seconds later."""
    asking = asyncio.create_task(_asking(load))
    try:
        return await _first(lambda: _decided_after(load.calls[before:], ended))
    finally:
        await _end(asking)


async def _asking(load: Load) -> None:
    while True:
        load.call()
        await asyncio.sleep(_ASK_S)


def _decided_after(calls: Sequence[Called], moment: float) -> float | None:
    """When the first call begun after `moment` that the model decided was answered."""
    for each in calls:
        if each.begun >= moment and each.sample.by_model:
            return each.begun + each.sample.seconds
    return None


async def _first(look: Callable[[], float | None]) -> float | None:
    end = time.perf_counter() + _RECOVERY_S
    while True:
        found = look()
        if found is not None or time.perf_counter() > end:
            return found
        await asyncio.sleep(_POLL_S)


async def _watch_memory(pid: int, caches: CacheBytes, memory: list[Memory]) -> None:
    started = time.perf_counter()
    while True:
        held = await caches()
        memory.append(Memory(time.perf_counter() - started, own_bytes(pid), held))
        await asyncio.sleep(_MEMORY_EVERY_S)


def _line(window: Window) -> str:
    back = "not within a minute" if window.recovery_s is None else f"{window.recovery_s:.1f} s"
    again = ", Triton started again" if window.restarts else ""
    told = f"{len(window.calls)} calls, {window.failed} failed, back after {back}{again}"
    return f"{window.fault}: {told}"
