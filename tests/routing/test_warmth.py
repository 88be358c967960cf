"""What is warmed, when, and in which order. The model is a stub that counts."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sidecar.core.decision import PolicyRef
from sidecar.core.model import (
    InferenceError,
    InferenceFailure,
    LabelLogits,
    ModelOutput,
    RouteTexts,
    TextOutput,
    by_language_model,
)
from sidecar.inference.load import Load
from sidecar.routing import Warmth
from tests.doubles import Clock, StubModel, StubPrompt
from tests.routing.warming import NAMES, POLICIES, in_pieces, long_policy, settle, warmed, warmth


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
    begun = warm.under_way
    await warm.close()

    assert begun == 8
    # One call at a time: decisions take turns with one prefix, not with eight.
    assert model.cancelled == 1


LATENESS = {
    "late once": ("L", True),
    "late twice": ("LL", True),
    "late three times in a row": ("LLL", False),
    "in time in between": ("LLTLL", True),
    "in time not long before": ("TLLL", True),
    "in time long before": ("T_LLL", False),
    "three that began together": ("L==", True),
    "three, two of which began together": ("L=L", True),
}


@pytest.mark.parametrize(("decisions", "still_warm"), LATENESS.values(), ids=LATENESS.keys())
async def test_prefix_is_doubted_after_three_late_decisions_in_a_row(
    decisions: str, still_warm: bool
) -> None:
    clock = Clock()
    warm, model = warmth(clock=clock), StubModel()
    await warm.recover(model, only_late=False)
    began = 0.0
    for decision in decisions:
        began += {"=": 0.1, "L": 0.3, "T": 0.3, "_": 0}[decision]
        clock.now += 4 if decision == "_" else 0
        if decision == "T":
            warm.in_time(POLICIES["default"])
        elif decision != "_":
            warm.late(POLICIES["default"], began, apart_s=0.25)

    assert warm.is_warm(POLICIES["default"]) is still_warm


async def test_doubt_lasts_until_the_prefix_is_computed() -> None:
    warm, model = warmth(), StubModel()
    await warm.recover(model, only_late=False)
    for began in range(3):
        warm.late(POLICIES["default"], began, apart_s=1)
    warm.request(POLICIES["default"], model)
    await settle()

    assert warm.is_warm(POLICIES["default"])


async def test_a_failed_warm_up_can_be_asked_for_again() -> None:
    warm, model = warmth(), StubModel()
    model.break_with(InferenceFailure.UNAVAILABLE)
    warm.request(POLICIES["second"], model)
    await settle()
    model.fault = None
    warm.request(POLICIES["second"], model)
    await settle()

    assert warm.is_warm(POLICIES["second"])


async def test_a_refused_prefix_is_not_asked_for_again_at_once() -> None:
    now = 0.0
    warm = Warmth(list, timeout_s=1, busy=lambda: False, clock=lambda: now)
    model, refused = StubModel(), POLICIES["second"]
    model.break_with(InferenceFailure.ERROR)
    warm.request(refused, model)
    await settle()
    why = warm.refused(refused)
    model.fault = None
    warm.request(refused, model)
    await settle()
    at_once = warm.is_warm(refused)
    now = 1.5
    warm.request(refused, model)
    await settle()

    assert (why, at_once) == ("stub: ERROR", False)
    assert warm.is_warm(refused)
    assert warm.refused(refused) == ""


@pytest.mark.parametrize("failure", [InferenceFailure.ERROR, InferenceFailure.UNAVAILABLE])
async def test_who_waits_for_a_prefix_hears_why_it_is_not_computed(
    failure: InferenceFailure,
) -> None:
    warm, model = in_pieces(), StubModel()
    model.break_with(failure)

    with pytest.raises(InferenceError, match=failure.name) as heard:
        await warm.prepare(long_policy(25, inline=True), model, within_s=1)

    assert heard.value.failure is failure


async def test_a_long_prefix_is_computed_in_pieces() -> None:
    warm, model = in_pieces(), StubModel()
    warm.request(long_policy(25), model)
    await settle()

    assert [len(ids) for ids in model.warmed] == [10, 20, 25]


async def test_routes_of_a_second_opinion_are_divided_among_the_pieces() -> None:
    warm, model = in_pieces(), StubModel()
    shares: list[RouteTexts] = []

    async def noting(prefix_ids: object, timeout_s: float, routes: RouteTexts = ()) -> None:
        shares.append(routes)

    model.warm = noting  # type: ignore[method-assign]
    policy = long_policy(25)
    routes = tuple((number,) for number in range(7))
    assert isinstance(policy.prompt, StubPrompt)
    policy = replace(policy, prompt=replace(policy.prompt, route_texts=routes))
    warm.request(policy, model)
    await settle()

    assert len(shares) == 3
    assert [route for share in shares for route in share] == list(routes)


async def test_decisions_come_between_the_pieces_of_two_prefixes() -> None:
    warm, model = in_pieces(), StubModel()
    most = 0

    async def counting(prefix_ids: object, timeout_s: float, routes: object = ()) -> None:
        nonlocal most
        running.append(prefix_ids)
        most = max(most, len(running))
        await asyncio.sleep(0)
        running.pop()

    running: list[object] = []
    model.warm = counting  # type: ignore[method-assign]
    warm.request(long_policy(25), model)
    warm.request(replace(long_policy(35), ref=PolicyRef("other", 1, "other")), model)
    await settle()

    assert most == 1


async def test_the_last_piece_of_an_inline_policy_is_left_to_its_decision() -> None:
    warm, model = in_pieces(), StubModel()
    inline = long_policy(25, inline=True)
    before = warm.cold_tokens(inline)
    ready = await warm.prepare(inline, model, within_s=1)

    assert ready
    assert [len(ids) for ids in model.warmed] == [10, 20]
    assert (before, warm.cold_tokens(inline)) == (10, 0)


async def test_an_inline_policy_of_one_piece_is_asked_cold() -> None:
    warm, model = in_pieces(), StubModel()

    assert await warm.prepare(long_policy(10, inline=True), model, within_s=1)
    assert model.warmed == []


async def test_a_prefix_that_takes_longer_than_its_request_goes_on_for_the_next() -> None:
    warm, model = in_pieces(), StubModel()
    released = asyncio.Event()

    async def held(prefix_ids: tuple[int, ...], timeout_s: float, routes: object = ()) -> None:
        model.warmed.append(prefix_ids)
        await released.wait()

    model.warm = held  # type: ignore[method-assign, assignment]
    inline = long_policy(25, inline=True)
    first = await warm.prepare(inline, model, within_s=0.01)
    released.set()
    second = await warm.prepare(inline, model, within_s=60)

    assert (first, second) == (False, True)
    # Each piece once: the second did not begin anew.
    assert [len(ids) for ids in model.warmed] == [10, 20]


@pytest.mark.parametrize(
    ("inline", "asked_again", "pieces"),
    [
        pytest.param(True, False, [10, 20], id="inline"),
        pytest.param(True, True, [10, 20, 10, 20, 25], id="inline, asked for again"),
        pytest.param(False, False, [10, 20, 25], id="named"),
    ],
)
async def test_an_inline_policy_that_nobody_asks_for_any_more_is_not_computed_to_its_end(
    inline: bool, asked_again: bool, pieces: list[int]
) -> None:
    clock, model = Clock(), StubModel()
    warm = in_pieces(clock=clock, in_time_s=1)
    policy = long_policy(25, inline=inline)

    async def slow(prefix_ids: tuple[int, ...], timeout_s: float, routes: object = ()) -> None:
        model.warmed.append(prefix_ids)
        clock.now += 6 if len(model.warmed) < 3 else 0

    model.warm = slow  # type: ignore[method-assign, assignment]
    for _ in range(1 + asked_again):
        warm.is_warm(policy)
        warm.request(policy, model)
        await settle()

    assert [len(ids) for ids in model.warmed] == pieces
    assert warm.holds(policy.ref.digest) is (pieces[-1] == 25)


async def test_of_the_policies_remembered_as_warm_those_in_use_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sidecar.routing.warmth._REMEMBERED", 2)
    warm = warmth()
    for name in ("default", "second", "default", "third"):
        warm.in_time(POLICIES[name])

    assert [name for name in NAMES if warm.holds(name)] == ["default", "third"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (LabelLogits((1.0, 0.0), (0.5, 0.5)), True),
        (LabelLogits((), (0.5, 0.5)), False),
        (TextOutput((1,)), True),
    ],
)
def test_what_the_encoder_decides_alone_says_nothing_of_the_prefix(
    output: ModelOutput, expected: bool
) -> None:
    assert by_language_model(output) is expected


async def test_warming_counts_as_work_of_the_server() -> None:
    load = Load()
    warm, model = in_pieces(load), StubModel()
    seen: list[int] = []

    async def looking(prefix_ids: object, timeout_s: float, routes: object = ()) -> None:
        seen.append(load.in_flight)

    model.warm = looking  # type: ignore[method-assign]
    warm.request(long_policy(25), model)
    await settle()

    assert seen == [1, 1, 1]
    assert load.wait_s(10) is not None
