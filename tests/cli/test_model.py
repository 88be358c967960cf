"""`sidecar model build`: which model is built, from what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar.cli import cli, model
from sidecar.engines import EngineError, WeightStorage, load_engine, open_adapter
from sidecar.engines.adapter import shipped_adapter
from sidecar.engines.hf_source import open_hugging_face
from sidecar.evaluation.engine_temperature import write_temperature
from sidecar.local import CACHE_VARIABLE
from tests.engines.tiny_adapter import change_of, write_adapter
from tests.engines.tiny_encoder import TINY_ENCODER
from tests.engines.tiny_models import LLAMA


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny base in the place of the one that comes along, and a cache of its own."""
    folder = LLAMA.write(tmp_path / "base")
    places = {"smollm2.gguf": folder, "minilm": TINY_ENCODER.write(tmp_path / "encoder")}
    monkeypatch.setattr(model, "data_file", lambda name, report: places[name])
    monkeypatch.setattr(model, "shipped_adapter", lambda: None)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", base, change_of(LLAMA))


@pytest.fixture
def fused(base: Path, tmp_path: Path) -> Path:
    """An adapter with a second opinion."""
    folder = tmp_path / "fused"
    section = TINY_ENCODER.write_second_opinion(folder, tmp_path / "encoder")
    return write_adapter(folder, base, change_of(LLAMA), second_opinion=section)


def build(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["model", "build", *map(str, arguments)])


def test_without_a_shipped_adapter_the_default_is_the_untrained_base(base: Path) -> None:
    router = model.default_model(lambda line: None).router
    assert (router.model_id, router.prompt_format) == ("smollm2-135m-instruct", "compact-v1")
    assert not router.trained
    assert router.adapter_sha256 == ""


def test_the_default_is_the_base_with_the_shipped_adapter(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "shipped_adapter", lambda: adapter)
    router = model.default_model(lambda line: None).router
    assert router.model_id == "tiny-router"
    assert router.trained
    assert router.temperature == 1.25
    assert router.build_id == f"tiny-router@{router.adapter_sha256[:12]}"
    assert build().stdout.splitlines()[0].endswith("/engines/tiny-router")


def test_the_model_that_comes_along_is_built_for_its_own_prompt_format_alone(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "shipped_adapter", lambda: adapter)
    result = build("--prompt-format", "arch-router/archgw-v1")
    assert result.exit_code == 2
    assert "is arch-router/archgw-v1; the model that comes along is for compact-v1" in result.stderr
    assert not model.engines_dir().exists()
    assert build("--prompt-format", "compact-v1").exit_code == 0


def test_an_adapter_is_merged_into_the_base_that_comes_along(adapter: Path) -> None:
    result = build("--adapter", adapter)
    assert result.exit_code == 0, result.output
    router = load_engine(Path(result.stdout.splitlines()[0])).router
    assert (router.model_id, router.trained) == ("tiny-router", True)


def test_an_adapter_is_merged_into_a_source(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = build("--source", base, "--adapter", adapter, "--name", "mine", "--out", out)
    assert result.exit_code == 0, result.output
    assert load_engine(out).router.model_id == "mine"


def test_weights_of_an_adapter_without_its_folder_are_enough(adapter: Path, tmp_path: Path) -> None:
    weights = adapter / "adapter.safetensors"
    result = build("--adapter", weights, "--prompt-format", "compact-v1")
    assert result.exit_code == 0, result.output
    assert load_engine(Path(result.stdout.splitlines()[0])).router.model_id == "adapter"


def test_a_source_of_ones_own_counts_as_trained(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = build("--source", base, "--prompt-format", "compact-v1", "--out", out)
    assert result.exit_code == 0, result.output
    assert load_engine(out).router.trained


def test_a_checkpoint_is_written(adapter: Path, tmp_path: Path) -> None:
    result = build("--adapter", adapter, "--target", "huggingface")
    assert result.exit_code == 0, result.output
    folder = Path(result.stdout.strip())
    assert folder == tmp_path / "cache" / "checkpoints" / "tiny-router"
    assert open_hugging_face(folder).architecture.layers == LLAMA.layers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "{adapter}/adapter.safetensors"], "--adapter with a file needs"),
        (["--source", "{base}"], "--source needs --prompt-format"),
        (
            ["--adapter", "{adapter}", "--prompt-format", "arch-router/model-card"],
            "--prompt-format is arch-router/model-card; {adapter} is for compact-v1",
        ),
        (["--adapter", "{adapter}", "--name", "../up"], "--name is '../up'; it must be of lower-"),
        (["--adapter", "{adapter}", "--name", "/up"], "--name is '/up'; it must be of lower-case"),
        (["--adapter", "{adapter}", "--name", ""], "--name is ''; it must be of lower-case"),
        (["--encoder", "{base}"], "--encoder needs --adapter, whose second opinion"),
        (["--adapter", "{adapter}", "--encoder", "{base}"], "{adapter} has no second opinion"),
        (
            ["--adapter", "{adapter}", "--encoder", "{base}", "--target", "huggingface"],
            "--encoder: a Hugging Face folder has no second opinion",
        ),
        (["--target", "tensorrt"], "'tensorrt' is not one of 'cpu', 'huggingface'"),
        (
            ["--weights", "int8", "--target", "huggingface"],
            "--weights: for --target cpu, not for huggingface",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_missing_or_contradicts_is_said(
    arguments: list[str], message: str, base: Path, adapter: Path
) -> None:
    places = {"adapter": adapter, "base": base}
    result = build(*(argument.format(**places) for argument in arguments))
    assert result.exit_code == 2
    assert message.format(**places) in result.stderr


def test_weights_in_8_bits_are_an_engine_of_their_own(adapter: Path, tmp_path: Path) -> None:
    built = [build("--adapter", adapter, *more) for more in ([], ["--weights", "int8"])]
    assert [each.exit_code for each in built] == [0, 0], built
    engines = tmp_path / "cache" / "engines"
    exact, rounded = (load_engine(engines / name) for name in ("tiny-router", "tiny-router-int8"))
    assert rounded.router.weight_storage is WeightStorage.INT8
    assert rounded.router.build_id == f"{exact.router.build_id}+int8"
    less, more = (each.graph_path.with_suffix(".bin").stat().st_size for each in (rounded, exact))
    assert less < more
    shown = CliRunner().invoke(cli, ["model", "info", "tiny-router-int8"]).stdout
    assert f"sha256:{rounded.router.weights_sha256}, stored as int8" in shown


def test_a_prompt_format_of_a_newer_version_is_refused(adapter: Path) -> None:
    path = adapter / "adapter.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prompt_format": "compact-v9"}))
    result = build("--adapter", adapter)
    assert isinstance(result.exception, EngineError)
    assert "prompt format 'compact-v9' is not known; known are" in str(result.exception)


def test_a_folder_that_cannot_be_made_is_told(adapter: Path) -> None:
    result = build("--adapter", adapter, "--out", adapter / "adapter.json" / "out")
    assert isinstance(result.exception, EngineError)
    assert "adapter.json/out: cannot be written: " in str(result.exception)


def test_one_broken_engine_hides_no_other(adapter: Path) -> None:
    whole = Path(build("--adapter", adapter).stdout.splitlines()[0])
    broken = Path(build("--adapter", adapter, "--name", "broken").stdout.splitlines()[0])
    manifest = json.loads((broken / "manifest.json").read_text())
    del manifest["files"]["model.bin"]["bytes"]
    (broken / "manifest.json").write_text(json.dumps(manifest))
    result = CliRunner().invoke(cli, ["model", "list"])
    assert (result.exit_code, str(whole) in result.stdout) == (0, True)
    assert "model.bin has no sha256 or no bytes; build the engine again" in result.stderr


def test_what_a_killed_build_left_is_not_listed_and_goes_with_the_next(adapter: Path) -> None:
    engines = model.engines_dir()
    gone = [".tiny-router-a1b2_3d4", ".tiny-router-a1b2_3d4-old"]
    kept = [".tiny-router-compiled", ".tiny-router-gpu-a1b2_3d4", ".other-a1b2_3d4"]
    for name in (*gone, *kept):
        (engines / name).mkdir(parents=True)
        (engines / name / "router.json").write_text("{}")
    listed = CliRunner().invoke(cli, ["model", "list"])
    assert listed.stderr == "No engine yet; `sidecar model build` makes one.\n"
    assert build("--adapter", adapter, "--name", "tiny").exit_code == 0
    assert {each.name for each in engines.iterdir()} == {"tiny", *gone, *kept}
    assert build("--adapter", adapter).exit_code == 0
    left = {each.name for each in engines.iterdir()} - {".tiny-router-compiled"}
    assert left == {"tiny", "tiny-router", *kept[1:]}


def test_info_takes_the_name_that_the_list_shows(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = build("--adapter", adapter).stdout.splitlines()[0]
    listed = CliRunner().invoke(cli, ["model", "list"]).stdout.splitlines()[1].split()[0]
    shown = CliRunner().invoke(cli, ["model", "info", listed]).stdout
    assert f"folder         {folder}\n" in shown
    (tmp_path / listed).mkdir()
    for name in (listed, "no-such"):
        assert CliRunner().invoke(cli, ["model", "info", name]).exit_code != 0


def test_info_names_the_adapter(adapter: Path) -> None:
    folder = build("--adapter", adapter).stdout.splitlines()[0]
    result = CliRunner().invoke(cli, ["model", "info", folder])
    assert f"adapter        sha256:{load_engine(Path(folder)).router.adapter_sha256}" in (
        result.stdout
    )
    assert "trained        to route" in result.stdout


def test_a_second_opinion_is_built_from_the_encoder_that_comes_along(fused: Path) -> None:
    folder = build("--adapter", fused).stdout.splitlines()[0]
    second = load_engine(Path(folder)).router.second_opinion
    assert second is not None
    result = CliRunner().invoke(cli, ["model", "info", folder])
    assert f"second opinion sha256:{second.adapter_sha256}; weights 0.5 of" in result.stdout
    assert "temperature    1.5" in result.stdout


@pytest.mark.parametrize("upgraded", [False, True])
@pytest.mark.parametrize("name", ["adapter", "fused"])
def test_a_fitted_temperature_outlives_the_next_build(
    request: pytest.FixtureRequest, name: str, upgraded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = request.getfixturevalue(name)
    folder = Path(build("--adapter", path).stdout.splitlines()[0])
    write_temperature(folder, 3.5)
    if upgraded:
        monkeypatch.setattr("sidecar.engines.cpu.GRAPH_VERSION", 99)
    assert build("--adapter", path).exit_code == 0
    router = load_engine(folder).router
    assert (router.decision_temperature, router.graph_version == 99) == (3.5, upgraded)
    info = CliRunner().invoke(cli, ["model", "info", str(folder)])
    assert "temperature    3.5, fitted to it" in info.stdout


def test_a_fitted_temperature_is_not_that_of_other_weights(base: Path, adapter: Path) -> None:
    folder = Path(build("--adapter", adapter).stdout.splitlines()[0])
    write_temperature(folder, 3.5)
    command = ("--source", base, "--prompt-format", "compact-v1", "--name", "tiny-router")
    assert build(*command, "--out", folder).exit_code == 0
    assert load_engine(folder).router.decision_temperature == 1.0


def test_another_encoder_can_be_named(fused: Path, tmp_path: Path) -> None:
    other = replace(TINY_ENCODER, seed=9).write(tmp_path / "other")
    result = build("--adapter", fused, "--encoder", other)
    assert isinstance(result.exception, EngineError)
    assert f"{other}" in str(result.exception)


def test_a_checkpoint_is_written_without_the_second_opinion(fused: Path, tmp_path: Path) -> None:
    result = build("--adapter", fused, "--target", "huggingface", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert open_hugging_face(tmp_path / "out").architecture.layers == LLAMA.layers


def test_the_shipped_adapter_is_whole_and_small() -> None:
    folder = shipped_adapter()
    if folder is None:
        pytest.skip("this copy has no adapter in models/")
    adapter = open_adapter(folder)
    assert adapter.model_card is not None
    assert adapter.facts.licence
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 25_000_000
