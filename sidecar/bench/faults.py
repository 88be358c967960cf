"""Faults that a soak run brings about, each as a block: within it the fault is there."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path

import grpc

from sidecar.bench import own, traffic
from sidecar.bench.faulty_proxy import FaultyProxy, Spoil
from sidecar.bench.jumping_clock import JumpingClock
from sidecar.bench.measuring import numbers
from sidecar.local import TritonServer

_FLOOD = 300
_VANISHING = 50
_VANISH_S = 0.02
_LARGE_BYTES = 8 * 2**20
_PAUSE_S = 0.2
_LOOK_S = 0.1
_CONNECTIONS = 20
_JUMPS_S = (3600, 0, -3600, -2, 2, 365 * 86400, 0, -365 * 86400)
_SPARE_FILES = 2
_SPARE_BYTES = 64 * 2**20
"""A thread's stack is 8 MiB of it, and a message takes several times its size."""


class Revival:
    """Starts Triton again where it dies of what was done to it, as Kubernetes does.

    Once thawed, Triton 2.51 may find that its Python process missed its heartbeat, answer what is
    in flight with an error, and crash when the late answer comes, too (docs/staying-up.md).

    Args:
        ready: moments (`time.perf_counter()`) when it was ready again.
        wanted: False while it is down on purpose.
    """

    def __init__(self, triton: TritonServer) -> None:
        self.ready: list[float] = []
        self.wanted = True
        self._triton = triton
        self._under_way = asyncio.Lock()

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            if self.wanted and not self._alive():
                async with self._under_way:
                    self._triton.kill()
                    await start_again(self._triton)
                    self.ready.append(time.perf_counter())
            await asyncio.sleep(_LOOK_S)

    async def after(self, moment: float, until: float) -> float | None:
        """When it was ready again, if it died after `moment` and before `until`."""
        while True:
            if not self._under_way.locked():
                if self.ready and self.ready[-1] > moment:
                    return self.ready[-1]
                if time.perf_counter() >= until:
                    return None
            await asyncio.sleep(_LOOK_S)

    def _alive(self) -> bool:
        return self._triton.exit_code() is None and self._triton.models_alive()


@dataclass(frozen=True, slots=True)
class World:
    """What can be broken.

    Args:
        proxy: between the sidecar and Triton.
        sidecar: its address for calls of other clients than those that are counted.
        clock: the sidecar's wall clock; None where it cannot be moved.
    """

    triton: TritonServer
    proxy: FaultyProxy
    sidecar: str
    sidecar_pid: int
    revival: Revival
    clock: JumpingClock | None = None


async def start_again(triton: TritonServer) -> None:
    """Starts `triton` after `kill` and returns when it is ready."""
    # Not in a thread: the server is asked to end when the thread that started it ends.
    triton.spawn()
    await asyncio.to_thread(triton.wait_ready)


Fault = Callable[[World], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def killed(world: World) -> AsyncIterator[None]:
    """Triton and the routing model die; when the fault ends they are ready again."""
    world.revival.wanted = False
    world.triton.kill()
    try:
        yield
    finally:
        await start_again(world.triton)
        world.revival.wanted = True


@asynccontextmanager
async def frozen(world: World) -> AsyncIterator[None]:
    """Triton and the routing model stand still: connections stay open, nothing is answered. Where
    Triton does not survive the thaw, the fault lasts until it has been started again."""
    world.triton.pause()
    try:
        yield
    finally:
        world.triton.resume()


def spoiling(spoil: Spoil) -> Fault:
    @asynccontextmanager
    async def spoiled(world: World) -> AsyncIterator[None]:
        world.proxy.spoil = spoil
        try:
            yield
        finally:
            world.proxy.spoil = Spoil.NOTHING

    return spoiled


@asynccontextmanager
async def refused(world: World) -> AsyncIterator[None]:
    """Nobody listens where Triton was."""
    await asyncio.to_thread(world.proxy.refuse)
    try:
        yield
    finally:
        await asyncio.to_thread(world.proxy.accept)


@asynccontextmanager
async def _repeating(once: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    async def repeat() -> None:
        while True:
            await once()
            await asyncio.sleep(_PAUSE_S)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def flood(world: World) -> AsyncIterator[None]:
    """Far more calls at once than the model can answer, again and again."""
    async with own.calling(world.sidecar) as routes:

        async def once() -> None:
            requests = [traffic.request(next(numbers), 40, "default") for _ in range(_FLOOD)]
            await asyncio.gather(*(routes.route(each) for each in requests))

        async with _repeating(once):
            yield


@asynccontextmanager
async def vanishing(world: World) -> AsyncIterator[None]:
    """Clients that ask and are gone before the answer, connection and all."""

    async def once() -> None:
        async with own.calling(world.sidecar) as routes:
            calls = [
                asyncio.create_task(routes.route(traffic.request(next(numbers), 15, "default")))
                for _ in range(_VANISHING)
            ]
            await asyncio.sleep(_VANISH_S)
        # Closing the channel has ended them.
        await asyncio.gather(*calls, return_exceptions=True)

    async with _repeating(once):
        yield


@asynccontextmanager
async def large(world: World) -> AsyncIterator[None]:
    """Messages of megabytes, which are refused or cut."""
    async with own.calling(world.sidecar) as routes:
        sizes = count()

        async def once() -> None:
            await routes.route(traffic.large_request(_LARGE_BYTES // (1 + next(sizes) % 4)))

        async with _repeating(once):
            yield


@contextmanager
def _limited(pid: int, resource_number: int, limit: int) -> Iterator[None]:
    before = resource.prlimit(pid, resource_number)
    resource.prlimit(pid, resource_number, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource_number, before)


@asynccontextmanager
async def no_files(world: World) -> AsyncIterator[None]:
    """The sidecar can open hardly any file or connection more, and many clients want one."""
    used = len(os.listdir(f"/proc/{world.sidecar_pid}/fd"))
    with _limited(world.sidecar_pid, resource.RLIMIT_NOFILE, used + _SPARE_FILES):
        async with _many_connections(world):
            yield


@asynccontextmanager
async def _many_connections(world: World) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for number in range(_CONNECTIONS):
            # Channels with equal options share a connection.
            options = [("grpc.enable_http_proxy", 0), ("bench.number", number)]
            channel = grpc.aio.insecure_channel(world.sidecar, options)
            await stack.enter_async_context(channel)
            channel.get_state(try_to_connect=True)
        yield


@asynccontextmanager
async def no_memory(world: World) -> AsyncIterator[None]:
    """The sidecar gets only some tens of MiB more than it has, and messages of megabytes come. A
    limit of the process: its callers and Triton go on as before."""
    allowed = _data_bytes(world.sidecar_pid) + _SPARE_BYTES
    with _limited(world.sidecar_pid, resource.RLIMIT_DATA, allowed):
        async with large(world):
            yield


def _data_bytes(pid: int) -> int:
    """What RLIMIT_DATA counts (proc_pid_status(5))."""
    for line in Path("/proc", str(pid), "status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/{pid}/status has no VmData")


@asynccontextmanager
async def clock_jumps(world: World) -> AsyncIterator[None]:
    """The sidecar's wall clock goes forwards and back, by seconds to years."""
    clock = world.clock
    assert clock is not None, "it was asked whether there is one"
    jumps = cycle(_JUMPS_S)

    async def once() -> None:
        clock.move(next(jumps))

    try:
        async with _repeating(once):
            yield
    finally:
        clock.move(0)


@asynccontextmanager
async def log_full(world: World) -> AsyncIterator[None]:
    """Nothing can be appended to the sidecar's log, as on a full disk."""
    with _limited(world.sidecar_pid, resource.RLIMIT_FSIZE, 1):
        yield


CLOCK_JUMPS = "clock jumps"
"""Takes a `World.clock`."""

FAULTS: Mapping[str, Fault] = {
    "Triton killed": killed,
    "Triton frozen": frozen,
    "answers late": spoiling(Spoil.SLOW),
    "answers garbage": spoiling(Spoil.GARBAGE),
    "answers of a wrong shape": spoiling(Spoil.WRONG_SHAPE),
    "answers errors": spoiling(Spoil.ERROR),
    "connections refused": refused,
    "flood": flood,
    "clients vanish": vanishing,
    "large messages": large,
    "no more files": no_files,
    "hardly any memory": no_memory,
    "log cannot be written": log_full,
    CLOCK_JUMPS: clock_jumps,
}
"""By name, in the order of a round."""
