"""What is warmed, when, and in which order. The model is a stub that counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from sidecar.core.decision import PolicyRef
from sidecar.core.model import InferenceError, InferenceFailure
from sidecar.core.policy import ModelList, Policy, Route, WeightedModel
from sidecar.routing import CompiledPolicy, Warmth
from tests.doubles import StubModel, StubPrompt

MODELS = ModelList((WeightedModel("m"),))
NAMES = ("default", "second", "third")


def compiled(name: str) -> CompiledPolicy:
    policy = Policy(name, (Route("r", "text", MODELS),), MODELS)
    prompt = replace(StubPrompt(policy), prefix_ids=(NAMES.index(name),))
    return CompiledPolicy(policy, PolicyRef(name, 1, name), prompt)


POLICIES = {name: compiled(name) for name in NAMES}


def warmth(busy: Callable[[], bool] = lambda: False, quiet_s: float = 0) -> Warmth:
    return Warmth(lambda: list(POLICIES.values()), timeout_s=1, busy=busy, quiet_s=quiet_s)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def warmed(model: StubModel) -> list[str]:
    return [NAMES[ids[0]] for ids in model.warmed]


async def test_recovery_warms_the_default_first_and_the_rest_in_the_background() -> None:
    warm, model = warmth(), StubModel()
    await warm.recover(model, only_late=False)
    at_once = warmed(model)
    await settle()

    assert at_once == ["default"]
    assert warmed(model) == list(NAMES)
    assert all(warm.is_warm(each) for each in POLICIES.values())


async def test_recovery_begins_with_the_policy_used_last() -> None:
    warm, model = warmth(), StubModel()
    await warm.recover(model, only_late=False)
    await settle()
    warm.is_warm(POLICIES["third"])
    model.warmed.clear()
    await warm.recover(model, only_late=False)

    assert warmed(model) == ["third"]


async def test_after_an_outage_nothing_counts_as_warm_until_it_is_computed_again() -> None:
    warm, model = warmth(), StubModel()
    await warm.recover(model, only_late=False)
    await settle()
    model.break_with(InferenceFailure.UNAVAILABLE)
    with pytest.raises(InferenceError):
        await warm.recover(model, only_late=False)

    assert not any(warm.is_warm(each) for each in POLICIES.values())


async def test_what_was_warm_still_counts_when_the_server_was_only_late() -> None:
    warm, model = warmth(), StubModel()
    await warm.recover(model, only_late=False)
    await settle()
    model.warmed.clear()
    await warm.recover(model, only_late=True)
    await settle()

    assert warmed(model) == ["default"]
    assert all(warm.is_warm(each) for each in POLICIES.values())


async def test_at_the_start_all_policies_are_warmed_without_waiting() -> None:
    warm, model = warmth(lambda: True), StubModel()
    await warm.recover(model, only_late=False)
    await settle()

    assert warmed(model) == list(NAMES)


async def test_policies_nobody_asked_for_wait_until_no_decision_does() -> None:
    busy = True
    warm, model = warmth(lambda: busy, quiet_s=0.01), StubModel()
    warm.is_warm(POLICIES["default"])
    await warm.recover(model, only_late=False)
    await settle()
    while_busy = warmed(model)
    busy = False
    async with asyncio.timeout(5):
        while len(model.warmed) < len(NAMES):
            await asyncio.sleep(0.01)

    assert while_busy == ["default"]


async def test_a_policy_that_is_asked_for_does_not_wait() -> None:
    warm, model = warmth(lambda: True), StubModel()
    warm.request(POLICIES["second"], model)
    await settle()

    assert warmed(model) == ["second"]


async def test_a_request_warms_once_however_often_it_is_made() -> None:
    warm, model = warmth(), StubModel()
    for _ in range(3):
        warm.request(POLICIES["second"], model)
    await settle()

    assert warmed(model) == ["second"]
    assert warm.is_warm(POLICIES["second"])


async def test_a_flood_of_inline_policies_warms_few_at_once() -> None:
    warm, model = warmth(), StubModel()
    model.frozen = True
    for number in range(100):
        inline = POLICIES["second"]
        warm.request(replace(inline, ref=PolicyRef("", 0, f"inline {number}")), model)
    await settle()
    model.frozen = False
    await warm.close()

    assert model.cancelled == 8


LATENESS = {
    "late once": ("L", True),
    "late twice": ("LL", True),
    "late three times in a row": ("LLL", False),
    "in time in between": ("LLTLL", True),
}


@pytest.mark.parametrize(("decisions", "still_warm"), LATENESS.values(), ids=LATENESS.keys())
async def test_prefix_is_doubted_after_three_late_decisions_in_a_row(
    decisions: str, still_warm: bool
) -> None:
    warm, model = warmth(), StubModel()
    await warm.recover(model, only_late=False)
    for decision in decisions:
        if decision == "L":
            warm.late(POLICIES["default"])
        else:
            warm.in_time(POLICIES["default"])

    assert warm.is_warm(POLICIES["default"]) is still_warm


async def test_doubt_lasts_until_the_prefix_is_computed() -> None:
    warm, model = warmth(), StubModel()
    await warm.recover(model, only_late=False)
    for _ in range(3):
        warm.late(POLICIES["default"])
    warm.request(POLICIES["default"], model)
    await settle()

    assert warm.is_warm(POLICIES["default"])


async def test_a_failed_warm_up_can_be_asked_for_again() -> None:
    warm, model = warmth(), StubModel()
    model.break_with(InferenceFailure.ERROR)
    warm.request(POLICIES["second"], model)
    await settle()
    model.fault = None
    warm.request(POLICIES["second"], model)
    await settle()

    assert warm.is_warm(POLICIES["second"])
