"""The whole path with a model that answers in text within a grammar, as Arch-Router does.

The weights are random and small, in Arch-Router's architecture (Qwen2) and with its vocabulary:
what is decided means nothing, that it is always one of the policy's routes is what is tested.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sidecar._generated.llmrouter.v1 import decision_pb2
from sidecar.engines import EngineInfo, build_cpu_engine, render_cpu_repository
from sidecar.local import TritonServer
from tests.engines.tiny_models import QWEN2
from tests.integration.running_sidecar import decides_by_model, request, sidecar_on
from tests.prompts.vocabularies import qwen_tokenizer_json

END_OF_TURN = 151_645
QWEN_VOCABULARY = replace(QWEN2, tied=True, hidden=32, heads=4, vocab=151_936)


@dataclass(frozen=True)
class Served:
    triton: TritonServer
    engine: EngineInfo


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("arch-router")
    weights = QWEN_VOCABULARY.write(folder / "weights")
    config = QWEN_VOCABULARY.config() | {
        "max_position_embeddings": 4096,
        "eos_token_id": END_OF_TURN,
        "pad_token_id": 151_643,
    }
    (weights / "config.json").write_text(json.dumps(config))
    (weights / "tokenizer.json").write_text(json.dumps(qwen_tokenizer_json()))
    engine = build_cpu_engine(
        weights,
        folder / "engine",
        model_id="arch-router-shaped",
        prompt_format="arch-router/archgw-v1",
    )
    repository = render_cpu_repository(engine.path, folder / "repository")
    with TritonServer(repository, exit_timeout_s=1) as triton:
        yield Served(triton, engine)


POLICY_ROUTES = {
    "support": "a refund for the broken kettle, please",
    "travel": "two nights in Lisbon near the river",
    "default": "translate 'the train is late' into Polish",
}


async def test_every_answer_is_a_route_of_the_policy_or_other(served: Served) -> None:
    async with sidecar_on(served.triton.grpc_address, served.engine, budget_s=60) as stub:
        for policy, text in POLICY_ROUTES.items():
            await decides_by_model(stub, policy)
            decision = (await stub.Route(request(text, policy, explain=True))).decision
            answer = decision.explanation.answer

            assert answer.startswith("{'route': '")
            assert answer.endswith("'}")
            assert decision.prompt_format == "arch-router/archgw-v1"
            assert 0.0 < decision.confidence <= 1.0
            if decision.source == decision_pb2.DECISION_SOURCE_MODEL:
                assert decision.route == answer.removeprefix("{'route': '").removesuffix("'}")
            else:
                assert decision.reason in (
                    decision_pb2.DECISION_REASON_NO_MATCH,
                    decision_pb2.DECISION_REASON_LOW_CONFIDENCE,
                )


async def test_the_explained_prompt_is_arch_routers_with_its_default_system_message(
    served: Served,
) -> None:
    async with sidecar_on(served.triton.grpc_address, served.engine, budget_s=60) as stub:
        await decides_by_model(stub, "travel")
        decision = (await stub.Route(request("near the river", "travel", explain=True))).decision
    prompt = decision.explanation.prompt

    assert prompt.startswith(
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\n"
    )
    assert '<conversation>\n[{"role":"user","content":"near the river"}]\n</conversation>' in prompt
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_weights_have_the_vocabulary_of_arch_router(served: Served) -> None:
    facts = served.engine.router

    assert (facts.vocab_size, facts.end_id) == (QWEN_VOCABULARY.vocab, END_OF_TURN)
    assert Path(served.engine.tokenizer_path).is_file()
