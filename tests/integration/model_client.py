"""Calls of the model in a Triton, as the sidecar makes them and with what it never sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.engines.tiny_models import END_ID

MANDATORY = ("output_ids", "sequence_length")


@dataclass(frozen=True)
class Call:
    """One request. `extra` adds or replaces tensors by name."""

    prefix: Sequence[int]
    suffix: Sequence[int]
    max_tokens: int = 1
    literals: tuple[str, ...] = ()
    outputs: tuple[str, ...] = MANDATORY
    end_id: int = END_ID
    extra: tuple[tuple[str, str, Any], ...] = ()

    def tensors(self) -> dict[str, tuple[str, Any]]:
        ids = [*self.prefix, *self.suffix]
        tensors: dict[str, tuple[str, Any]] = {
            "input_ids": ("INT32", [ids]),
            "input_lengths": ("INT32", [[len(ids)]]),
            "request_output_len": ("INT32", [[self.max_tokens]]),
            "end_id": ("INT32", [[self.end_id]]),
            "pad_id": ("INT32", [[0]]),
            "exclude_input_in_output": ("BOOL", [[True]]),
            "return_log_probs": ("BOOL", [["output_log_probs" in self.outputs]]),
            "return_generation_logits": ("BOOL", [["generation_logits" in self.outputs]]),
            "return_perf_metrics": ("BOOL", [["kv_cache_reused_blocks" in self.outputs]]),
        }
        if self.prefix:
            ranges = {"starts": 0, "ends": len(self.prefix), "priorities": 90, "durations_ms": -1}
            for name, value in ranges.items():
                tensors[f"retention_token_range_{name}"] = ("INT32", [[value]])
        if self.literals:
            guide = "root ::= " + " | ".join(json.dumps(literal) for literal in self.literals)
            tensors["guided_decoding_guide_type"] = ("BYTES", [[b"ebnf_grammar"]])
            tensors["guided_decoding_guide"] = ("BYTES", [[guide.encode()]])
        return {**tensors, **{name: (kind, value) for name, kind, value in self.extra}}


class Client:
    """Calls the model as the sidecar does."""

    def __init__(self, address: str) -> None:
        self._client = InferenceServerClient(address)

    async def close(self) -> None:
        await self._client.close()

    async def __call__(self, call: Call, timeout_s: float = 60, version: str = "") -> InferResult:
        inputs = []
        for name, (kind, value) in call.tensors().items():
            dtype = {"INT32": np.int32, "BOOL": np.bool_, "FP32": np.float32}.get(kind, np.object_)
            values: npt.NDArray[Any] = np.array(value, dtype)
            tensor = InferInput(name, list(values.shape), kind)
            tensor.set_data_from_numpy(values)
            inputs.append(tensor)
        outputs = [InferRequestedOutput(name) for name in call.outputs]
        return await self._client.infer(
            "tensorrt_llm",
            inputs,
            model_version=version,
            outputs=outputs,
            client_timeout=timeout_s,
        )


async def endless(client: Client, suffix: Sequence[int], tokens: int) -> asyncio.Task[InferResult]:
    """A request that the model is working on, for longer than a test may take."""
    # No token ends it: -1 is none.
    task = asyncio.create_task(client(Call((), suffix, max_tokens=tokens, end_id=-1)))
    await asyncio.sleep(0.5)
    assert not task.done()
    return task


async def gone(task: asyncio.Task[InferResult]) -> None:
    """Cancel a call as a caller who leaves does."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def status_of(call: Awaitable[InferResult]) -> tuple[str, str]:
    """gRPC status and text of a call that fails."""
    with pytest.raises(InferenceServerException) as error:
        await call
    return str(error.value.status()), str(error.value.message())
