"""The rendered Triton model repository."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cpu_engine.engine_files import open_engine
from cpu_engine.errors import EngineFilesError
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from sidecar.engines import CpuRepositoryOptions, EngineError, EngineInfo, render_cpu_repository
from sidecar.engines.engine_directory import compiled_folder, write_manifest

CONTRACT = Path(__file__).parents[2].parent / "shared/reference/tensorrt_llm_triton_io.json"


def render(engine: Path, folder: Path, **options: Any) -> ModelConfig:
    render_cpu_repository(engine, folder, options=CpuRepositoryOptions(**options))
    text = (folder / "tensorrt_llm" / "config.pbtxt").read_text()
    return text_format.Parse(text, ModelConfig())


@pytest.fixture
def config(engines: Mapping[str, EngineInfo], tmp_path: Path) -> ModelConfig:
    return render(engines["llama"].path, tmp_path)


def test_triton_may_take_requests_out_of_its_queue_while_the_model_computes(
    config: ModelConfig,
) -> None:
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (0, 0)
    assert not policy.allow_timeout_override
    assert not config.dynamic_batching.priority_levels


def test_options_are_written(engines: Mapping[str, EngineInfo], tmp_path: Path) -> None:
    config = render(
        engines["llama"].path,
        tmp_path,
        max_batch_size=3,
        max_queue_size=5,
        prefix_cache_bytes=1000,
        max_pass_tokens=77,
        threads=2,
    )
    assert config.max_batch_size == 3
    values = {name: parameter.string_value for name, parameter in config.parameters.items()}
    assert values == {
        "gpt_model_path": str(engines["llama"].path),
        "prefix_cache_bytes": "1000",
        "route_cache_bytes": "67108864",
        "max_queue_size": "5",
        "max_pass_tokens": "77",
        "max_output_tokens": "256",
        "threads": "2",
        "precision": "",
        "compiled_folder": str(compiled_folder(engines["llama"].path)),
        "routing_model": engines["llama"].router.build_id,
    }


@pytest.mark.parametrize("why", ["not wanted", "not writable"])
def test_nothing_compiled_is_kept_where_it_cannot_be(
    why: str, engines: Mapping[str, EngineInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "not writable":
        # Tests may run as root, who can write anywhere.
        monkeypatch.setattr("os.access", lambda path, mode: False)
    config = render(engines["llama"].path, tmp_path, keep_compiled=why == "not writable")
    assert config.parameters["compiled_folder"].string_value == ""


def test_an_engine_with_another_graph_is_refused(
    engines: Mapping[str, EngineInfo], tmp_path: Path
) -> None:
    engine = shutil.copytree(engines["llama"].path, tmp_path / "engine")
    router = json.loads((engine / "router.json").read_text())
    (engine / "router.json").write_text(json.dumps({**router, "graph_version": 1}))
    write_manifest(engine)
    with pytest.raises(EngineError, match=r"graph_version is 1, .* build the engine again"):
        render_cpu_repository(engine, tmp_path / "repository")
    with pytest.raises(EngineFilesError, match=r"graph_version is 1; .* build the engine again"):
        open_engine(engine)


def test_everything_of_the_template_is_filled_in(
    engines: Mapping[str, EngineInfo], tmp_path: Path
) -> None:
    render(engines["llama"].path, tmp_path)
    text = (tmp_path / "tensorrt_llm" / "config.pbtxt").read_text()
    assert not re.search(r"\$\{\w", text)


def test_an_engine_may_be_served_elsewhere(
    engines: Mapping[str, EngineInfo], tmp_path: Path
) -> None:
    served_at = Path("/models/router")
    render_cpu_repository(engines["llama"].path, tmp_path, served_at=served_at)
    text = (tmp_path / "tensorrt_llm" / "config.pbtxt").read_text()
    parameters = text_format.Parse(text, ModelConfig()).parameters
    assert parameters["gpt_model_path"].string_value == "/models/router"
    assert parameters["compiled_folder"].string_value == "/models/.router-compiled"


def test_queue_settings_that_degrade_triton_stay_unset(config: ModelConfig) -> None:
    policy = config.dynamic_batching.default_queue_policy
    assert policy.default_timeout_microseconds == 0
    assert config.dynamic_batching.priority_levels == 0
    assert config.dynamic_batching.max_queue_delay_microseconds == 0


def test_the_model_runs_without_the_sidecar(
    engines: Mapping[str, EngineInfo], tmp_path: Path
) -> None:
    render(engines["llama"].path, tmp_path)
    sources = list((tmp_path / "tensorrt_llm" / "1").rglob("*.py"))
    assert len(sources) > 5
    allowed = r"cpu_engine|numpy|openvino|triton_python_backend_utils|__future__"
    standard = (
        r"collections|contextlib|dataclasses|functools|hashlib|itertools|json|os|pathlib|re|shutil|"
        r"sys|tempfile|threading|time|typing"
    )
    for source in sources:
        for name in re.findall(r"^(?:from|import) ([\w]+)", source.read_text(), re.MULTILINE):
            assert re.fullmatch(f"{allowed}|{standard}", name), (source, name)
    assert not list(tmp_path.rglob("__pycache__"))


def test_rendering_again_replaces_what_was_there(
    engines: Mapping[str, EngineInfo], tmp_path: Path
) -> None:
    render(engines["llama"].path, tmp_path)
    stale = tmp_path / "tensorrt_llm" / "1" / "stale.py"
    stale.write_text("")
    render(engines["qwen2"].path, tmp_path)
    assert not stale.exists()


def test_an_engine_that_is_not_whole_is_refused(
    engines: Mapping[str, EngineInfo], tmp_path: Path
) -> None:
    engine = Path(shutil.copytree(engines["llama"].path, tmp_path / "engine"))
    (engine / "model.bin").unlink()
    with pytest.raises(EngineError, match=r"model\.bin: missing"):
        render(engine, tmp_path / "repository")


def test_a_path_that_cannot_stand_in_the_configuration_is_refused(
    engines: Mapping[str, EngineInfo], tmp_path: Path
) -> None:
    engine = Path(shutil.copytree(engines["llama"].path, tmp_path / 'quo"te'))
    with pytest.raises(EngineError, match="quotes"):
        render(engine, tmp_path / "repository")


@pytest.mark.skipif(not CONTRACT.is_file(), reason="the table of tensors is not at ../shared")
class TestContract:
    """Every tensor is one of TensorRT-LLM's, of the same type and shape; those of the second
    opinion, which it has not, need not be sent."""

    @pytest.fixture
    def theirs(self) -> Mapping[str, Any]:
        content: Mapping[str, Any] = json.loads(CONTRACT.read_text())["models"]["tensorrt_llm"]
        return content

    def test_inputs(self, config: ModelConfig, theirs: Mapping[str, Any]) -> None:
        known = {tensor["name"]: tensor for tensor in theirs["inputs"]}
        for tensor in config.input:
            if tensor.name.startswith(("second_opinion_", "label_ids")):
                assert tensor.optional, tensor.name
                continue
            other = known[tensor.name]
            assert DataType.Name(tensor.data_type) == other["data_type"], tensor.name
            assert list(tensor.dims) == other["dims"], tensor.name
            assert tensor.optional == other["optional"], tensor.name
            assert tensor.allow_ragged_batch == other.get("allow_ragged_batch", False), tensor.name
            assert tensor.HasField("reshape") == ("reshape" in other), tensor.name

    def test_outputs(self, config: ModelConfig, theirs: Mapping[str, Any]) -> None:
        known = {tensor["name"]: tensor for tensor in theirs["outputs"]}
        for tensor in config.output:
            if tensor.name == "second_opinion_logits":
                continue
            other = known[tensor.name]
            types = {DataType.Name(tensor.data_type), "${logits_datatype}"}
            assert other["data_type"] in types, tensor.name
            assert list(tensor.dims) == other["dims"], tensor.name
