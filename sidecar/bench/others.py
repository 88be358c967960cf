"""Measurements of what the sidecar is compared with."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar.bench import traffic
from sidecar.bench.echo_server import METHOD
from sidecar.bench.measuring import Sample, closed_loop
from sidecar.bench.processes import resident_bytes
from sidecar.bench.rows import Row, row
from sidecar.bench.scale import Scale
from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.model import CompiledPrompt, InferenceError, by_language_model
from sidecar.inference.triton import TritonModel

ECHO_REPOSITORY = Path(__file__).with_name("echo_model")

ALONE = "The model server alone"
LLAMA = "llama.cpp's server"
ONE_OUT = ", 1 out"
"""Ends the names of its rows of one token."""

_TIMEOUT_S = 60.0
_LLAMA_TIMEOUT_S = 300.0
"""Its threads wait for each other by spinning: beside other load it takes many times as long."""


def conversation(number: int, words: int) -> Conversation:
    """As `traffic.request` has it."""
    return conversation_of(traffic.request(number, words, ""))


def conversation_of(request: routing_pb2.RouteRequest) -> Conversation:
    """Of a request of this package: messages of one text each."""
    return Conversation(
        tuple(
            Message(
                Role.ASSISTANT if each.role == routing_pb2.ROLE_ASSISTANT else Role.USER,
                each.parts[0].text,
            )
            for each in request.messages
        )
    )


async def model_alone(
    model: TritonModel,
    prompt: CompiledPrompt,
    asked: tuple[str, Callable[[int], Conversation]],
    scale: Scale,
    rates: list[float],
) -> AsyncIterator[Row]:
    """The routing model in Triton, asked without a sidecar.

    Args:
        asked: what the conversations are, for the tables, and conversation `number`.
        rates: gets the decisions a second of each row.
    """
    kind, conversations = asked

    async def call(number: int) -> Sample:
        rendered = prompt.render(conversations(number))
        started = time.perf_counter()
        try:
            output = await model.infer(rendered, prompt.answer_form, _TIMEOUT_S)
        except InferenceError as error:
            return Sample(time.perf_counter() - started, f"failed:{error.failure.name}")
        took = time.perf_counter() - started
        return Sample(took, "model", by_model=True, by_encoder=not by_language_model(output))

    await call(0)
    tokens = len(prompt.prefix_ids) + len(prompt.render(conversations(1)).suffix_ids)
    for concurrency in (1, 4, 8):
        calls = scale.samples * min(concurrency, 4)
        measured = await closed_loop(call, concurrency, calls)
        rates.append(measured.model_per_second)
        yield row(
            ALONE,
            kind,
            measured,
            message_bytes=4 * tokens,
            concurrency=concurrency,
            note=f"{tokens} tokens, {len(prompt.prefix_ids)} of them held",
        )


async def grpc_echo(address: str, message: bytes, scale: Scale) -> AsyncIterator[Row]:
    """A `grpc.aio` server that does nothing."""
    async with grpc.aio.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        echo: Any = channel.unary_unary(METHOD)
        await echo(message, wait_for_ready=True, timeout=_TIMEOUT_S)

        async def call(_: int) -> Sample:
            started = time.perf_counter()
            await echo(message, timeout=_TIMEOUT_S)
            return Sample(time.perf_counter() - started, "echo")

        for concurrency in (1, 32):
            measured = await closed_loop(call, concurrency, scale.fast_calls)
            yield row(
                "Echoes",
                "bare grpc.aio",
                measured,
                message_bytes=len(message),
                concurrency=concurrency,
            )


async def triton_echo(address: str, tokens: int, scale: Scale) -> AsyncIterator[Row]:
    """Triton's Python backend that does nothing."""
    client = InferenceServerClient(address, channel_args=[("grpc.enable_http_proxy", 0)])
    ids = np.arange(tokens, dtype=np.int32).reshape(1, -1)
    tensor = InferInput("input_ids", [1, tokens], "INT32")
    tensor.set_data_from_numpy(ids)

    async def call(_: int) -> Sample:
        started = time.perf_counter()
        await client.infer("echo", [tensor], client_timeout=_TIMEOUT_S)
        return Sample(time.perf_counter() - started, "echo")

    try:
        await call(0)
        for concurrency in (1, 8):
            measured = await closed_loop(call, concurrency, scale.fast_calls)
            yield row(
                "Echoes",
                "bare Triton, Python backend",
                measured,
                message_bytes=4 * tokens,
                concurrency=concurrency,
            )
    finally:
        await client.close()


async def llama(address: str, prompt: CompiledPrompt, scale: Scale) -> AsyncIterator[Row]:
    """llama.cpp's server with the same prompts and its prompt cache; the wheel is for AVX2.

    Args:
        prompt: of the standard number of routes.
    """
    words = scale.standard_words
    title = f"{scale.standard_routes} routes, {words} words"
    timeout = aiohttp.ClientTimeout(total=_LLAMA_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as http:

        async def complete(number: int, tokens: int) -> Sample:
            rendered = prompt.render(conversation(number, words))
            body = {
                "prompt": [*rendered.prefix_ids, *rendered.suffix_ids],
                "n_predict": tokens,
                "cache_prompt": True,
                "temperature": 0,
            }
            started = time.perf_counter()
            async with http.post(f"{address}/completion", json=body) as answer:
                await answer.read()
                source = "llama.cpp" if answer.status == 200 else f"failed:{answer.status}"
            return Sample(time.perf_counter() - started, source)

        await complete(0, 1)
        length = len(prompt.prefix_ids) + len(prompt.render(conversation(1, words)).suffix_ids)
        for tokens in (1, 8):

            async def call(number: int, tokens: int = tokens) -> Sample:
                return await complete(number, tokens)

            measured = await closed_loop(call, 1, max(scale.samples // 2, 1))
            yield row(
                LLAMA,
                f"{title}, {tokens} out",
                measured,
                message_bytes=4 * length,
                concurrency=1,
                note=f"{length} tokens, prompt cache on, wheel built for AVX2",
            )


def memory_row(name: str, pids: Sequence[int]) -> Row:
    """Resident memory of processes, of which what is shared with others is counted in each."""
    total = sum(map(resident_bytes, pids))
    return Row("Memory and start", name, note=f"{total / 2**20:,.0f} MiB resident")
