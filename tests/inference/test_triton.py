"""The Triton client over a real socket: what it sends, what it reads, what every fault becomes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
import structlog

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
from sidecar.inference.triton import TritonModel, TritonTarget
from tests.fake_triton import FakeTriton, Tensors, sent, serving
from tests.silenced import way_to

PROMPT = Prompt((10, 11, 12), (20, 21))
LABELS = LabelAnswer((5, 3))
TEXT = TextAnswer('root ::= "a" | "b"', 7)
VOCABULARY = 8


def ids(*tokens: int) -> Tensors:
    return {
        "output_ids": np.array([[tokens]], np.int32),
        "sequence_length": np.array([[len(tokens)]], np.int32),
    }


def logits(*shape: int) -> Tensors:
    count = int(np.prod(shape))
    return {
        **ids(1),
        "generation_logits": np.arange(count, dtype=np.float32).reshape(shape),
    }


def text(*tokens: int) -> Tensors:
    log_probs = -np.arange(len(tokens), dtype=np.float32).reshape(1, 1, -1)
    return {**ids(*tokens), "output_log_probs": log_probs}


@asynccontextmanager
async def model_of(fake: FakeTriton, engine: str = "") -> AsyncIterator[TritonModel]:
    async with serving(fake):
        target = TritonTarget(fake.address, "tensorrt_llm", 2, 2, VOCABULARY, engine=engine)
        model = TritonModel(target)
        try:
            yield model
        finally:
            await model.close()


async def test_a_proxy_for_the_internet_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with model_of(FakeTriton(logits(1, 1, 1, VOCABULARY))) as model:
        assert await model.infer(PROMPT, LABELS, 60)


async def test_label_request_sends_the_contract_and_reads_the_labels_logits() -> None:
    fake = FakeTriton(logits(1, 1, 1, VOCABULARY))
    async with model_of(fake) as model:
        output = await model.infer(PROMPT, LABELS, 60)

    assert output == LabelLogits((5.0, 3.0))
    assert sent(fake.requests[0]) == {
        "input_ids": [10, 11, 12, 20, 21],
        "input_lengths": [5],
        "request_output_len": [1],
        "end_id": [2],
        "pad_id": [2],
        "runtime_top_k": [1],
        "return_generation_logits": [True],
        "retention_token_range_starts": [0],
        "retention_token_range_ends": [3],
        "retention_token_range_priorities": [90],
        "retention_token_range_durations_ms": [-1],
    }
    assert [output.name for output in fake.requests[0].outputs] == [
        "output_ids",
        "sequence_length",
        "generation_logits",
    ]


@pytest.mark.parametrize("columns", [2, VOCABULARY])
async def test_a_model_that_takes_label_ids_is_sent_them_and_may_answer_with_their_logits_alone(
    columns: int,
) -> None:
    fake = FakeTriton(logits(1, 1, 1, columns))
    async with serving(fake):
        target = TritonTarget(fake.address, "tensorrt_llm", 2, 2, VOCABULARY, label_ids=True)
        model = TritonModel(target)
        output = await model.infer(PROMPT, LABELS, 10)
        await model.close()

    assert output == LabelLogits((0.0, 1.0) if columns == 2 else (5.0, 3.0))
    assert sent(fake.requests[0])["label_ids"] == [5, 3]


async def test_text_request_sends_the_guide_and_reads_up_to_the_end_token() -> None:
    fake = FakeTriton(text(4, 6, 2))
    async with model_of(fake) as model:
        output = await model.infer(PROMPT, TEXT, 60)

    assert output == TextOutput((4, 6), (0.0, -1.0))
    tensors = sent(fake.requests[0])
    assert tensors["guided_decoding_guide_type"] == [b"ebnf_grammar"]
    assert tensors["guided_decoding_guide"] == [TEXT.guide.encode()]
    assert tensors["request_output_len"] == [7]


async def test_request_ids_are_unique_because_the_backend_cancels_by_them() -> None:
    fake = FakeTriton(logits(1, 1, 1, VOCABULARY))
    async with model_of(fake) as model:
        await asyncio.gather(*(model.infer(PROMPT, LABELS, 60) for _ in range(50)))

    seen = {request.id for request in fake.requests}
    assert len(seen) == 50
    assert all(int(number) < 2**63 for number in seen)


async def test_warm_up_marks_the_whole_prefix() -> None:
    fake = FakeTriton(ids(1))
    async with model_of(fake) as model:
        await model.warm((7, 8, 9), 60)

    tensors = sent(fake.requests[0])
    assert tensors["input_ids"] == [7, 8, 9, 9]
    assert tensors["retention_token_range_ends"] == [3]


SECOND = SecondOpinionIds((7, 8, 9), (0, 0, 1), ((1, 2), (3,)))
BOTH = replace(PROMPT, second_opinion=SECOND)
LABELS_3 = LabelAnswer((5, 3, 1))


def with_opinion(*values: float, shape: tuple[int, ...] = (1, 3)) -> Tensors:
    opinion = np.array(values, np.float32).reshape(shape)
    return {**logits(1, 1, 1, VOCABULARY), "second_opinion_logits": opinion}


async def test_a_second_opinion_is_asked_for_along_with_the_labels() -> None:
    fake = FakeTriton(with_opinion(0.5, 1.5, 2.5))
    async with model_of(fake) as model:
        output = await model.infer(BOTH, LABELS_3, 60)

    assert output == LabelLogits((5.0, 3.0, 1.0), (0.5, 1.5, 2.5))
    tensors = sent(fake.requests[0])
    assert tensors["second_opinion_request_ids"] == [7, 8, 9]
    assert tensors["second_opinion_request_types"] == [0, 0, 1]
    assert tensors["second_opinion_route_ids"] == [1, 2, 3]
    assert tensors["second_opinion_route_lengths"] == [2, 1]
    assert fake.requests[0].outputs[-1].name == "second_opinion_logits"


ENOUGH = replace(BOTH, second_opinion=replace(SECOND, enough=Enough(0.75, -0.5, 0.875)))


def by_encoder_alone() -> Tensors:
    return {**with_opinion(0.5, 1.5, 2.5), **logits(1, 1, 0, 3)}


async def test_what_is_enough_is_told_and_the_encoder_may_decide_alone() -> None:
    fake = FakeTriton(by_encoder_alone())
    async with model_of(fake) as model:
        output = await model.infer(ENOUGH, LABELS_3, 60)

    assert output == LabelLogits((), (0.5, 1.5, 2.5))
    assert sent(fake.requests[0])["second_opinion_enough"] == [0.75, -0.5, 0.875]


async def test_an_encoder_can_be_asked_alone() -> None:
    alone = encoder_alone(ENOUGH)
    assert alone is not None
    fake = FakeTriton(by_encoder_alone())
    async with model_of(fake) as model:
        for prompt in (ENOUGH, alone):
            await model.infer(prompt, LABELS_3, 60)

    assert [sent(each).get("second_opinion_alone") for each in fake.requests] == [None, [True]]


@pytest.mark.parametrize("prompt", [PROMPT, BOTH], ids=["no encoder", "never enough"])
def test_an_encoder_that_never_decides_is_not_asked_alone(prompt: Prompt) -> None:
    assert encoder_alone(prompt) is None


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [(BOTH, by_encoder_alone()), (ENOUGH, logits(1, 1, 0, 3))],
    ids=["nobody asked it to", "it said nothing"],
)
async def test_without_any_decision_it_is_a_model_error(prompt: Prompt, answer: Tensors) -> None:
    async with model_of(FakeTriton(answer)) as model:
        with pytest.raises(InferenceError, match="generation_logits") as caught:
            await model.infer(prompt, LABELS_3, 60)

    assert caught.value.failure is InferenceFailure.ERROR


async def test_a_server_without_encoder_gives_no_second_opinion() -> None:
    async with model_of(FakeTriton(logits(1, 1, 1, VOCABULARY))) as model:
        assert await model.infer(BOTH, LABELS_3, 60) == LabelLogits((5.0, 3.0, 1.0))


@pytest.mark.parametrize(
    "answer",
    [
        with_opinion(1, 2, shape=(1, 2)),
        with_opinion(1, 2, 3, shape=(3,)),
        with_opinion(1, 2, np.nan),
    ],
    ids=["too few", "flat", "not finite"],
)
async def test_a_bad_second_opinion_is_a_model_error(answer: Tensors) -> None:
    async with model_of(FakeTriton(answer)) as model:
        with pytest.raises(InferenceError, match="second_opinion_logits") as caught:
            await model.infer(BOTH, LABELS_3, 60)

    assert caught.value.failure is InferenceFailure.ERROR


async def test_routes_are_warmed_with_the_prefix() -> None:
    fake = FakeTriton(ids(1))
    async with model_of(fake) as model:
        await model.warm((7, 8, 9), 5, SECOND.routes)

    tensors = sent(fake.requests[0])
    assert tensors["second_opinion_route_ids"] == [1, 2, 3]
    assert "second_opinion_request_ids" not in tensors


NOT_FINITE = {**logits(1, 1, 1, VOCABULARY), "generation_logits": np.full((1, 1, 1, 8), np.nan)}
NOT_FINITE["generation_logits"] = NOT_FINITE["generation_logits"].astype(np.float32)

BAD_ANSWERS: dict[str, Tensors] = {
    "nothing at all": {},
    "no logits": ids(1),
    "too few dimensions": logits(1, 1, VOCABULARY),
    "two steps": logits(1, 1, 2, VOCABULARY),
    "smaller vocabulary": logits(1, 1, 1, VOCABULARY - 1),
    "not finite": NOT_FINITE,
    "integers": {**ids(1), "generation_logits": np.zeros((1, 1, 1, VOCABULARY), np.int32)},
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
async def test_bad_label_answer_is_a_model_error(answer: Tensors) -> None:
    async with model_of(FakeTriton(answer)) as model:
        with pytest.raises(InferenceError) as caught:
            await model.infer(PROMPT, LABELS, 60)

    assert caught.value.failure is InferenceFailure.ERROR


@pytest.mark.parametrize(
    "answer",
    [{}, ids(1, 2), {**text(1, 2), "output_ids": np.array([1, 2], np.int32)}],
    ids=["nothing", "no log-probs", "flat ids"],
)
async def test_bad_text_answer_is_a_model_error(answer: Tensors) -> None:
    async with model_of(FakeTriton(answer)) as model:
        with pytest.raises(InferenceError) as caught:
            await model.infer(PROMPT, TEXT, 60)

    assert caught.value.failure is InferenceFailure.ERROR


async def test_bytes_that_are_not_the_announced_tensor_are_a_model_error() -> None:
    async with model_of(FakeTriton(logits(1, 1, 1, VOCABULARY), raw=b"\x00" * 7)) as model:
        with pytest.raises(InferenceError) as caught:
            await model.infer(PROMPT, LABELS, 60)

    assert caught.value.failure is InferenceFailure.ERROR


Code = grpc.StatusCode
STATUSES = {
    "queue full": (Code.UNAVAILABLE, "Exceeds maximum queue size", InferenceFailure.OVERLOADED),
    "engine's queue full": (
        Code.INTERNAL,
        "[TensorRT-LLM][ERROR] Maximum queue size of 256 has been reached, please try again later",
        InferenceFailure.OVERLOADED,
    ),
    "going down": (Code.UNAVAILABLE, "Server exiting", InferenceFailure.UNAVAILABLE),
    "unknown model": (Code.NOT_FOUND, "unknown model", InferenceFailure.UNAVAILABLE),
    "cancelled by the server": (Code.CANCELLED, "gone", InferenceFailure.UNAVAILABLE),
    "refused tensor": (Code.INVALID_ARGUMENT, "shape", InferenceFailure.ERROR),
    "exception in the model": (Code.INTERNAL, "boom", InferenceFailure.ERROR),
}


@pytest.mark.parametrize("status", STATUSES.values(), ids=STATUSES.keys())
async def test_status(status: tuple[grpc.StatusCode, str, InferenceFailure]) -> None:
    code, message, failure = status
    async with model_of(FakeTriton(status=(code, message))) as model:
        with pytest.raises(InferenceError) as caught:
            await model.infer(PROMPT, LABELS, 60)

    assert caught.value.failure is failure


async def test_silence_ends_at_the_timeout_and_reaches_the_server_as_a_cancellation() -> None:
    fake = FakeTriton(silent=True)
    async with model_of(fake) as model:
        for timeout_s in (0.05, 0.5, 5, 50):
            with pytest.raises(InferenceError) as caught:
                await model.infer(PROMPT, LABELS, timeout_s)
            if fake.requests:  # On a busy machine the time may be over before it gets there.
                break
        await asyncio.wait_for(fake.cancelled.wait(), 60)

    assert caught.value.failure is InferenceFailure.DEADLINE


async def test_a_cancelled_task_cancels_the_call_in_the_server() -> None:
    fake = FakeTriton(silent=True)
    async with model_of(fake) as model:
        task = asyncio.create_task(model.infer(PROMPT, LABELS, 60))
        while not fake.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.wait_for(fake.cancelled.wait(), 60)

    assert task.cancelled()


async def test_connection_that_fell_silent_is_given_up() -> None:
    """Long before a minute is over, for which gRPC by itself waits for a ping's answer."""
    fake = FakeTriton(logits(1, 1, 1, VOCABULARY))
    async with serving(fake), way_to(int(fake.address.rpartition(":")[2])) as way:
        target = TritonTarget(
            *(way.address, "tensorrt_llm", 2, 2, VOCABULARY),
            keepalive_ms=1000,
            keepalive_timeout_ms=500,
        )
        model = TritonModel(target)
        await model.infer(PROMPT, LABELS, 60)
        way.silent = True
        with pytest.raises(InferenceError) as caught:
            await model.infer(PROMPT, LABELS, 30)
        await model.close()

    assert caught.value.failure is InferenceFailure.UNAVAILABLE


async def test_nobody_listens() -> None:
    model = TritonModel(TritonTarget("127.0.0.1:1", "tensorrt_llm", 2, 2, VOCABULARY))
    with pytest.raises(InferenceError) as caught:
        await model.infer(PROMPT, LABELS, 60)
    await model.close()

    assert caught.value.failure is InferenceFailure.UNAVAILABLE


@pytest.mark.parametrize("ready", [True, False])
async def test_readiness(ready: bool) -> None:
    async with model_of(FakeTriton(ready=ready)) as model:
        if ready:
            await model.check_ready(5)
        else:
            with pytest.raises(InferenceError, match="not ready"):
                await model.check_ready(5)


@pytest.mark.parametrize(
    ("served", "found"),
    [("ours@1", ""), ("ours@2", "ours@2"), ("", None), (None, None)],
    ids=["the same", "another", "it does not say", "it cannot be asked"],
)
async def test_which_engine_is_served_is_found_out_and_logged(
    served: str | None, found: str | None
) -> None:
    fake = FakeTriton(engine=served)
    async with model_of(fake, "ours@1") as model:
        with structlog.testing.capture_logs() as logged:
            for _ in range(3):
                await model.check_ready(5)

        assert model.other_engine == found
    expected = [("warning", "ours@2", "ours@1")] if found else []
    assert [(line["log_level"], line["served"], line["routing_model"]) for line in logged] == (
        expected
    )


async def test_the_engine_of_a_server_that_was_away_is_looked_at_again() -> None:
    fake = FakeTriton(engine="ours@2")
    async with model_of(fake, "ours@1") as model:
        await model.check_ready(5)
        fake.engine = "ours@1"
        await model.check_ready(5)
        assert model.other_engine == "ours@2"
        fake.ready = False
        with pytest.raises(InferenceError):
            await model.check_ready(5)
        fake.ready = True
        await model.check_ready(5)

        assert model.other_engine == ""


class _Noise(grpc.GenericRpcHandler):
    """Answers every call with bytes that are no message."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        async def behavior(request: bytes, context: object) -> bytes:
            return b"\xff\xfe" * 100

        return grpc.unary_unary_rpc_method_handler(behavior)


@pytest.mark.parametrize("asked", ["infer", "warm", "check_ready"])
async def test_bytes_that_are_no_message_are_an_error_of_the_server(asked: str) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Noise(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    model = TritonModel(TritonTarget(f"127.0.0.1:{port}", "tensorrt_llm", 2, 2, VOCABULARY))
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "infer": lambda: model.infer(PROMPT, LABELS, 60),
        "warm": lambda: model.warm((1, 2), 60),
        "check_ready": lambda: model.check_ready(5),
    }
    try:
        with pytest.raises(InferenceError) as caught:
            await calls[asked]()
    finally:
        await model.close()
        await server.stop(None)

    assert caught.value.failure is InferenceFailure.ERROR
    assert "not a message" in str(caught.value)
