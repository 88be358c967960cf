"""Questions in flight that are joined, and answers that are kept. The model is a stub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from sidecar.core.conversation import Conversation
from sidecar.core.decision import Source
from sidecar.core.model import InferenceFailure, Prompt
from sidecar.routing import DecisionCache
from tests.doubles import StubPrompt, talk
from tests.routing.worlds import HELLO, POLICY, World, a_world, request


@pytest.fixture
async def remembering() -> AsyncIterator[World]:
    async with a_world(DecisionCache(100_000, 60)) as made:
        yield made


async def test_the_same_words_under_another_policy_are_another_question(
    remembering: World,
) -> None:
    other = request(policy=replace(POLICY, name="other", description="another one"))
    # Compiled before, so that both are asked at the same time.
    await remembering.router.decide(replace(other, conversation=talk("hello")))
    before = remembering.model.calls

    await asyncio.gather(*(remembering.router.decide(each) for each in (HELLO, other)))
    at_once = remembering.model.calls
    third = await remembering.router.decide(
        request(policy=replace(POLICY, name="third", description="a third one"))
    )

    assert at_once == before + 2
    assert third.source is Source.MODEL


async def test_the_same_conversation_again_is_decided_by_the_cache(remembering: World) -> None:
    first = await remembering.router.decide(HELLO)
    asked = remembering.model.calls
    again = await remembering.router.decide(HELLO)

    assert (again.source.value, again.reason.value, again.route) == ("cache", "matched", "code")
    assert again.detail == f"Decided before: {first.detail}"
    assert (again.confidence, again.candidates) == (first.confidence, first.candidates)
    # The same words: there is nothing to tokenize.
    assert [step.step for step in again.steps] == ["cache", "answer", "selection", "total"]
    assert remembering.model.calls == asked
    assert again.id != first.id


async def test_another_conversation_that_reads_the_same_is_decided_by_the_cache(
    remembering: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(self: StubPrompt, conversation: Conversation) -> Prompt:
        return Prompt(self.prefix_ids, (7,), truncated=True)

    monkeypatch.setattr(StubPrompt, "render", cut)
    await remembering.router.decide(request(conversation=talk("first", "one", "same end")))
    again = await remembering.router.decide(request(conversation=talk("other", "two", "same end")))
    third = await remembering.router.decide(request(conversation=talk("other", "two", "same end")))

    assert [again.source.value, third.source.value] == ["cache", "cache"]
    assert "prompt" in [step.step for step in again.steps]
    assert "prompt" not in [step.step for step in third.steps]


async def test_a_cached_decision_is_explained_with_its_prompt(remembering: World) -> None:
    await remembering.router.decide(HELLO)
    explained = await remembering.router.decide(request(explain=True))

    assert explained.source.value == "cache"
    assert explained.explanation is not None
    assert explained.explanation.prompt == "4 tokens"


async def test_the_cache_answers_during_an_outage(remembering: World) -> None:
    await remembering.router.decide(HELLO)
    remembering.model.break_with(InferenceFailure.UNAVAILABLE)
    other = await remembering.router.decide(request(conversation=talk("something else")))
    known = await remembering.router.decide(HELLO)

    assert (other.reason.value, known.source.value) == ("model_unavailable", "cache")


async def test_a_cached_answer_is_weighed_by_the_minimum_of_its_own_request(
    remembering: World,
) -> None:
    remembering.model.logits = (8, 1, 1)
    await remembering.router.decide(request(min_confidence=0.1))
    strict = await remembering.router.decide(request(min_confidence=0.99))

    assert (strict.source.value, strict.reason.value) == ("fallback", "low_confidence")


@pytest.mark.parametrize(
    ("logits", "minimum", "fault", "reason"),
    [
        ((1.0, 1.0, 8.0), 0.0, None, "no_match"),
        ((3.0, 2.0, 2.0), 0.9, None, "low_confidence"),
        ((3.0, 0.0, 0.0), 0.0, InferenceFailure.ERROR, "model_error"),
    ],
    ids=["no match", "unsure", "failed"],
)
async def test_fallbacks_never_enter_the_cache(
    remembering: World,
    logits: tuple[float, ...],
    minimum: float,
    fault: InferenceFailure | None,
    reason: str,
) -> None:
    remembering.model.logits = logits
    if fault is not None:
        remembering.model.break_with(fault)
    decision = await remembering.router.decide(request(min_confidence=minimum))

    assert decision.reason.value == reason
    assert len(remembering.cache) == 0


async def test_a_decision_without_the_encoder_says_so_and_never_enters_the_cache(
    remembering: World,
) -> None:
    remembering.model.encoder_lost = True
    alone = await remembering.router.decide(HELLO)
    remembering.model.encoder_lost = False
    again = await remembering.router.decide(HELLO)

    assert (alone.source, alone.route) == (Source.MODEL, "code")
    assert alone.detail.endswith("Without the encoder, which did not come.")
    assert (again.source, again.route) == (Source.MODEL, "code")
    assert "Without" not in again.detail
