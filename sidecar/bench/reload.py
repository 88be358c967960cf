"""Decisions while a policy is changed again and again, and while it is not."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar._generated.llmrouter.v1.policy_pb2_grpc import PolicyServiceStub
from sidecar.bench import own, served, traffic
from sidecar.bench.measuring import Measured, Sample, closed_loop, open_loop
from sidecar.bench.rows import Row, percentile, row
from sidecar.engines import EngineInfo

_WORDS = 40
_NAME = "namespaces/default/policies/default"
_CALLERS = 4
"""Enough to keep the model server busy."""

_HALF = 0.5
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Changes:
    """How long is measured.

    Args:
        seconds: with changes, and as long without, each time.
        times: of both, in turns.
    """

    seconds: float
    times: int


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
        for turn in range(changes.times):
            quiet.add(await open_loop(call, rate, changes.seconds, seed=turn))
            writing = asyncio.create_task(_change(policies, case, changes.seconds, turn, made))
            changing.add(await open_loop(call, rate, changes.seconds, seed=turn))
            await writing
    return _rows(case, capacity, rate, quiet, changing, made)


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
    before, after = _p99(quiet.samples), _p99(changing.samples)
    failed = sum(each.failed for each in changing.samples)
    note = f"p99 {after / before:.2f} times (aim: 1.3); {failed} requests failed (aim: 0)"
    return [*rows, Row(case.group, "with to without", note=note)]


def _p99(samples: Sequence[Sample]) -> float:
    return percentile(sorted(each.seconds for each in samples), 99)
