"""Policies to warm, and what warms them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace

from sidecar.core.decision import PolicyRef
from sidecar.core.policy import ModelList, Policy, Route, WeightedModel
from sidecar.inference.load import Load
from sidecar.routing import CompiledPolicy, Warmth
from tests.doubles import StubModel, StubPrompt

MODELS = ModelList((WeightedModel("m"),))
NAMES = ("default", "second", "third")


def compiled(name: str) -> CompiledPolicy:
    policy = Policy(name, (Route("r", "text", MODELS),), MODELS)
    prompt = replace(StubPrompt(policy), prefix_ids=(NAMES.index(name),))
    return CompiledPolicy(policy, PolicyRef(name, 1, name), prompt)


POLICIES = {name: compiled(name) for name in NAMES}


def warmth(
    busy: Callable[[], bool] = lambda: False,
    quiet_s: float = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Warmth:
    return Warmth(
        lambda: list(POLICIES.values()), timeout_s=1, busy=busy, quiet_s=quiet_s, clock=clock
    )


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def warmed(model: StubModel) -> list[str]:
    return [NAMES[ids[0]] for ids in model.warmed]


def long_policy(tokens: int, inline: bool = False) -> CompiledPolicy:
    short = POLICIES["default"]
    prompt = replace(StubPrompt(short.policy), prefix_ids=tuple(range(tokens)))
    ref = PolicyRef("", 0, "long") if inline else PolicyRef("long", 1, "long")
    return replace(short, ref=ref, prompt=prompt)


def in_pieces(
    load: Load | None = None,
    clock: Callable[[], float] = time.monotonic,
    in_time_s: float = math.inf,
) -> Warmth:
    return Warmth(
        lambda: [long_policy(25)],
        timeout_s=1,
        busy=lambda: False,
        load=load or Load(),
        piece_tokens=10,
        in_time_s=in_time_s,
        clock=clock,
    )
