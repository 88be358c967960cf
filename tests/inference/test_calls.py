"""What a decision's trace is told of a call to Triton, and Triton of the trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from sidecar.core.model import (
    InferenceError,
    LabelAnswer,
    Prompt,
    SecondOpinionIds,
    TextAnswer,
)
from sidecar.inference.calls import decision_trace
from sidecar.inference.second_opinion import TritonOpinions
from sidecar.inference.triton import TritonModel, TritonTarget
from sidecar.inference.triton_text import TritonVllmModel
from tests.fake_triton import FakeTriton, serving
from tests.inference.test_triton_text import Letters
from tests.waiting import until

PROMPT, LABELS = Prompt((10,), (20,)), LabelAnswer((5, 3))
INFER, STREAM = (
    f"inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelStreamInfer")
)
SECOND = SecondOpinionIds((7,), (0,), ((1,), (2,)))


@dataclass
class Call:
    headers: dict[str, str]
    status: str = ""

    def end(self, status: str) -> None:
        assert not self.status, "ended before"
        self.status = status


@dataclass
class Trace:
    sampled: bool = True
    began: list[tuple[str, str, str]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def begin_call(self, address: str, method: str, model: str) -> Call | None:
        self.began.append((address, method, model))
        if not self.sampled:
            return None
        self.calls.append(Call({"traceparent": f"that of {model}"}))
        return self.calls[-1]


def begun(sampled: bool = True) -> Trace:
    """That of a decision which this test makes."""
    trace = Trace(sampled)
    decision_trace.set(trace)
    return trace


@dataclass
class Streaming(FakeTriton):
    """Serves a model as a stream of one response, or fails with `status`."""

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.metadata.append(dict(context.invocation_metadata()))
        if self.status is not None:
            await context.abort(*self.status)
        async for request in requests:
            response = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
            response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
            response.raw_output_contents.append(b"\x02\x00\x00\x00hi")
            yield service_pb2.ModelStreamInferResponse(infer_response=response)


def answering(**options: Any) -> Streaming:
    answer = {
        "output_ids": np.array([[[1]]], np.int32),
        "sequence_length": np.array([[1]], np.int32),
        "generation_logits": np.zeros((1, 1, 1, 8), np.float32),
        "second_opinion_logits": np.zeros((1, 2), np.float32),
    }
    return Streaming(answer, **options)


def target(fake: FakeTriton) -> TritonTarget:
    return TritonTarget(fake.address, "tensorrt_llm", 2, 2, 8)


@asynccontextmanager
async def model_of(fake: FakeTriton) -> AsyncIterator[TritonModel]:
    async with serving(fake):
        model = TritonModel(target(fake))
        try:
            yield model
        finally:
            await model.close()


def told(fake: FakeTriton) -> list[str | None]:
    return [metadata.get("traceparent") for metadata in fake.metadata]


async def test_a_call_carries_the_headers_of_its_trace_and_ends_with_its_status() -> None:
    fake, trace = answering(), begun()
    async with model_of(fake) as model:
        await model.infer(PROMPT, LABELS, 60)

    assert trace.began == [(fake.address, INFER, "tensorrt_llm")]
    assert [call.status for call in trace.calls] == ["OK"]
    assert told(fake) == ["that of tensorrt_llm"]


@pytest.mark.parametrize("trace", [None, Trace(sampled=False)], ids=["no trace", "not sampled"])
async def test_triton_is_told_of_no_trace_that_is_not_recorded(trace: Trace | None) -> None:
    decision_trace.set(trace)
    fake = answering()
    async with model_of(fake) as model:
        await model.infer(PROMPT, LABELS, 60)

    assert told(fake) == [None]


@pytest.mark.parametrize(
    "status",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["call", "stream"])
async def test_a_call_that_fails_ends_with_its_status(
    status: grpc.StatusCode, stream: bool
) -> None:
    fake, trace = answering(status=(status, "broken")), begun()
    async with serving(fake):
        model = TritonVllmModel(target(fake), Letters()) if stream else TritonModel(target(fake))
        with pytest.raises(InferenceError):
            await model.infer(PROMPT, TextAnswer("", 1) if stream else LABELS, 60)
        await model.close()

    assert [call.status for call in trace.calls] == [status.name]


async def test_a_call_that_nobody_waits_for_any_more_ends_as_cancelled() -> None:
    fake, trace = answering(silent=True), begun()
    async with model_of(fake) as model:
        waiter = asyncio.create_task(model.infer(PROMPT, LABELS, 60))
        await until(lambda: bool(fake.requests))
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)

    assert [call.status for call in trace.calls] == ["CANCELLED"]


async def test_each_of_two_models_has_a_call_of_its_own() -> None:
    fake, trace = answering(), begun()
    async with serving(fake):
        model = TritonOpinions(target(fake), "second_opinion", 60)
        await model.infer(Prompt((10,), (20,), second_opinion=SECOND), LABELS, 60)
        await model.close()

    assert sorted(model for _, _, model in trace.began) == ["second_opinion", "tensorrt_llm"]
    assert [call.status for call in trace.calls] == ["OK", "OK"]
    assert sorted(map(str, told(fake))) == ["that of second_opinion", "that of tensorrt_llm"]


@pytest.mark.parametrize("sampled", [True, False])
async def test_a_stream_is_a_call_too(sampled: bool) -> None:
    fake, trace = answering(), begun(sampled)
    async with serving(fake):
        model = TritonVllmModel(target(fake), Letters())
        await model.infer(PROMPT, TextAnswer("", 1), 60)
        await model.close()

    assert trace.began == [(fake.address, STREAM, "tensorrt_llm")]
    assert [call.status for call in trace.calls] == ["OK"] * sampled
    assert told(fake) == ["that of tensorrt_llm" if sampled else None]
    assert fake.metadata[0]["triton_grpc_error"] == "true"
