"""What is warmed, when, and in which order. The model is a stub that counts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from sidecar.core.conversation import Conversation
from sidecar.core.decision import PolicyRef
from sidecar.core.model import (
    AnswerForm,
    Enough,
    InferenceError,
    InferenceFailure,
    LabelLogits,
    ModelOutput,
    Prompt,
    RouteTexts,
    SecondOpinionIds,
    TextOutput,
    by_language_model,
)
from sidecar.core.policy import ModelList, Policy, Route, WeightedModel
from sidecar.inference.load import Load
from sidecar.routing import CompiledPolicy, Warmth
from tests.doubles import StubModel, StubPrompt
from tests.waiting import until

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
    await until(lambda: len(model.warmed) == len(NAMES))

    assert while_busy == ["default"]


async def test_the_first_request_ends_that_haste() -> None:
    warm, model = warmth(lambda: True, quiet_s=0.01), StubModel()
    await warm.recover(model, only_late=False)
    warm.is_warm(POLICIES["default"])
    await settle()

    assert warmed(model) == ["default"]


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


def long_policy(tokens: int, inline: bool = False) -> CompiledPolicy:
    short = POLICIES["default"]
    prompt = replace(StubPrompt(short.policy), prefix_ids=tuple(range(tokens)))
    ref = PolicyRef("", 0, "long") if inline else PolicyRef("long", 1, "long")
    return replace(short, ref=ref, prompt=prompt)


def in_pieces(load: Load | None = None) -> Warmth:
    return Warmth(
        lambda: [long_policy(25)],
        timeout_s=1,
        busy=lambda: False,
        load=load or Load(),
        piece_tokens=10,
    )


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


def between_decisions(
    busy: Callable[[], bool], patience_s: float, clock: Callable[[], float] = lambda: 0.0
) -> Warmth:
    warm = Warmth(
        list,
        timeout_s=10,
        busy=busy,
        piece_tokens=100,
        gap_tokens=10,
        patience_s=patience_s,
        clock=clock,
    )
    warm.is_warm(POLICIES["default"])
    return warm


async def test_next_revision_is_computed_in_small_pieces_from_where_it_differs() -> None:
    warm, model = between_decisions(lambda: False, patience_s=1), StubModel()
    warm.succeed(long_policy(45), model, present=(*range(12), -1, *range(13, 45)))
    await settle()

    assert [len(ids) for ids in model.warmed] == [22, 32, 42, 45]
    assert warm.holds("long")


async def test_next_revision_that_another_begins_with_is_computed_as_a_whole() -> None:
    """What is held is longer, and is not what decisions will ask for."""
    warm, model = between_decisions(lambda: False, patience_s=1), StubModel()
    warm.succeed(long_policy(45), model, present=tuple(range(60)))
    await settle()

    assert [len(ids) for ids in model.warmed] == [45]


async def test_next_revision_waits_for_gaps_between_decisions() -> None:
    busy = True
    warm, model = between_decisions(lambda: busy, patience_s=60), StubModel()
    warm.succeed(long_policy(25), model)
    await settle()
    while_busy = list(model.warmed)
    busy = False
    await until(lambda: warm.holds("long"))

    assert while_busy == []
    assert [len(ids) for ids in model.warmed] == [10, 20, 25]


async def test_next_revision_comes_also_where_there_is_no_gap() -> None:
    warm, model = between_decisions(lambda: True, patience_s=0.01), StubModel()
    warm.succeed(long_policy(25), model)
    await until(lambda: warm.holds("long"))

    assert [len(ids) for ids in model.warmed] == [10, 20, 25]


async def test_next_revision_comes_in_larger_pieces_when_nobody_asks_any_more() -> None:
    now = 0.0
    warm, model = between_decisions(lambda: False, 1, lambda: now), StubModel()
    now = 5.0
    warm.succeed(long_policy(250), model)
    await settle()

    assert [len(ids) for ids in model.warmed] == [100, 200, 250]


async def test_patience_that_one_piece_does_not_use_is_left_to_the_others() -> None:
    looks = 0

    def busy() -> bool:
        nonlocal looks
        looks += 1
        return 1 < looks < 10

    # Of 5 ms each: nine are more than the patience of one piece.
    warm, model = between_decisions(busy, patience_s=0.02), StubModel()
    seen: list[int] = []

    async def noting(prefix_ids: object, timeout_s: float, routes: object = ()) -> None:
        seen.append(looks)

    model.warm = noting  # type: ignore[method-assign]
    warm.succeed(long_policy(25), model)
    await until(lambda: warm.holds("long"))

    assert seen == [1, 10, 11]


async def test_next_revision_that_is_abandoned_is_not_computed() -> None:
    busy = True
    warm, model = between_decisions(lambda: busy, patience_s=60), StubModel()
    warm.succeed(long_policy(25), model)
    await settle()
    warm.abandon(long_policy(25))
    busy = False
    await until(lambda: not warm.under_way)

    assert model.warmed == []
    assert not warm.holds("long")


async def test_without_any_policy_an_outage_ends_at_once() -> None:
    warm, model = Warmth(list, timeout_s=1, busy=lambda: False), StubModel()
    await warm.recover(model, only_late=False)
    assert model.calls == 0


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
    model.frozen = True
    inline = long_policy(25, inline=True)
    first = await warm.prepare(inline, model, within_s=0.01)
    await warm.close()
    model.frozen = False
    second = await warm.prepare(inline, model, within_s=1)

    assert (first, second) == (False, True)


async def test_a_server_that_was_only_late_must_decide_in_time_or_is_asked_again() -> None:
    warm = Warmth(lambda: [POLICIES["default"]], 5, lambda: False, in_time_s=1)
    model = StubModel()
    given: list[float] = []

    async def late(prompt: object, answer_form: object, timeout_s: float) -> ModelOutput:
        given.append(timeout_s)
        raise InferenceError(InferenceFailure.DEADLINE, "late")

    async def recovers(only_late: bool) -> None:
        with pytest.raises(InferenceError):
            await warm.recover(model, only_late=only_late)

    in_time = model.infer
    model.infer = late  # type: ignore[method-assign]
    for _ in range(7):
        await recovers(only_late=True)
    await recovers(only_late=False)
    await recovers(only_late=True)
    assert given == [1, 1, 2, 2, 4, 4, 5, 5, 1]

    model.infer = in_time  # type: ignore[method-assign]
    await warm.recover(model, only_late=True)
    model.infer = late  # type: ignore[method-assign]
    await recovers(only_late=True)
    assert given[-1] == 1


async def test_a_server_that_was_late_for_hours_is_still_asked_again() -> None:
    warm = Warmth(lambda: [POLICIES["default"]], 5, lambda: False, in_time_s=1)
    model = StubModel()
    for late in (True, False):
        model.fault = InferenceError(InferenceFailure.DEADLINE, "late") if late else None
        for _ in range(2100 if late else 1):
            with contextlib.suppress(InferenceError):
                await warm.recover(model, only_late=True)

    assert warm.holds("default")


def refusing(model: StubModel, *refused: str, times: int = 1_000_000) -> None:
    """Decisions by these policies are answered with an error, so many times."""
    answering, left = model.infer, times

    async def too_long(prompt: Prompt, answer_form: AnswerForm, timeout_s: float) -> ModelOutput:
        nonlocal left
        if NAMES[prompt.prefix_ids[0]] in refused and left:
            left -= 1
            raise InferenceError(InferenceFailure.ERROR, "exceeds the context")
        return await answering(prompt, answer_form, timeout_s)

    model.infer = too_long  # type: ignore[method-assign]


async def test_a_policy_that_the_server_refuses_keeps_no_other_from_being_decided() -> None:
    warm, model = warmth(), StubModel()
    refusing(model, "third")
    warm.is_warm(POLICIES["third"])
    await warm.recover(model, only_late=False)

    assert [name for name in NAMES if warm.holds(name)] == ["default"]


async def test_several_that_the_server_refuses_keep_no_other_from_being_decided() -> None:
    warm, model = warmth(), StubModel()
    refusing(model, "default", "third")
    warm.is_warm(POLICIES["third"])
    with pytest.raises(InferenceError):
        await warm.recover(model, only_late=False)
    await warm.recover(model, only_late=False)

    assert [name for name in NAMES if warm.holds(name)] == ["second"]


async def test_a_server_that_comes_back_while_it_is_asked_decides_by_the_policy_used_last() -> None:
    warm, model = warmth(), StubModel()
    refusing(model, "third", times=1)
    warm.is_warm(POLICIES["third"])
    await warm.recover(model, only_late=False)

    assert warm.holds("third")


@pytest.mark.parametrize(
    ("failure", "asked"),
    [
        (InferenceFailure.ERROR, 2),
        (InferenceFailure.DEADLINE, 1),
        (InferenceFailure.UNAVAILABLE, 1),
    ],
)
async def test_a_server_that_decides_by_no_policy_is_not_back(
    failure: InferenceFailure, asked: int
) -> None:
    warm, model = warmth(), StubModel()
    model.break_with(failure)
    with pytest.raises(InferenceError):
        await warm.recover(model, only_late=False)

    assert model.calls == asked


async def test_of_the_policies_remembered_as_warm_those_in_use_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sidecar.routing.warmth._REMEMBERED", 2)
    warm = warmth()
    for name in ("default", "second", "default", "third"):
        warm.in_time(POLICIES[name])

    assert [name for name in NAMES if warm.holds(name)] == ["default", "third"]


async def test_recovery_ends_with_a_decision_that_can_be_read() -> None:
    warm, model = in_pieces(), StubModel()

    async def garbage(prompt: object, answer_form: object, timeout_s: float) -> ModelOutput:
        raise InferenceError(InferenceFailure.ERROR, "generation_logits has shape (1, 2)")

    model.infer = garbage  # type: ignore[method-assign]
    with pytest.raises(InferenceError):
        await warm.recover(model, only_late=False)


class BothPrompt(StubPrompt):
    """Of a model with an encoder beside it, which is soon enough."""

    def render(self, conversation: Conversation) -> Prompt:
        second = SecondOpinionIds((1,), (0,), ((2,),), Enough(1.0, 0.0, 0.5))
        return replace(super().render(conversation), second_opinion=second)


async def test_recovery_ends_with_a_decision_of_the_language_model() -> None:
    """One of the encoder alone would leave the prefix to be read by the first caller."""
    policy = POLICIES["default"]
    both = replace(policy, prompt=BothPrompt(policy.policy))
    warm, model = Warmth(lambda: [both], 1, lambda: False), StubModel()
    asked: list[Prompt] = []

    async def keeping(prompt: Prompt, answer_form: object, timeout_s: float) -> ModelOutput:
        asked.append(prompt)
        return LabelLogits((1.0, 0.0))

    model.infer = keeping  # type: ignore[method-assign]
    await warm.recover(model, only_late=False)
    (prompt,) = asked
    assert prompt.second_opinion is not None
    assert prompt.second_opinion.enough is None
    assert warm.is_warm(both)


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


async def test_after_a_recovery_nothing_is_known_of_how_fast_the_server_is() -> None:
    load = Load()
    warm, model = in_pieces(load), StubModel()
    with load.working(100):
        pass
    await warm.recover(model, only_late=True)

    assert load.wait_s(100) is None


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
