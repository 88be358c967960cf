"""A language model and a sentence encoder decide together: a whole sidecar and a real Triton, on an
engine of tiny random models."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cpu_engine.engine_files import open_engine
from cpu_engine.requests import Opinion
from cpu_engine.second_opinion import Encoder, SecondOpinion
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.model import (
    Enough,
    InferenceError,
    LabelAnswer,
    LabelLogits,
    Prompt,
    SecondOpinionIds,
)
from sidecar.engines import (
    CpuRepositoryOptions,
    EngineInfo,
    build_cpu_engine,
    load_engine,
    open_adapter,
    render_cpu_repository,
)
from sidecar.engines.engine_directory import write_manifest
from sidecar.inference.tokenizer import HfTokenizer
from sidecar.inference.triton import TritonModel, TritonTarget
from sidecar.local import TritonServer
from sidecar.policies.loading import load_policies
from sidecar.prompts import get_format
from sidecar.prompts.second_opinion import (
    FusedPrompt,
    Fusion,
    encoder_texts,
    with_second_opinion,
)
from tests.engines import tiny_adapter
from tests.engines.tiny_encoder import CLS, SEP, TINY_ENCODER
from tests.engines.tiny_models import LLAMA
from tests.integration.model_client import Client, endless, gone
from tests.integration.running_sidecar import decides_by_model, request, sidecar_on

WORDS = ("parcel", "invoice", "music")
POLICIES = """
apiVersion: llmrouter.v1
kind: ModelCatalog
models:
  - {id: m, upstream_model: m}
---
apiVersion: llmrouter.v1
kind: Policy
name: default
default: {models: [m]}
routes:
  - {name: parcel, description: lost in the post, models: [m]}
  - {name: invoice, description: money, models: [m]}
  - {name: music, description: songs, models: [m]}
"""
TEXT = "where is it"
ENDLESS = 30_000
"""Answer tokens that take far longer than a test may."""


def bytes_and_words() -> Tokenizer:
    """Bytes, and a token for each word that can be a label."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    merges = []
    for word in ("\u0120" + word for word in (*WORDS, "other")):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                merges.append((word[: end - 1], word[end - 1]))
                vocabulary[word[:end]] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")]
    tokenizer.add_special_tokens(special)
    return tokenizer


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policies") / "policies.yaml"
    path.write_text(POLICIES)
    return path


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> EngineInfo:
    folder = tmp_path_factory.mktemp("engine")
    base = LLAMA.write(folder / "base")
    config = json.loads((base / "config.json").read_text())
    config["max_position_embeddings"] = 2 * ENDLESS
    (base / "config.json").write_text(json.dumps(config))
    (base / "tokenizer.json").write_text(bytes_and_words().to_str())
    encoder = TINY_ENCODER.write(folder / "encoder")
    section = TINY_ENCODER.write_second_opinion(folder / "adapter", encoder)
    change = tiny_adapter.change_of(LLAMA)
    tiny_adapter.write_adapter(folder / "adapter", base, change, second_opinion=section)
    return build_cpu_engine(
        base,
        folder / "engine",
        model_id="tiny",
        prompt_format="compact-v1",
        temperature=1.25,
        adapter=open_adapter(folder / "adapter"),
        encoder=encoder,
    )


@pytest.fixture(scope="module")
def triton(engine: EngineInfo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    options = CpuRepositoryOptions(threads=1, precision="f32", max_output_tokens=ENDLESS)
    folder = render_cpu_repository(engine.path, tmp_path_factory.mktemp("repo"), options=options)
    with TritonServer(folder, exit_timeout_s=0) as server:
        yield server


@pytest.fixture
async def model(triton: TritonServer, engine: EngineInfo) -> AsyncIterator[TritonModel]:
    facts = engine.router
    target = TritonTarget(
        triton.grpc_address,
        "tensorrt_llm",
        facts.end_id,
        facts.pad_id,
        facts.vocab_size,
        label_ids=True,
        engine=facts.build_id,
    )
    model = TritonModel(target)
    yield model
    await model.close()


@pytest.fixture
def compiled(engine: EngineInfo, policies: Path) -> FusedPrompt:
    """The policy as the sidecar compiles it."""
    (record,) = load_policies((policies,)).policies
    second = engine.router.second_opinion
    assert second is not None
    assert engine.second_opinion_tokenizer_path is not None
    alone = get_format("compact-v1").compile(
        record, HfTokenizer(engine.tokenizer_path), 416, engine.router.temperature
    )
    texts = encoder_texts(HfTokenizer(engine.second_opinion_tokenizer_path))
    facts = second.fusion
    fusion = Fusion(facts.language_model, facts.encoder, facts.other_bias, facts.temperature)
    prompt = with_second_opinion(alone, record, texts, fusion)
    assert isinstance(prompt, FusedPrompt)
    return prompt


def rendered(compiled: FusedPrompt, text: str = TEXT) -> Prompt:
    return compiled.render(Conversation((Message(Role.USER, text),)))


def in_this_process(engine: EngineInfo, second: SecondOpinionIds) -> list[float]:
    facts = open_engine(engine.path).second_opinion
    assert facts is not None
    encoder = Encoder(facts.graph_path, threads=1, precision="f32")
    ids, types, *routes = (
        np.array(values, np.int32)
        for values in (second.request_ids, second.request_types, *second.routes)
    )
    (logits,) = SecondOpinion(encoder, facts.scales, 1 << 20).opinions(
        [Opinion(ids, types, tuple(routes))]
    )
    return [float(logit) for logit in logits]


async def test_triton_says_which_engine_it_serves(model: TritonModel) -> None:
    await model.check_ready(10)

    assert model.other_engine == ""


async def test_the_model_server_gives_both_opinions(
    model: TritonModel, compiled: FusedPrompt, engine: EngineInfo
) -> None:
    prompt = rendered(compiled)
    output = await model.infer(prompt, compiled.answer_form, 20)
    assert isinstance(output, LabelLogits)
    assert prompt.second_opinion is not None
    expected = in_this_process(engine, prompt.second_opinion)
    assert output.second_opinion == pytest.approx(expected, abs=1e-3)


async def test_requests_with_and_without_may_arrive_together(
    model: TritonModel, compiled: FusedPrompt
) -> None:
    texts = [f"where is {number}" for number in range(6)]
    prompts = [rendered(compiled, text) for text in texts]
    alone = [compiled.alone.render(Conversation((Message(Role.USER, text),))) for text in texts]
    form = compiled.answer_form
    await model.warm(compiled.prefix_ids, 20, compiled.route_texts)
    outputs = await asyncio.gather(
        *(
            model.infer(prompt, form, 20)
            for pair in zip(prompts, alone, strict=True)
            for prompt in pair
        )
    )
    for both, one in zip(outputs[::2], outputs[1::2], strict=True):
        assert isinstance(both, LabelLogits)
        assert isinstance(one, LabelLogits)
        assert both.second_opinion is not None
        assert one.second_opinion is None
        assert both.logits == pytest.approx(one.logits, abs=1e-3)


async def test_what_is_malformed_is_refused_by_name(
    model: TritonModel, compiled: FusedPrompt
) -> None:
    prompt = rendered(compiled)
    wrong = SecondOpinionIds((TINY_ENCODER.vocab,), (0,), ((1, 2),))
    with pytest.raises(InferenceError, match="second_opinion_request_ids must be"):
        await model.infer(
            Prompt(prompt.prefix_ids, prompt.suffix_ids, second_opinion=wrong),
            compiled.answer_form,
            20,
        )


async def test_the_encoder_decides_alone_where_it_is_enough(
    model: TritonModel, compiled: FusedPrompt
) -> None:
    always, never = Enough(100.0, 0.0, 0.5), Enough(0.001, 0.0, 1.0)
    prompts = [
        replace(compiled, enough=enough).render(
            Conversation((Message(Role.USER, f"where is {number}"),))
        )
        for number, enough in enumerate([always, never, None, always])
    ]
    outputs = await asyncio.gather(
        *(model.infer(prompt, compiled.answer_form, 20) for prompt in prompts)
    )
    assert all(isinstance(output, LabelLogits) for output in outputs)
    labels = [len(output.logits) for output in outputs if isinstance(output, LabelLogits)]
    assert labels == [0, len(WORDS) + 1, len(WORDS) + 1, 0]


async def test_what_the_encoder_decides_waits_for_nothing_that_the_language_model_does(
    triton: TritonServer, model: TritonModel, compiled: FusedPrompt
) -> None:
    client = Client(triton.grpc_address)
    running = await endless(client, [5, 6], ENDLESS)
    prompt = rendered(replace(compiled, enough=Enough(100.0, 0.0, 0.5)))
    output = await model.infer(prompt, compiled.answer_form, 20)

    assert isinstance(output, LabelLogits)
    assert not output.logits
    assert not running.done()
    await gone(running)
    await client.close()


async def test_what_the_encoder_decides_waits_for_no_other_policy_s_routes_to_be_read(
    model: TritonModel, compiled: FusedPrompt
) -> None:
    await model.warm(compiled.prefix_ids, 20, compiled.route_texts)
    prompt = rendered(replace(compiled, enough=Enough(100.0, 0.0, 0.5)))
    assert prompt.second_opinion is not None
    many = tuple((CLS, *(4 + n // 50**at % 50 for at in range(30)), SEP) for n in range(3000))
    large = replace(prompt, second_opinion=replace(prompt.second_opinion, routes=many, alone=True))
    form = LabelAnswer((5,) * (len(many) + 1))
    reading = asyncio.create_task(model.infer(large, form, 120))
    await asyncio.sleep(0.3)
    output = await model.infer(prompt, compiled.answer_form, 20)

    assert isinstance(output, LabelLogits)
    assert not output.logits
    assert not reading.done()
    outcome = await reading
    assert isinstance(outcome, LabelLogits)
    assert len(outcome.second_opinion or ()) == len(many) + 1


@pytest.mark.parametrize(
    ("alone_from", "answered_by"), [(0.5, "(encoder alone)"), (1.0, "language model")]
)
async def test_from_which_probability_on_is_a_setting(
    triton: TritonServer,
    engine: EngineInfo,
    policies: Path,
    tmp_path: Path,
    alone_from: float,
    answered_by: str,
) -> None:
    # Another scale of the encoder's own probabilities, the same engine.
    copy = Path(shutil.copytree(engine.path, tmp_path / "engine"))
    facts = json.loads((copy / "router.json").read_text())
    facts["second_opinion"]["fusion"] |= {"alone_encoder": 100.0, "alone_other_bias": 0.0}
    (copy / "router.json").write_text(json.dumps(facts))
    write_manifest(copy)
    async with sidecar_on(
        triton.grpc_address,
        load_engine(copy),
        budget_s=60,
        policies=policies,
        encoder_alone_from=alone_from,
    ) as stub:
        await decides_by_model(stub, "", or_encoder=True)
        decision = (await stub.Route(request(TEXT, explain=True))).decision
    assert answered_by in decision.explanation.answer


async def test_a_decision_is_made_of_both(
    triton: TritonServer,
    model: TritonModel,
    engine: EngineInfo,
    compiled: FusedPrompt,
    policies: Path,
) -> None:
    output = await model.infer(rendered(compiled), compiled.answer_form, 20)
    assert isinstance(output, LabelLogits)
    expected = compiled.read(output)
    alone = compiled.alone.read(output)
    async with sidecar_on(triton.grpc_address, engine, budget_s=60, policies=policies) as stub:
        await decides_by_model(stub, "", or_encoder=True)
        decision = (await stub.Route(request(TEXT, explain=True))).decision
    found = {each.route: each.probability for each in decision.candidates}
    by_name = {each.name: each.probability for each in expected.candidates}
    assert found == pytest.approx(by_name, abs=1e-3)
    assert found != pytest.approx({e.name: e.probability for e in alone.candidates}, abs=1e-3)
    assert decision.explanation.answer == expected.text
    assert decision.routing_model == engine.router.build_id
