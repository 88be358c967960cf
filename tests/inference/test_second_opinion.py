"""A language model and an encoder apart: each may be there, late, broken or away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import numpy as np
import pytest

from sidecar.core.model import (
    Enough,
    InferenceError,
    InferenceFailure,
    LabelAnswer,
    LabelLogits,
    Prompt,
    SecondOpinionIds,
    TextAnswer,
    TextOutput,
    encoder_alone,
)
from sidecar.inference.second_opinion import TritonOpinions
from sidecar.inference.triton import TritonTarget
from tests.doubles import Clock
from tests.fake_triton import FakeTriton, Tensors, sent, serving
from tests.waiting import until

SECOND = SecondOpinionIds((7, 8, 9), (0, 0, 1), ((1, 2), (3,)), Enough(1.0, 0.0, 0.9))
PROMPT = Prompt((10, 11, 12), (20, 21), second_opinion=SECOND)
LABELS = LabelAnswer((5, 3, 1))
LOGITS = (5.0, 3.0, 1.0)
OPINION = (0.5, 1.5, 2.5)
AWAY = (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'second_opinion' is not found")
ASKED = {f"second_opinion_{name}" for name in ("request_ids", "request_types")} | {
    f"second_opinion_route_{name}" for name in ("ids", "lengths")
}


def opinion_of(*values: float) -> Tensors:
    return {"second_opinion_logits": np.array([values], np.float32)}


@dataclass
class TwoModels(FakeTriton):
    """The language model, and the encoder as a model of its own."""

    encoder: FakeTriton = field(default_factory=lambda: FakeTriton(opinion_of(*OPINION)))
    after_encoder: bool = False
    """The language model answers when the encoder has been asked."""

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model_name == "second_opinion":
            return await self.encoder.ModelInfer(request, context)
        if self.after_encoder:
            await until(lambda: bool(self.encoder.requests))
        return await super().ModelInfer(request, context)


@pytest.fixture
def fake() -> TwoModels:
    tokens = {"output_ids": np.array([[[1]]], np.int32), "sequence_length": np.array([[1]])}
    logits = np.arange(8, dtype=np.float32).reshape(1, 1, 1, 8)
    answer = {**tokens, "sequence_length": np.array([[1]], np.int32), "generation_logits": logits}
    return TwoModels(answer | {"output_log_probs": np.array([[[-0.5]]], np.float32)})


@asynccontextmanager
async def opinions_of(
    fake: FakeTriton, wait_s: float = 30, clock: Clock | None = None
) -> AsyncIterator[TritonOpinions]:
    async with serving(fake):
        target = TritonTarget(fake.address, "tensorrt_llm", 2, 2, 8)
        clocks = {"clock": clock} if clock else {}
        model = TritonOpinions(target, "second_opinion", wait_s, **clocks)
        try:
            yield model
        finally:
            await model.close()


async def test_each_model_is_asked_what_it_takes(fake: TwoModels) -> None:
    async with opinions_of(fake) as model:
        output = await model.infer(PROMPT, LABELS, 60)

    assert output == LabelLogits(LOGITS, OPINION)
    [language_model], [encoder] = fake.requests, fake.encoder.requests
    assert not ASKED & sent(language_model).keys()
    assert sent(encoder).keys() == ASKED
    assert sent(encoder)["second_opinion_request_ids"] == [7, 8, 9]
    assert [output.name for output in encoder.outputs] == ["second_opinion_logits"]


async def test_an_encoder_that_is_asked_alone_needs_no_language_model(fake: TwoModels) -> None:
    alone = encoder_alone(PROMPT)
    assert alone is not None
    async with opinions_of(fake) as model:
        assert await model.infer(alone, LABELS, 60) == LabelLogits((), OPINION)
    assert fake.requests == []


async def test_an_encoder_that_is_away_is_no_failure_of_the_model_server(fake: TwoModels) -> None:
    fake.encoder = FakeTriton(status=AWAY)
    alone = encoder_alone(PROMPT)
    assert alone is not None
    async with opinions_of(fake) as model:
        assert await model.infer(alone, LABELS, 60) == LabelLogits((), None)


async def test_texts_have_no_second_opinion(fake: TwoModels) -> None:
    async with opinions_of(fake) as model:
        output = await model.infer(PROMPT, TextAnswer('root ::= "a"', 3), 60)
    assert isinstance(output, TextOutput)
    assert fake.encoder.requests == []


@pytest.mark.parametrize(
    "fault",
    [
        FakeTriton(status=AWAY),
        FakeTriton(status=(grpc.StatusCode.INTERNAL, "the encoder failed")),
        FakeTriton(opinion_of(0.5)),
        FakeTriton(opinion_of(0.5, float("nan"), 1.0)),
        FakeTriton(),
    ],
    ids=["away", "failed", "too-few", "not-finite", "nothing"],
)
async def test_a_broken_encoder_leaves_the_language_model_alone(
    fake: TwoModels, fault: FakeTriton
) -> None:
    fake.encoder = replace(fault, requests=[])
    async with opinions_of(fake) as model:
        assert await model.infer(PROMPT, LABELS, 60) == LabelLogits(LOGITS)


async def test_a_late_encoder_is_waited_for_no_longer_than_its_time_and_is_cancelled(
    fake: TwoModels,
) -> None:
    fake.encoder = FakeTriton(silent=True)
    for wait_s in (0.3, 3, 30):
        async with opinions_of(fake, wait_s) as model:
            output = await model.infer(PROMPT, LABELS, 60)
            assert output == LabelLogits(LOGITS)
            # On a busy machine the time may be over before it gets there.
            if fake.encoder.requests:
                await asyncio.wait_for(fake.encoder.cancelled.wait(), 30)
                break
    assert fake.encoder.cancelled.is_set()


async def test_a_language_model_that_fails_fails_whatever_the_encoder_says(
    fake: TwoModels,
) -> None:
    fake.status = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
    fake.encoder, fake.after_encoder = FakeTriton(silent=True), True
    async with opinions_of(fake) as model:
        with pytest.raises(InferenceError) as error:
            await model.infer(PROMPT, LABELS, 60)
        await asyncio.wait_for(fake.encoder.cancelled.wait(), 30)
        assert error.value.failure is InferenceFailure.OVERLOADED
        assert model.encoder_lost == ""


async def test_a_lost_encoder_is_tried_once_a_second_until_it_answers(fake: TwoModels) -> None:
    clock = Clock()
    fake.encoder = FakeTriton(status=AWAY)
    async with opinions_of(fake, clock=clock) as model:
        for _ in range(3):
            assert model.encoder_lost == ""
            await model.infer(PROMPT, LABELS, 60)
        assert "unknown model" in model.encoder_lost
        await asyncio.gather(*(model.infer(PROMPT, LABELS, 60) for _ in range(4)))
        assert len(fake.encoder.requests) == 3

        clock.now += 1.5
        fake.encoder.status = (grpc.StatusCode.INTERNAL, "Stub process is not healthy")
        await asyncio.gather(*(model.infer(PROMPT, LABELS, 60) for _ in range(4)))
        await until(lambda: "not healthy" in model.encoder_lost)
        assert len(fake.encoder.requests) == 4

        clock.now += 1.5
        fake.encoder = FakeTriton(opinion_of(*OPINION))
        await model.infer(PROMPT, LABELS, 60)
        await until(lambda: model.encoder_lost == "")
        assert await model.infer(PROMPT, LABELS, 60) == LabelLogits(LOGITS, OPINION)


@pytest.mark.parametrize("alone", [False, True])
async def test_who_tries_a_lost_encoder_does_not_wait_for_it(fake: TwoModels, alone: bool) -> None:
    """Triton takes a second to say that the encoder's process is gone."""
    clock = Clock()
    fake.encoder = FakeTriton(status=AWAY)
    prompt = encoder_alone(PROMPT) if alone else PROMPT
    assert prompt is not None
    async with opinions_of(fake, 3600, clock) as model:
        for _ in range(3):
            await model.infer(PROMPT, LABELS, 60)
        clock.now += 1.5
        fake.encoder = FakeTriton(silent=True)
        async with asyncio.timeout(30):
            output = await model.infer(prompt, LABELS, 60)
        await until(lambda: bool(fake.encoder.requests))

    assert output == LabelLogits(() if alone else LOGITS)
    await asyncio.wait_for(fake.encoder.cancelled.wait(), 30)


async def test_a_lost_encoder_that_answers_too_late_stays_lost(fake: TwoModels) -> None:
    clock = Clock()
    fake.encoder = FakeTriton(status=AWAY)
    async with opinions_of(fake, 30, clock) as model:
        for _ in range(3):
            await model.infer(PROMPT, LABELS, 60)
        clock.now += 1.5
        fake.encoder = _Late(opinion_of(*OPINION), clock=clock)
        await model.infer(PROMPT, LABELS, 60)
        await until(lambda: model.encoder_lost == "no answer within 30.000 s")


@dataclass
class _Late(FakeTriton):
    clock: Clock = field(default_factory=Clock)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.clock.now += 31
        return await super().ModelInfer(request, context)


async def test_warming_reads_the_prefix_and_the_routes(fake: TwoModels) -> None:
    async with opinions_of(fake) as model:
        await model.warm((7, 8), 60, SECOND.routes)
    assert sent(fake.requests[0])["input_ids"] == [7, 8, 8]
    assert sent(fake.encoder.requests[0]).keys() == {
        "second_opinion_route_ids",
        "second_opinion_route_lengths",
    }


async def test_warming_is_the_language_model_s_where_the_encoder_is_away(fake: TwoModels) -> None:
    fake.encoder = FakeTriton(status=AWAY)
    async with opinions_of(fake) as model:
        await model.warm((7, 8), 60, SECOND.routes)
        fake.status = (grpc.StatusCode.UNAVAILABLE, "down")
        with pytest.raises(InferenceError):
            await model.warm((7, 8), 60, SECOND.routes)
