"""The next revision of a policy is computed at each model server before it decides. The server is a
stub, for its refusals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from sidecar.app_policies import _places, _warm_at
from sidecar.core.model import InferenceFailure, RouteTexts
from sidecar.inference.breaker import CircuitBreaker
from sidecar.inference.guarded import GuardedModel, WatchTimes
from sidecar.routing import Target
from tests.doubles import StubModel
from tests.routing.warming import POLICIES, settle, warmth
from tests.virtual_time import keep_virtual_time


class Counting(StubModel):
    """How often it is asked for a prefix, refusals included."""

    asked = 0

    async def warm(
        self, prefix_ids: Sequence[int], timeout_s: float, routes: RouteTexts = ()
    ) -> None:
        self.asked += 1
        await super().warm(prefix_ids, timeout_s, routes)


def target_of(model: StubModel) -> Target:
    """Its breaker is closed, and only opens when the server is gone."""
    times = WatchTimes(closed_s=1, open_s=1, check_s=1)
    warm, breaker = warmth(), CircuitBreaker(failures=1000)
    breaker.close()
    return Target("stub", GuardedModel(model, breaker, times, warm.recover), warm)


async def test_a_server_that_refuses_a_revision_is_not_asked_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_virtual_time(monkeypatch)
    model = Counting()
    model.break_with(InferenceFailure.ERROR)

    await _warm_at(target_of(model), POLICIES["second"], (), time.monotonic() + 0.6)

    # At once, after 0.1 and 0.3 s; where it was looked at every 20 ms it was 30 times.
    assert model.asked == 3


async def test_it_is_asked_again_until_it_holds_the_revision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_virtual_time(monkeypatch)
    model = Counting()
    model.break_with(InferenceFailure.ERROR)
    target = target_of(model)
    end = time.monotonic() + 60
    warming = asyncio.create_task(_warm_at(target, POLICIES["second"], (), end))
    await settle()
    model.fault = None
    await warming

    assert model.asked == 2
    assert target.warmth.holds(POLICIES["second"].ref.digest)


async def test_it_is_not_waited_for_where_the_server_is_not_asked_any_more() -> None:
    model = Counting()
    model.break_with(InferenceFailure.UNAVAILABLE)

    async with asyncio.timeout(60):
        await _warm_at(target_of(model), POLICIES["second"], (), time.monotonic() + 600)

    assert model.asked == 1


async def test_a_revision_that_was_replaced_is_not_computed_any_more() -> None:
    model = StubModel()
    model.frozen = True
    target = target_of(model)
    end = time.monotonic() + 60
    warming = asyncio.create_task(_warm_at(target, POLICIES["second"], (), end))
    await settle()
    warming.cancel()
    await asyncio.gather(warming, return_exceptions=True)
    await settle()

    assert (model.cancelled, target.warmth.under_way) == (1, 0)


async def test_it_is_computed_where_the_present_revision_is() -> None:
    holding, other = (target_of(StubModel()) for _ in range(2))
    present = POLICIES["second"]
    await _warm_at(holding, present, (), time.monotonic() + 60)

    assert _places([holding, other], present) == [holding]
    assert _places([holding, other], None) == [holding, other]
