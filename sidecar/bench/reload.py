"""Decisions while a policy is changed again and again, and while it is not.

Both get the same conversations at the same times, in turns of which now one and now the other comes
first. The conversations are random words, of which the routing model's encoder is hardly ever sure,
so that it is the language model that decides: it has a prefix to read anew with every change, and
little time left. No decision comes from a cache.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import grpc

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar._generated.llmrouter.v1.policy_pb2_grpc import PolicyServiceStub
from sidecar.bench import own, served, traffic
from sidecar.bench.measuring import Call, Measured, Sample, closed_loop, open_loop
from sidecar.bench.rows import Row, percentile, row
from sidecar.engines import EngineInfo

_WORDS = 40
_NAME = "namespaces/default/policies/default"
_CALLERS = 2
"""Enough to keep the model server busy: one is computed while the other comes. Of more, some would
be refused as overloaded, which is no capacity."""

_HALF = 0.5
_TIMEOUT_S = 30.0


_CONVERSATIONS_A_TURN = 1_000_000
"""Far more than there are calls in one; the first ones are those of the warm-up."""

_DRAWS = 1000
"""Of the samples, for how far the ratio of their percentiles can be believed."""


@dataclass(frozen=True, slots=True)
class Changes:
    """How long is measured.

    Args:
        seconds: of a turn: with changes, and as long without.
        calls: of both; turns follow each other until there are as many: the 99th percentile of a
            few hundred calls is that of the few slowest.
        turns: at most.
    """

    seconds: float
    calls: int
    turns: int


@dataclass(frozen=True, slots=True)
class Case:
    """A policy of `routes`, changed `per_minute` times."""

    routes: int
    per_minute: int

    @property
    def group(self) -> str:
        return f"{self.routes} routes, changed {self.per_minute} times a minute"


CASES = (Case(6, 30), Case(served.ROUTES, 6))

Show = Callable[[Sequence[Row]], None]


@dataclass(slots=True)
class Made:
    """The changes of one measurement. `refused`: their status; they are in `count`, too."""

    count: int = 0
    refused: list[str] = field(default_factory=list)


def reloads(engine: EngineInfo, folder: Path, changes: Changes, budget_ms: int, show: Show) -> None:
    """One Triton and, for each case, a sidecar with a SQLite store."""
    with served.model_server(engine, folder / "repository", instant=False) as triton:
        for case in CASES:
            name = f"reload-{case.routes}"
            documents = [traffic.policy_document("default", case.routes, 0)]
            url = served.filled_store(folder / f"{name}.db", documents)
            with served.serving(
                engine,
                triton.grpc_address,
                folder / name,
                policy_store={"url": url},
                routing={"decision_budget_ms": budget_ms},
                cache={"max_bytes": 0},
            ) as sidecar:
                show(asyncio.run(_reload(sidecar.address, case, changes)))


async def _reload(address: str, case: Case, changes: Changes) -> list[Row]:
    options = [("grpc.enable_http_proxy", 0)]
    async with (
        own.calling(address) as routes,
        grpc.aio.insecure_channel(address, options) as channel,
    ):
        await own.warm(routes, "default")
        call = own.asking(routes, "default", _WORDS)
        busy = await closed_loop(call, _CALLERS, seconds=max(changes.seconds / 4, 1))
        capacity = busy.model_per_second
        if not capacity:
            raise own.TooSlowError(
                "the routing model answered nothing within its budget; raise --budget-ms"
            )
        rate = capacity * _HALF
        quiet, changing = Measured(), Measured()
        made = Made()
        policies = PolicyServiceStub(channel)
        for turn in range(changes.turns):
            for with_changes in (turn % 2 == 1, turn % 2 == 0):
                call = _asking(routes, turn)
                if not with_changes:
                    quiet.add(await open_loop(call, rate, changes.seconds, seed=turn))
                    continue
                writing = asyncio.create_task(_change(policies, case, changes.seconds, turn, made))
                changing.add(await open_loop(call, rate, changes.seconds, seed=turn))
                await writing
            if min(len(quiet.samples), len(changing.samples)) >= changes.calls:
                break
    return _rows(case, capacity, rate, quiet, changing, made)


def _asking(routes: own.Routes, turn: int) -> Call:
    """The same conversations in the same order for every one of a turn."""
    order = count((turn + 1) * _CONVERSATIONS_A_TURN)

    async def call(_: int) -> Sample:
        return await routes.route(traffic.request(next(order), _WORDS, "default"))

    return call


async def _change(
    policies: PolicyServiceStub, case: Case, seconds: float, seed: int, made: Made
) -> None:
    """Another description of one route at every time: what stands before it stays."""
    drawn = random.Random(seed)  # noqa: S311 -- not a secret
    pause = 60 / case.per_minute
    due = time.perf_counter() + pause / 2
    end = time.perf_counter() + seconds
    while due < end:
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        due += pause
        try:
            get = policy_pb2.GetPolicyRequest(name=_NAME)
            present = await policies.GetPolicy(get, timeout=_TIMEOUT_S)
            route = drawn.choice(present.routes)
            route.description = f"{route.description.split(' Version')[0]} Version {made.count}."
            update = policy_pb2.UpdatePolicyRequest(policy=present)
            await policies.UpdatePolicy(update, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            made.refused.append(error.code().name)
        made.count += 1


def _rows(
    case: Case, capacity: float, rate: float, quiet: Measured, changing: Measured, made: Made
) -> list[Row]:
    size = traffic.request(1, _WORDS, "default").ByteSize()
    rows = [
        row(case.group, name, measured, message_bytes=size, offered=rate, note=note)
        for name, measured, note in (
            ("without changes", quiet, f"half of {capacity:.1f} decisions/s"),
            ("with changes", changing, f"{made.count} changes, {len(made.refused)} refused"),
        )
    ]
    times = [[each.seconds for each in measured.samples] for measured in (quiet, changing)]
    least, most = _likely(*times)
    failed = sum(each.failed for each in changing.samples)
    counted = " and ".join(str(len(each)) for each in times)
    note = (
        f"p99 {_p99(times[1]) / _p99(times[0]):.2f} times (aim: 1.3; {least:.2f} to {most:.2f} in "
        f"95 % of draws from these {counted} calls); {failed} requests failed (aim: 0)"
    )
    return [*rows, Row(case.group, "with to without", note=note)]


def _p99(times: Sequence[float]) -> float:
    return percentile(sorted(times), 99)


def _likely(quiet: Sequence[float], changing: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of the ratios of 99th percentiles of calls drawn from these (the bootstrap's
    percentile interval)."""
    if not quiet or not changing:
        return math.nan, math.nan
    drawn = random.Random(0)  # noqa: S311 -- not a secret
    ratios = sorted(
        _p99(drawn.choices(changing, k=len(changing))) / _p99(drawn.choices(quiet, k=len(quiet)))
        for _ in range(_DRAWS)
    )
    return percentile(ratios, 2.5), percentile(ratios, 97.5)
