"""The CPU model in a real Triton: what a client sees."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferResult
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from sidecar.engines import (
    CpuRepositoryOptions,
    EngineInfo,
    build_cpu_engine,
    render_cpu_repository,
)
from sidecar.engines.engine_directory import compiled_folder
from sidecar.local import LocalError, TritonServer
from tests.engines import reference
from tests.engines.tiny_models import LLAMA, tiny_tokenizer
from tests.integration.model_client import (
    MANDATORY,
    Call,
    Client,
    endless,
    gone,
    status_of,
)
from tests.waiting import until

PREFIX, SUFFIXES = reference.prompts(LLAMA.vocab)
EXPECTED = json.loads((reference.FIXTURES / "llama.json").read_text())
TOKENIZER = tiny_tokenizer(LLAMA.vocab)
ENDLESS = 30_000
"""Answer tokens that take far longer than a test may: who waits for them has failed."""

QUEUE = 8
ALL_OUTPUTS = (
    *MANDATORY,
    "cum_log_probs",
    "output_log_probs",
    "generation_logits",
    "kv_cache_reused_blocks",
    "kv_cache_alloc_new_blocks",
    "kv_cache_alloc_total_blocks",
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> EngineInfo:
    """The tiny Llama with a context long enough for answers that do not end."""
    folder = tmp_path_factory.mktemp("engine")
    weights = LLAMA.write(folder / "weights")
    config = json.loads((weights / "config.json").read_text())
    config["max_position_embeddings"] = 2 * ENDLESS
    (weights / "config.json").write_text(json.dumps(config))
    return build_cpu_engine(weights, folder / "Köln 1", model_id="tiny", prompt_format="compact-v1")


@pytest.fixture(scope="module")
def triton(engine: EngineInfo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    options = CpuRepositoryOptions(
        max_batch_size=4,
        max_queue_size=QUEUE,
        max_output_tokens=ENDLESS,
        threads=1,
        precision="f32",
    )
    folder = render_cpu_repository(engine.path, tmp_path_factory.mktemp("repo"), options=options)
    with TritonServer(folder, exit_timeout_s=0) as server:
        yield server


@pytest.fixture
async def model(triton: TritonServer) -> AsyncIterator[Client]:
    client = Client(triton.grpc_address)
    yield client
    await client.close()


def label(prefix: Sequence[int], suffix: Sequence[int]) -> Call:
    return Call(prefix, suffix, outputs=(*MANDATORY, "generation_logits"))


def logits(result: InferResult) -> Any:
    values = result.as_numpy("generation_logits")
    assert values is not None
    return values[0, 0, 0]


def text(result: InferResult) -> str:
    return str(TOKENIZER.decode(result.as_numpy("output_ids")[0, 0].tolist()))


async def test_label_logits_are_the_reference(model: Client) -> None:
    for suffix, right in zip(SUFFIXES, EXPECTED["logits"], strict=True):
        result = await model(label(PREFIX, suffix))
        np.testing.assert_allclose(logits(result), right, rtol=0, atol=2e-4)


async def test_calls_that_arrive_together_get_their_own_logits(model: Client) -> None:
    results = await asyncio.gather(*(model(label(PREFIX, s)) for s in SUFFIXES * 2))
    np.testing.assert_allclose(
        [logits(result) for result in results], EXPECTED["logits"] * 2, rtol=0, atol=2e-4
    )


async def test_text_is_one_of_the_literals(model: Client) -> None:
    for suffix, right in zip(SUFFIXES, EXPECTED["literal"], strict=True):
        outputs = (*MANDATORY, "output_log_probs", "cum_log_probs")
        call = Call(PREFIX, suffix, 40, reference.LITERALS, outputs)
        result = await model(call)
        assert text(result) == right["text"]
        (total,) = result.as_numpy("cum_log_probs")[0]
        assert total == pytest.approx(right["log_prob"], abs=1e-3)


async def test_text_and_labels_may_arrive_together(model: Client) -> None:
    outputs = (*MANDATORY, "output_log_probs")
    texts = [Call(PREFIX, s, 40, reference.LITERALS, outputs) for s in SUFFIXES]
    labels = [label(PREFIX, suffix) for suffix in SUFFIXES]
    mixed = [call for pair in zip(texts, labels, strict=True) for call in pair]
    results = await asyncio.gather(*(model(call) for call in mixed))
    assert [text(result) for result in results[::2]] == [e["text"] for e in EXPECTED["literal"]]
    np.testing.assert_allclose(
        [logits(result) for result in results[1::2]], EXPECTED["logits"], rtol=0, atol=2e-4
    )


async def test_free_text_is_the_reference(model: Client) -> None:
    for suffix, right in zip(SUFFIXES, EXPECTED["free"], strict=True):
        result = await model(Call(PREFIX, suffix, reference.FREE_TOKENS))
        assert result.as_numpy("output_ids")[0, 0].tolist() == right["tokens"]


async def test_names_types_and_shapes(model: Client) -> None:
    result = await model(Call(PREFIX, SUFFIXES[1], 2, outputs=ALL_OUTPUTS))
    shapes = {}
    for name in ALL_OUTPUTS:
        values = result.as_numpy(name)
        shapes[name] = (values.shape, values.dtype.name)
    blocks = dict.fromkeys(ALL_OUTPUTS[-3:], ((1, 1), "int32"))
    assert shapes == {
        "output_ids": ((1, 1, 2), "int32"),
        "sequence_length": ((1, 1), "int32"),
        "cum_log_probs": ((1, 1), "float32"),
        "output_log_probs": ((1, 1, 2), "float32"),
        "generation_logits": ((1, 1, 2, LLAMA.vocab), "float32"),
        **blocks,
    }


async def test_an_answer_that_ends_at_once_is_empty(model: Client) -> None:
    call = label(PREFIX, SUFFIXES[1])
    best = int(logits(await model(call)).argmax())
    result = await model(replace(call, end_id=best))
    assert result.as_numpy("sequence_length").tolist() == [[0]]
    assert logits(result).argmax() == best


async def test_the_prefix_is_reused(model: Client) -> None:
    prefix = [5, *PREFIX]
    call = Call(prefix, SUFFIXES[1], outputs=(*MANDATORY, "kv_cache_reused_blocks"))
    reused = [(await model(call)).as_numpy("kv_cache_reused_blocks")[0, 0] for _ in range(2)]
    assert reused == [0, len(prefix) // 32]


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (Call(PREFIX, [3], extra=(("beam_width", "INT32", [[2]]),)), "beam_width is 2"),
        (Call(PREFIX, [3], extra=(("streaming", "BOOL", [[True]]),)), "streaming is True"),
        (Call(PREFIX, [3], extra=(("runtime_top_k", "INT32", [[4]]),)), "runtime_top_k is 4"),
        (Call(PREFIX, [3], extra=(("input_lengths", "INT32", [[999]]),)), "input_lengths is 999"),
        (Call(PREFIX, [LLAMA.vocab]), "input_ids must be"),
        (Call(PREFIX, []), "retention_token_range_ends"),
        (Call(PREFIX, [3], outputs=("output_ids",)), "sequence_length tensor must be present"),
        (
            Call(
                PREFIX,
                [3],
                literals=("a",),
                extra=(("guided_decoding_guide_type", "BYTES", [[b"regex"]]),),
            ),
            "guided_decoding_guide_type is 'regex'",
        ),
        (
            Call(
                PREFIX,
                [3],
                literals=("a",),
                extra=(("guided_decoding_guide", "BYTES", [[b"root ::= [a-z]"]]),),
            ),
            "guided_decoding_guide: expected a quoted literal",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_is_not_supported_is_an_internal_error(
    model: Client, call: Call, names: str
) -> None:
    status, message = await status_of(model(call))
    assert status == "StatusCode.INTERNAL"
    assert names in message


async def test_tensors_of_other_features_are_refused_by_name(model: Client) -> None:
    call = Call(PREFIX, [3], extra=(("min_tokens", "INT32", [[2]]),))
    status, message = await status_of(model(call))
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert "min_tokens" in message


async def test_one_refused_call_does_not_fail_its_neighbours(model: Client) -> None:
    bad = Call(PREFIX, [3], extra=(("beam_width", "INT32", [[2]]),))
    calls = [model(call) for call in (label(PREFIX, SUFFIXES[0]), bad, label(PREFIX, SUFFIXES[1]))]
    first, refused, last = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(refused, InferenceServerException)
    for result, right in zip((first, last), EXPECTED["logits"], strict=False):
        np.testing.assert_allclose(logits(result), right, rtol=0, atol=2e-4)


async def test_a_cancelled_call_stops_computing(model: Client) -> None:
    await gone(await endless(model, SUFFIXES[1], ENDLESS))
    # It would take minutes; the model is free at once.
    result = await model(label(PREFIX, SUFFIXES[0]), timeout_s=60)
    assert logits(result).shape == (LLAMA.vocab,)


async def test_an_expired_call_stops_computing(model: Client) -> None:
    call = Call([], SUFFIXES[1], max_tokens=ENDLESS, end_id=-1)
    status, _ = await status_of(model(call, timeout_s=0.3))
    assert status == "StatusCode.DEADLINE_EXCEEDED"
    await model(label(PREFIX, SUFFIXES[0]), timeout_s=60)


async def test_a_call_cancelled_in_the_queue_is_not_computed(
    triton: TritonServer, model: Client
) -> None:
    prefix = [9, *PREFIX, *PREFIX]
    running = await endless(model, SUFFIXES[1], ENDLESS)
    queued = asyncio.create_task(model(Call(prefix, [3])))
    await until(lambda: waiting_requests(triton) == 1)
    async with logging_more(triton):
        await gone(queued)
        # Two threads of Triton hear of the two, in any order where they follow closely.
        await until(lambda: "Issuing cancellation for" in triton.log.read_text())
    await gone(running)
    # Before the next one comes, which has those looked for that have gone.
    await until(lambda: waiting_requests(triton) == 0)
    call = Call(prefix, [3], outputs=(*MANDATORY, "kv_cache_reused_blocks"))
    result = await model(call, timeout_s=60)
    # Had it been computed, its prefix would be there.
    assert result.as_numpy("kv_cache_reused_blocks")[0, 0] == 0


@asynccontextmanager
async def logging_more(triton: TritonServer) -> AsyncIterator[None]:
    """Triton logs what it hears of each request."""
    async with InferenceServerClient(triton.grpc_address) as client:
        await client.update_log_settings({"log_verbose_level": 1})
        try:
            yield
        finally:
            await client.update_log_settings({"log_verbose_level": 0})


async def test_more_than_the_queue_holds_is_unavailable(model: Client) -> None:
    running = await endless(model, SUFFIXES[1], ENDLESS)
    # One more than it holds: the one that comes last is answered first.
    tokens = range(3, 3 + QUEUE + 1)
    calls = [asyncio.create_task(model(label(PREFIX, [token]))) for token in tokens]
    (refused,), waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    status, message = await status_of(refused)
    assert status == "StatusCode.UNAVAILABLE"
    assert "Exceeds maximum queue size" in message
    await gone(running)
    for result in await asyncio.gather(*waiting):
        assert logits(result).shape == (LLAMA.vocab,)


async def test_what_waits_is_told_as_tensorrt_llm_tells_it(
    triton: TritonServer, model: Client
) -> None:
    """By which Triton is scaled: its own queue is empty meanwhile."""
    running = await endless(model, SUFFIXES[1], ENDLESS)
    waiting = [asyncio.create_task(model(label(PREFIX, suffix))) for suffix in SUFFIXES[:2]]
    await until(lambda: waiting_requests(triton) == 2)
    await gone(running)
    await asyncio.gather(*waiting)
    await until(lambda: waiting_requests(triton) == 0)


def waiting_requests(triton: TritonServer) -> float:
    with urllib.request.urlopen(triton.metrics_url) as answer:
        text = answer.read().decode()
    line = 'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} '
    return float(text.partition(line)[2].partition("\n")[0])


async def test_the_answer_of_one_does_not_wait_for_a_longer_one(model: Client) -> None:
    running = await endless(model, SUFFIXES[1], ENDLESS)
    # Both stand in the queue and are handed over together.
    short = asyncio.create_task(model(label(PREFIX, SUFFIXES[0])))
    long = asyncio.create_task(model(Call(PREFIX, SUFFIXES[1], ENDLESS, end_id=-1)))
    await asyncio.sleep(0.3)
    await gone(running)
    done, _ = await asyncio.wait({short, long}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    assert done == {short}
    await gone(long)


def test_the_folder_of_an_engine_may_have_any_name(
    triton: TritonServer, engine: EngineInfo
) -> None:
    assert not engine.path.name.isascii()
    assert list(compiled_folder(engine.path).rglob("*.blob"))


def test_a_damaged_engine_is_not_served(engine: EngineInfo, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(engine.path, tmp_path / "engine"))
    folder = render_cpu_repository(copy, tmp_path / "repository")
    with (copy / "model.bin").open("r+b") as file:
        file.write(b"damaged")
    server = TritonServer(folder, exit_timeout_s=0)
    with pytest.raises(LocalError, match=r"model\.bin: sha256"):
        server.start()
