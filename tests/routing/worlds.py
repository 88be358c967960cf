"""A router over a stub of the routing model, with real breaker, warmth and registry."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from sidecar.core.decision import PolicyName, RoutingRequest
from sidecar.core.model import Enough
from sidecar.core.policy import (
    Capability,
    Catalog,
    Model,
    ModelList,
    Policy,
    PolicyRecord,
    Route,
    WeightedModel,
)
from sidecar.inference.breaker import CircuitBreaker
from sidecar.inference.calls import DecisionTrace
from sidecar.inference.guarded import GuardedModel, WatchTimes
from sidecar.inference.load import Load
from sidecar.routing import (
    DecisionCache,
    Pins,
    PolicyRegistry,
    Router,
    RouterLimits,
    RoutingModelRef,
    Target,
    Targets,
    Warmth,
)
from tests.doubles import ListSink, StubModel, StubPrompt, talk
from tests.waiting import until

CATALOG = {
    "claude": Model("claude", "claude-1", capabilities=frozenset({Capability.IMAGES})),
    "gpt": Model("gpt", "gpt-1"),
    "mini": Model("mini", "mini-1"),
}


def models(*ids: str) -> ModelList:
    return ModelList(tuple(WeightedModel(i) for i in ids))


POLICY = Policy(
    "main",
    (
        Route("code", "writing code", models("claude", "gpt")),
        Route("travel", "booking trips", models("gpt")),
    ),
    models("mini"),
)
EMPTY = Policy("empty", (), models("mini"))
HELLO = RoutingRequest(talk("please review my code"))


def request(**changes: object) -> RoutingRequest:
    """`HELLO` with changes."""
    return replace(HELLO, **changes)  # type: ignore[arg-type]


@dataclass
class World:
    model: StubModel
    router: Router
    guard: GuardedModel
    breaker: CircuitBreaker
    warmth: Warmth
    registry: PolicyRegistry
    target: Target
    cache: DecisionCache
    sink: ListSink = field(default_factory=ListSink)

    async def until_answering(self) -> None:
        await until(lambda: self.router.degraded == "")


@asynccontextmanager
async def a_world(
    cache: DecisionCache,
    pins: Pins | None = None,
    catalog: Catalog = CATALOG,
    budget_s: float = 10,
    enough: Enough | None = None,
    prefix_ids: tuple[int, ...] = (1, 2, 3),
    begin_trace: Callable[[], DecisionTrace] | None = None,
) -> AsyncIterator[World]:
    """`enough`: when an encoder beside the model decides alone; None: there is no encoder."""
    model, sink = StubModel(), ListSink()
    registry = PolicyRegistry(
        [
            PolicyRecord(POLICY, 3, "e"),
            PolicyRecord(EMPTY, 1, "e"),
        ],
        catalog,
        partial(StubPrompt, enough=enough, prefix_ids=prefix_ids),
        default_policy=PolicyName("main"),
        max_prompt_tokens=100,
    )
    warmth = Warmth(registry.named, timeout_s=1, busy=lambda: guard.in_flight > 0)
    times = WatchTimes(closed_s=0.005, open_s=0.005, check_s=0.02)
    breaker = CircuitBreaker(failures=3)
    guard = GuardedModel(model, breaker, times, warmth.recover)
    # Looked up at each call: a test may keep virtual time.
    load, encoder_load = (Load(lambda: time.perf_counter()) for _ in range(2))
    target = Target("stub", guard, warmth, load, encoder_load)
    router = Router(
        registry,
        Targets([target]),
        sink,
        RouterLimits(budget_s=budget_s, reserve_s=0.01, max_waiting=4),
        RoutingModelRef("stub@1", "stub-v1"),
        lambda ids: f"{len(ids)} tokens",
        cache=cache,
        pins=pins,
        begin_trace=begin_trace,
    )
    guard.start()
    made = World(model, router, guard, breaker, warmth, registry, target, cache, sink)
    await made.until_answering()
    yield made
    await warmth.close()
    await guard.close()
