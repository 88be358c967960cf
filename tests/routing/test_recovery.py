"""What is warmed after an outage, and when one is over. The model is a stub that counts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from sidecar.core.conversation import Conversation
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
)
from sidecar.inference.load import Load
from sidecar.routing import Warmth
from tests.doubles import StubModel, StubPrompt
from tests.routing.warming import NAMES, POLICIES, in_pieces, long_policy, settle, warmed, warmth
from tests.waiting import until


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


async def test_it_ends_even_within_a_policy_unless_that_is_the_one_asked_for() -> None:
    long, model = long_policy(60), _AskedMeanwhile()
    warm = Warmth(
        lambda: [POLICIES["default"], long],
        timeout_s=1,
        busy=lambda: True,
        quiet_s=0.01,
        piece_tokens=20,
    )
    model.meanwhile = lambda: warm.is_warm(POLICIES["default"])
    await warm.recover(model, only_late=False)
    await settle()
    before = [len(ids) for ids in model.warmed if len(ids) > 1]
    warm.request(long, model)
    await until(lambda: warm.holds("long"))
    await warm.close()

    assert before == [20]
    assert [len(ids) for ids in model.warmed if len(ids) > 1] == [20, 20, 40, 60]


class _AskedMeanwhile(StubModel):
    """A request comes while a piece is computed."""

    meanwhile: Callable[[], object]

    async def warm(
        self, prefix_ids: Sequence[int], timeout_s: float, routes: RouteTexts = ()
    ) -> None:
        self.meanwhile()
        await super().warm(prefix_ids, timeout_s, routes)


async def test_without_any_policy_an_outage_ends_at_once() -> None:
    warm, model = Warmth(list, timeout_s=1, busy=lambda: False), StubModel()
    await warm.recover(model, only_late=False)
    assert model.calls == 0


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


async def test_after_a_recovery_nothing_is_known_of_how_fast_the_server_is() -> None:
    load = Load()
    warm, model = in_pieces(load), StubModel()
    with load.working(100):
        pass
    await warm.recover(model, only_late=True)

    assert load.wait_s(100) is None
