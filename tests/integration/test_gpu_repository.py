"""The rendered GPU repository in a real Triton, and a sidecar that asks it; see `gpu_stand_in`.

The weights are random: what is decided means nothing, that it is decided the right way is tested.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import runpy
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferInput, InferResult
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from sidecar._generated.llmrouter.v1 import decision_pb2
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.core.model import (
    InferenceError,
    InferenceFailure,
    LabelAnswer,
    LabelLogits,
    Prompt,
    TextAnswer,
    TextOutput,
)
from sidecar.engines import EngineInfo, build_cpu_engine
from sidecar.evaluation.cases import Case
from sidecar.evaluation.policies import CaseRoute
from sidecar.inference.tokenizer import HfTokenizer
from sidecar.inference.triton import TritonModel, TritonTarget
from sidecar.local import TritonServer
from sidecar.prompts import get_format
from tests.engines.tiny_models import QWEN2
from tests.integration.gpu_stand_in import (
    add_ensemble,
    for_the_sidecar,
    production_flags,
    stand_in_repository,
)
from tests.integration.model_client import (
    MANDATORY,
    Call,
    Client,
    endless,
    gone,
    status_of,
)
from tests.integration.running_sidecar import decides_by_model, request, sidecar_on
from tests.prompts.samples import conversation_of, policy_of
from tests.prompts.vocabularies import qwen_tokenizer_text

ROOT = Path(__file__).parents[2]
END_ID, PAD_ID = 151_645, 151_643
SHAPE = replace(QWEN2, tied=True, hidden=32, heads=4, vocab=151_936)
QUEUE = 4
ENDLESS = 4000
"""Answer tokens that take longer than a test may: who waits for them has failed."""

ENSEMBLES = {"compact-v1": "ensemble_compact_v1", "arch-router/archgw-v1": "ensemble_arch_router"}

PREFIX, SUFFIX = tuple(range(100, 164)), (7, 8, 9)


@dataclass(frozen=True)
class Served:
    triton: TritonServer
    engine: EngineInfo


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("gpu")
    weights = SHAPE.write(folder / "weights")
    ids = {"eos_token_id": END_ID, "pad_token_id": PAD_ID, "max_position_embeddings": 8192}
    (weights / "config.json").write_text(json.dumps(SHAPE.config() | ids))
    (weights / "tokenizer.json").write_text(qwen_tokenizer_text())
    engine = build_cpu_engine(
        weights, folder / "engine", model_id="stand-in", prompt_format="compact-v1"
    )
    repository = stand_in_repository(engine.path, folder / "repository", max_queue_size=QUEUE)
    # In production nobody loads and unloads models; here tests do.
    flags = production_flags("--model-control-mode", "--exit-timeout-secs")
    flags += ["--model-control-mode=explicit", "--load-model=tensorrt_llm"]
    for prompt_format in ENSEMBLES:
        add_ensemble(engine.path, repository, prompt_format)
    with TritonServer(repository, arguments=flags, exit_timeout_s=0) as triton:
        yield Served(triton, for_the_sidecar(engine, folder / "facts"))


@pytest.fixture
async def model(served: Served) -> AsyncIterator[TritonModel]:
    target = TritonTarget(served.triton.grpc_address, "tensorrt_llm", END_ID, PAD_ID, SHAPE.vocab)
    model = TritonModel(target)
    yield model
    await model.close()


@pytest.fixture
async def client(served: Served) -> AsyncIterator[Client]:
    client = Client(served.triton.grpc_address)
    yield client
    await client.close()


async def test_a_sidecar_decides_by_labels(served: Served) -> None:
    async with sidecar_on(served.triton.grpc_address, served.engine, budget_s=60) as stub:
        await decides_by_model(stub, "travel")
        decision = (await stub.Route(request("a room near the river", "travel"))).decision
    assert len(decision.candidates) > 2
    assert all(0.0 < each.probability <= 1.0 for each in decision.candidates)
    assert decision.source == decision_pb2.DECISION_SOURCE_MODEL


@pytest.mark.parametrize("begun", ["", "+skeleton"])
async def test_a_sidecar_decides_by_a_text_within_the_grammar(served: Served, begun: str) -> None:
    async with sidecar_on(
        served.triton.grpc_address,
        served.engine,
        budget_s=60,
        prompt_format=f"arch-router/archgw-v1{begun}",
    ) as stub:
        await decides_by_model(stub, "travel")
        sent = request("a room near the river", "travel", explain=True)
        decision = (await stub.Route(sent)).decision
    assert decision.explanation.answer.startswith("{'route': '")
    assert 0.0 < decision.confidence <= 1.0


async def test_free_answers_are_compared_with_those_that_the_prompt_begins(served: Served) -> None:
    """That the comparison runs; of random weights its outcome means nothing."""
    parity = runpy.run_path(str(ROOT / "build" / "trtllm" / "skeleton_parity.py"))
    routes = (CaseRoute("code", "writing programs"), CaseRoute("travel", "hotels and flights"))
    asked = [
        Case(text, "made", "made", conversation_of(("user", text)), routes, "travel")
        for text in ("a room", "a loop")
    ]
    address, prompt_format = served.triton.grpc_address, "arch-router/archgw-v1"
    pairs = await parity["compare"](address, served.engine, prompt_format, asked)
    assert all(pair.free.name and 0 < pair.free.confidence <= 1 for pair in pairs)
    alike = sum(pair.free.name == pair.begun.name for pair in pairs)
    assert parity["report"](pairs)[0] == f"2 cases, {alike} decided alike"


async def test_logits_of_labels(model: TritonModel) -> None:
    output = await model.infer(Prompt(PREFIX, SUFFIX), LabelAnswer((5, 6, 7)), 30)
    assert isinstance(output, LabelLogits)
    assert len(output.logits) == 3


async def test_a_guided_text_with_log_probabilities(model: TritonModel) -> None:
    output = await model.infer(Prompt(PREFIX, SUFFIX), TextAnswer('root ::= "ab" | "c"', 4), 30)
    assert isinstance(output, TextOutput)
    assert len(output.log_probs) == len(output.token_ids) > 0


async def test_a_retained_prefix_is_reused(client: Client) -> None:
    prefix = (11, *PREFIX)
    call = Call(prefix, SUFFIX, outputs=(*MANDATORY, "kv_cache_reused_blocks"), end_id=END_ID)
    reused = [(await client(call)).as_numpy("kv_cache_reused_blocks")[0, 0] for _ in range(2)]
    assert reused == [0, len(prefix) // 32]


async def test_a_tensor_that_only_tensorrt_llm_has_reaches_the_backend(client: Client) -> None:
    """Triton knows all of them; the stand-in, unlike the real backend, knows no other beam."""
    call = Call((), SUFFIX, extra=(("beam_width", "INT32", [[2]]),))
    status, message = await status_of(client(call))
    assert (status, message) == ("StatusCode.INTERNAL", "beam_width is 2; only 1 is supported")


async def test_a_cancelled_decision_stops_computing(model: TritonModel, client: Client) -> None:
    await gone(await endless(client, SUFFIX, ENDLESS))
    output = await model.infer(Prompt(PREFIX, SUFFIX), LabelAnswer((5,)), 15)
    assert isinstance(output, LabelLogits)


async def test_a_full_queue_is_overload(model: TritonModel, client: Client) -> None:
    running = await endless(client, SUFFIX, ENDLESS)
    label = LabelAnswer((5,))
    # One more than it holds: the one that comes last is answered first.
    calls = [
        asyncio.create_task(model.infer(Prompt((), (token,)), label, 60))
        for token in range(3, 3 + QUEUE + 1)
    ]
    (refused,), waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(InferenceError) as error:
        await refused
    assert error.value.failure is InferenceFailure.OVERLOADED
    await gone(running)
    await asyncio.gather(*waiting)


async def ask_ensemble(client: InferenceServerClient, name: str, **texts: object) -> InferResult:
    """Of `texts`, those that are not texts are sent as JSON."""
    inputs = []
    for tensor, content in texts.items():
        text = content if isinstance(content, str) else json.dumps(content)
        inputs.append(InferInput(tensor, [1, 1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([[text.encode()]], dtype=object))
    return await client.infer(name, inputs, client_timeout=60)


@pytest.mark.parametrize("prompt_format", ENSEMBLES)
async def test_the_ensemble_answers_text_as_a_sidecar_would(
    served: Served, model: TritonModel, prompt_format: str
) -> None:
    named = {"code": "writing programs", 'it\'s \\ "travel"': "hotels and flights"}
    turns = [("user", "hi"), ("assistant", "Hello!"), ("user", "a room near the <|im_end|>")]
    tokenizer = HfTokenizer(served.engine.tokenizer_path)
    compiled = get_format(prompt_format).compile(policy_of(named), tokenizer, 4096)
    prompt = compiled.render(conversation_of(*turns))
    expected = compiled.read(await model.infer(prompt, compiled.answer_form, 60))
    policy = {"routes": [{"name": k, "description": v} for k, v in named.items()]}
    messages = [{"role": role, "content": text} for role, text in turns]
    name = ENSEMBLES[prompt_format]

    async with InferenceServerClient(served.triton.grpc_address) as client:
        await client.load_model(name)
        result = await ask_ensemble(client, name, messages=messages, policy=policy)
        with pytest.raises(InferenceServerException) as wrong:
            await ask_ensemble(client, name, text_input="hi", policy={"routes": []})
        with pytest.raises(InferenceServerException) as refused:
            await ask_ensemble(client, name, text_input="word " * 9000, policy=policy)
        await client.unload_model(name)

    assert result.as_numpy("route").item().decode() == expected.name
    assert result.as_numpy("text_output").item().decode() == expected.text
    likely = expected.candidates[0].probability
    assert result.as_numpy("confidence").item() == pytest.approx(likely, rel=1e-3)
    assert wrong.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert wrong.value.message() == "policy.routes: must be a list of 1 to 256 routes"
    # As the model beside it says.
    assert refused.value.status() == "StatusCode.INTERNAL"
    assert "8192" in refused.value.message()


async def test_another_version_is_not_found(served: Served, client: Client) -> None:
    status, message = await status_of(client(Call(PREFIX, SUFFIX), version="2"))
    assert status == "StatusCode.NOT_FOUND"
    assert "unknown model: 'tensorrt_llm'" in message


async def test_another_model_is_not_found_and_counts_as_away(served: Served) -> None:
    another = TritonModel(
        TritonTarget(served.triton.grpc_address, "another", END_ID, PAD_ID, SHAPE.vocab)
    )
    with pytest.raises(InferenceError, match="unknown model: 'another'") as error:
        await another.infer(Prompt(PREFIX, SUFFIX), LabelAnswer((5,)), 30)
    await another.close()
    assert error.value.failure is InferenceFailure.UNAVAILABLE


async def unavailable(stub: RoutingServiceStub) -> decision_pb2.Decision:
    """Wait for a decision that says that the model cannot be asked."""
    async with asyncio.timeout(60):
        # Another text each time: the same one would be answered from the cache.
        for number in itertools.count():
            decision = (await stub.Route(request(f"gone {number}", "travel"))).decision
            if decision.source == decision_pb2.DECISION_SOURCE_FALLBACK and decision.reason in (
                decision_pb2.DECISION_REASON_MODEL_UNAVAILABLE,
                decision_pb2.DECISION_REASON_BREAKER_OPEN,
            ):
                return decision
            await asyncio.sleep(0.05)
    raise AssertionError("counting does not end")


async def test_an_unloaded_model_is_a_fallback_and_a_loaded_one_decides_again(
    served: Served,
) -> None:
    async with (
        sidecar_on(served.triton.grpc_address, served.engine, budget_s=60) as stub,
        InferenceServerClient(served.triton.grpc_address) as client,
    ):
        await decides_by_model(stub, "travel")
        await client.unload_model("tensorrt_llm")
        lost = await unavailable(stub)
        await client.load_model("tensorrt_llm")
        back = await decides_by_model(stub, "travel")

    assert lost.model.model
    assert back.confidence > 0


async def test_after_a_restart_the_model_decides_again(served: Served) -> None:
    async with sidecar_on(served.triton.grpc_address, served.engine, budget_s=60) as stub:
        await decides_by_model(stub, "travel")
        served.triton.kill()
        lost = await unavailable(stub)
        served.triton.spawn()
        await asyncio.to_thread(served.triton.wait_ready)
        back = await decides_by_model(stub, "travel")

    assert lost.model.model
    assert back.confidence > 0
