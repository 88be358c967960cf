"""The rendered Triton repository against what TensorRT-LLM's backend and the sidecar demand."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from sidecar.core.model import (
    InferenceError,
    InferenceFailure,
    LabelAnswer,
    LabelLogits,
    Prompt,
    SecondOpinionIds,
    TextAnswer,
    TextOutput,
)
from sidecar.engines import EngineError
from sidecar.engines.trtllm import (
    GpuRepositoryOptions,
    SecondOpinionOptions,
)
from sidecar.engines.trtllm.repository import parameters, render_config
from sidecar.engines.trtllm.second_opinion import render_second_opinion_config
from sidecar.inference.triton import (
    SECOND_OPINION,
    TritonModel,
    TritonTarget,
    route_inputs,
    second_opinion_inputs,
)
from tests.engines.trtllm.contract import FIXTURES
from tests.fake_triton import FakeTriton, Tensors, sent, serving

REPO = Path(__file__).parents[3]
COMMITTED = REPO / "triton_models" / "gpu" / "tensorrt_llm" / "config.pbtxt"
ENGINE = Path("/models/router")
TABLE: Mapping[str, Any] = json.loads((FIXTURES / "triton_io.json").read_text())
THEIRS: Mapping[str, Any] = TABLE["models"]["tensorrt_llm"]
FACTS: Mapping[str, Any] = TABLE["cpp_backend_facts"]
FILLED_IN = {
    "${logits_datatype}": "TYPE_FP32",
    "${encoder_input_features_data_type}": "TYPE_FP16",
    "${prompt_embedding_table_data_type}": "TYPE_FP16",
}


def render(**options: Any) -> ModelConfig:
    text = render_config(ENGINE, GpuRepositoryOptions(**options))
    return text_format.Parse(text, ModelConfig())


@pytest.fixture
def config() -> ModelConfig:
    return render()


def values(config: ModelConfig) -> dict[str, str]:
    return {name: parameter.string_value for name, parameter in config.parameters.items()}


def test_the_committed_repository_is_what_is_rendered() -> None:
    assert COMMITTED.read_text() == render_config(ENGINE, GpuRepositoryOptions()), (
        "render it again: see docs/gpu.md"
    )


@pytest.mark.parametrize(
    "path", sorted(REPO.glob("triton_models/gpu/*/config.pbtxt")), ids=lambda p: p.parent.name
)
def test_a_committed_configuration_is_triton_s_and_has_no_placeholder(path: Path) -> None:
    text = path.read_text()
    assert "${" not in text
    assert text_format.Parse(text, ModelConfig()).name == path.parent.name


@pytest.mark.parametrize("kind", ["input", "output"])
def test_tensors_are_those_of_tensorrt_llm(config: ModelConfig, kind: str) -> None:
    ours = {tensor.name: tensor for tensor in getattr(config, kind)}
    theirs = {tensor["name"]: tensor for tensor in THEIRS[f"{kind}s"]}
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        other = theirs[name]
        datatype = FILLED_IN.get(other["data_type"], other["data_type"])
        assert DataType.Name(tensor.data_type) == datatype, name
        assert list(tensor.dims) == other["dims"], name
        assert tensor.HasField("reshape") == ("reshape" in other), name
        if kind == "input":
            assert tensor.optional == other.get("optional", False), name
            assert tensor.allow_ragged_batch == other.get("allow_ragged_batch", False), name


def test_every_parameter_of_nvidias_template_is_written_or_left_out_for_a_reason() -> None:
    ours = {each.key: each for each in parameters(ENGINE, GpuRepositoryOptions())}
    theirs = {p["key"] for p in THEIRS["parameters"] if p["key"] != "-" and "(" not in p["key"]}
    assert theirs - ours.keys() == set()
    assert all(each.reason for each in ours.values())
    text = COMMITTED.read_text()
    for each in ours.values():
        assert (f"# {each.key} is not set." in text) == (each.value is None), each.key


def test_keys_without_which_the_backend_does_not_load_are_there(config: ModelConfig) -> None:
    needed = set(FACTS["parameters_that_must_exist_in_config_pbtxt"])
    assert needed <= config.parameters.keys()


def test_booleans_are_spelled_as_the_backend_reads_them(config: ModelConfig) -> None:
    spelled = values(config)
    for each in parameters(ENGINE, GpuRepositoryOptions()):
        if isinstance(each.value, bool):
            assert spelled[each.key] in FACTS["booleans_accepted"]
    assert spelled["normalize_log_probs"] == "false"
    assert spelled["enable_kv_cache_reuse"] == "true"


def test_nothing_waits_and_the_queue_is_bounded() -> None:
    config = render(max_queue_size=7, max_batch_size=3)
    policy = config.dynamic_batching.default_queue_policy
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert policy.max_queue_size == 7
    assert policy.default_timeout_microseconds == 0
    assert config.dynamic_batching.priority_levels == 0
    assert config.max_batch_size == 3
    assert not config.model_transaction_policy.decoupled


def test_options_reach_their_parameters() -> None:
    spelled = values(render(kv_cache_fraction=0.3, max_kv_tokens=65536, cuda_graphs=8))
    assert spelled["kv_cache_free_gpu_mem_fraction"] == "0.3"
    assert spelled["max_tokens_in_paged_kv_cache"] == "65536"
    assert spelled["cuda_graph_cache_size"] == "8"


@pytest.mark.parametrize("path", ["models/router", '/mo"dels', "/mo\\dels"])
def test_a_path_that_cannot_stand_in_the_configuration_is_refused(path: str) -> None:
    with pytest.raises(EngineError, match="must be absolute"):
        render_config(Path(path), GpuRepositoryOptions())


def check_sent(given: Any, config: ModelConfig) -> None:
    """A tensor of a request is an input of the model, of that type and shape."""
    [tensor] = [each for each in config.input if each.name == given.name]
    datatype = DataType.Name(tensor.data_type).removeprefix("TYPE_")
    assert given.datatype == {"STRING": "BYTES"}.get(datatype, datatype), given.name
    batch, *shape = given.shape
    assert batch == 1
    assert len(shape) == len(tensor.dims), given.name
    for size, dim in zip(shape, tensor.dims, strict=True):
        assert dim in (-1, size), given.name


def test_a_stand_in_s_repository_differs_in_the_backend_s_name_alone() -> None:
    stand_in = render_config(ENGINE, GpuRepositoryOptions(backend="python"))
    assert stand_in.replace('backend: "python"', 'backend: "tensorrtllm"') == COMMITTED.read_text()


class TestWhatTheSidecarSendsAndReads:
    """Every request that `TritonModel` makes, as a server sees it, and answers of the types and
    dimensions that the backend has."""

    VOCABULARY = 100
    PROMPT = Prompt((1, 2, 3), (4, 5))
    READ = ("output_ids", "sequence_length", "generation_logits", "output_log_probs")

    def answer(self, config: ModelConfig) -> dict[str, npt.NDArray[Any]]:
        """One beam and one token, ones throughout."""
        types = {"TYPE_INT32": np.int32, "TYPE_FP32": np.float32}
        answer = {}
        for tensor in config.output:
            if tensor.name in self.READ:
                dims = [1] * len(tensor.dims)
                if tensor.name == "generation_logits":
                    dims[-1] = self.VOCABULARY
                answer[tensor.name] = np.ones((1, *dims), types[DataType.Name(tensor.data_type)])
        assert answer.keys() == set(self.READ)
        return answer

    @asynccontextmanager
    async def asking(self, answer: Tensors) -> AsyncIterator[tuple[TritonModel, FakeTriton]]:
        fake = FakeTriton(answer)
        async with serving(fake):
            model = TritonModel(TritonTarget(fake.address, "tensorrt_llm", 2, 0, self.VOCABULARY))
            try:
                yield model, fake
            finally:
                await model.close()

    @pytest.fixture
    async def requests(self, config: ModelConfig) -> list[Any]:
        async with self.asking(self.answer(config)) as (model, fake):
            labels = await model.infer(self.PROMPT, LabelAnswer((5, 6)), 60)
            text = await model.infer(self.PROMPT, TextAnswer('root ::= "a"', 5), 60)
            await model.warm((1, 2, 3), 60)
        assert labels == LabelLogits((1.0, 1.0))
        assert text == TextOutput((1,), (1.0,))
        return fake.requests

    def test_inputs(self, config: ModelConfig, requests: list[Any]) -> None:
        needed = {tensor.name for tensor in config.input if not tensor.optional}
        assert len(requests) == 3
        for request in requests:
            for tensor in request.inputs:
                check_sent(tensor, config)
            assert needed <= {tensor.name for tensor in request.inputs}

    def test_outputs(self, config: ModelConfig, requests: list[Any]) -> None:
        there = {tensor.name for tensor in config.output}
        for request in requests:
            asked = {output.name for output in request.outputs}
            assert set(FACTS["mandatory_requested_outputs"]) <= asked <= there
        assert {each.name for request in requests for each in request.outputs} == set(self.READ)

    @pytest.mark.parametrize("wrong", ["type", "dimensions", "beams"])
    @pytest.mark.parametrize("name", READ)
    async def test_an_output_of_another_type_or_shape_is_refused(
        self, config: ModelConfig, name: str, wrong: str
    ) -> None:
        answer = self.answer(config)
        values = answer[name]
        answer[name] = {
            "type": values.astype(np.float32 if values.dtype == np.int32 else np.int32),
            "dimensions": values[0],
            "beams": np.repeat(values, 2, axis=1),
        }[wrong]
        form = LabelAnswer((5,)) if name == "generation_logits" else TextAnswer('root ::= "a"', 5)
        async with self.asking(answer) as (model, _):
            with pytest.raises(InferenceError, match=name) as caught:
                await model.infer(self.PROMPT, form, 60)
        assert caught.value.failure is InferenceFailure.ERROR

    def test_guide_types(self, requests: list[Any]) -> None:
        # An unknown type is ignored by the backend: the answer would be free text.
        [word] = [
            sent(request)["guided_decoding_guide_type"][0]
            for request in requests
            if "guided_decoding_guide_type" in sent(request)
        ]
        assert word.decode() in FACTS["guide_types"]


class TestSecondOpinion:
    """The model `second_opinion` beside the engine's."""

    FOLDER = REPO / "triton_models" / "gpu" / "second_opinion"

    @pytest.fixture
    def encoder(self) -> ModelConfig:
        text = render_second_opinion_config(ENGINE, SecondOpinionOptions())
        return text_format.Parse(text, ModelConfig())

    def test_the_committed_one_is_what_is_rendered(self) -> None:
        rendered = render_second_opinion_config(ENGINE, SecondOpinionOptions())
        assert (self.FOLDER / "config.pbtxt").read_text() == rendered, (
            "render it again: see docs/gpu.md"
        )

    def test_tensors_are_those_of_the_cpu_model(self, encoder: ModelConfig) -> None:
        path = REPO / "triton_models" / "cpu" / "tensorrt_llm" / "config.pbtxt"
        text = re.sub(r": \$\{(\w+)\}", ": 0", path.read_text())
        cpu = text_format.Parse(text, ModelConfig())
        for kind in ("input", "output"):
            theirs = {tensor.name: tensor for tensor in getattr(cpu, kind)}
            for tensor in getattr(encoder, kind):
                other = theirs[tensor.name]
                assert (tensor.data_type, list(tensor.dims)) == (other.data_type, list(other.dims))

    def test_what_the_sidecar_sends_is_there(self, encoder: ModelConfig) -> None:
        second = SecondOpinionIds((1, 2), (0, 1), ((3,), (4, 5)))
        for each in second_opinion_inputs(second):
            check_sent(each._get_tensor(), encoder)
        needed = {tensor.name for tensor in encoder.input if not tensor.optional}
        assert needed == {each.name() for each in route_inputs(second.routes)}
        assert [tensor.name for tensor in encoder.output] == [SECOND_OPINION]

    def test_its_queue_has_no_bound(self, encoder: ModelConfig) -> None:
        assert encoder.HasField("dynamic_batching")
        assert encoder.dynamic_batching.default_queue_policy.max_queue_size == 0
