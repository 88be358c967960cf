import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from cpu_engine.engine_files import open_engine
from cpu_engine.errors import EngineFilesError

from sidecar.engines import (
    EngineError,
    EngineInfo,
    build_cpu_engine,
    load_engine,
    read_engine,
    read_routing_facts,
)
from sidecar.engines.engine_directory import compiled_folder, write_manifest
from tests.engines.tiny_models import LLAMA, QWEN2


@pytest.fixture
def engine(engines: Mapping[str, EngineInfo], tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(engines["llama"].path, tmp_path / "engine"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return LLAMA.write(tmp_path / "weights")


def build(
    source: Path,
    out: Path,
    *,
    prompt_format: str = "compact-v1",
    progress: Callable[[str], None] = lambda step: None,
) -> EngineInfo:
    return build_cpu_engine(
        source, out, model_id="tiny", prompt_format=prompt_format, progress=progress
    )


def test_describes_itself(engines: Mapping[str, EngineInfo]) -> None:
    info = load_engine(engines["qwen2"].path)
    assert info == engines["qwen2"]
    router = info.router
    assert (router.model_id, router.prompt_format) == ("tiny-qwen2", "compact-v1")
    assert (router.end_id, router.pad_id) == (2, 0)
    assert (router.vocab_size, router.context_length) == (QWEN2.vocab, 512)
    assert router.temperature == 1.0
    assert router.architecture.qkv_bias
    assert not router.architecture.tied_embeddings
    assert info.tokenizer_path.is_file()
    assert info.graph_path.is_file()


def test_is_as_readable_to_the_model_server(engines: Mapping[str, EngineInfo]) -> None:
    info = engines["llama"]
    facts = open_engine(info.path)
    assert facts.graph_path == info.graph_path
    assert facts.tokenizer_path == info.tokenizer_path
    assert facts.vocab_size == info.router.vocab_size


def change(path: Path, key: str, value: object) -> None:
    content = json.loads(path.read_text())
    content[key] = value
    path.write_text(json.dumps(content))


def damaged_weights(engine: Path) -> str:
    with (engine / "model.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"damaged")
    return "model.bin: sha256"


def missing_weights(engine: Path) -> str:
    (engine / "model.bin").unlink()
    return "model.bin: (missing|No such file)"


def missing_manifest(engine: Path) -> str:
    (engine / "manifest.json").unlink()
    return "manifest.json: (missing|No such file)"


def manifest_not_json(engine: Path) -> str:
    (engine / "manifest.json").write_text("{")
    return "manifest.json: not valid JSON"


def newer_manifest(engine: Path) -> str:
    change(engine / "manifest.json", "schema_version", 2)
    return "manifest.json: schema_version is 2"


def newer_router(engine: Path) -> str:
    change(engine / "router.json", "schema_version", 99)
    write_new_manifest(engine)
    return "router.json: schema_version is 99"


def write_new_manifest(engine: Path) -> None:
    (engine / "manifest.json").unlink()
    write_manifest(engine)


DAMAGES = [
    damaged_weights,
    missing_weights,
    missing_manifest,
    manifest_not_json,
    newer_manifest,
    newer_router,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(engine: Path, damage: Callable[[Path], str]) -> None:
    expected = damage(engine)
    with pytest.raises(EngineError, match=expected):
        load_engine(engine)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_by_the_model_server(engine: Path, damage: Callable[[Path], str]) -> None:
    expected = damage(engine)
    with pytest.raises(EngineFilesError, match=expected):
        open_engine(engine)


def test_a_cut_file_is_seen_without_reading_it(engine: Path) -> None:
    size = (engine / "model.bin").stat().st_size
    with (engine / "model.bin").open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(EngineError, match=f"{size - 1} bytes, the manifest says {size}"):
        read_engine(engine)


def test_a_sidecar_needs_no_graph(engine: Path) -> None:
    whole = read_engine(engine)
    for file in engine.glob("model.*"):
        file.unlink()

    assert read_routing_facts(engine) == whole


@pytest.mark.parametrize("name", ["manifest.json", "router.json", "tokenizer.json"])
def test_a_sidecar_names_what_it_misses(engine: Path, name: str) -> None:
    (engine / name).unlink()

    with pytest.raises(EngineError, match=f"{name}: missing"):
        read_routing_facts(engine)


def test_a_sidecar_refuses_a_changed_tokenizer(engine: Path) -> None:
    with (engine / "tokenizer.json").open("a") as file:
        file.write(" ")

    with pytest.raises(EngineError, match=r"tokenizer.json: sha256 is"):
        read_routing_facts(engine)


def test_a_missing_fact_is_named(engine: Path) -> None:
    content = json.loads((engine / "router.json").read_text())
    del content["end_id"]
    (engine / "router.json").write_text(json.dumps(content))
    write_new_manifest(engine)
    with pytest.raises(EngineError, match=r"router\.json: end_id missing"):
        read_engine(engine)


@pytest.mark.parametrize(
    ("key", "value"), [("architecture", {"layers": 2}), ("weight_storage", "f4")]
)
def test_facts_of_another_kind_are_named(engine: Path, key: str, value: object) -> None:
    change(engine / "router.json", key, value)
    write_new_manifest(engine)
    with pytest.raises(EngineError, match="architecture or weight_storage is not as this version"):
        read_engine(engine)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 255
    path.write_bytes(content)


class TestBuild:
    def test_same_source_and_options_reuse_the_engine(self, weights: Path, tmp_path: Path) -> None:
        out = tmp_path / "engine"
        first = build(weights, out)
        written = (out / "model.bin").stat().st_mtime_ns
        steps: list[str] = []
        assert build(weights, out, progress=steps.append) == first
        assert (out / "model.bin").stat().st_mtime_ns == written
        assert steps[-1] == f"{out} is up to date"

    def test_another_option_builds_anew(self, weights: Path, tmp_path: Path) -> None:
        out = tmp_path / "engine"
        build(weights, out)
        assert build(weights, out, prompt_format="other").router.prompt_format == "other"

    def test_other_weights_build_anew(self, weights: Path, tmp_path: Path) -> None:
        out = tmp_path / "engine"
        first = build(weights, out)
        second = build(QWEN2.write(tmp_path / "qwen2"), out)
        assert first.router.weights_sha256 != second.router.weights_sha256
        assert load_engine(out) == second

    def test_what_was_compiled_from_the_old_engine_goes(
        self, weights: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "engine"
        build(weights, out)
        compiled = compiled_folder(out)
        compiled.mkdir()
        build(weights, out)
        assert compiled.exists()
        build(weights, out, prompt_format="other")
        assert not compiled.exists()

    @pytest.mark.parametrize("damage", [Path.unlink, flip_a_byte])
    def test_a_damaged_engine_is_replaced(
        self, weights: Path, tmp_path: Path, damage: Callable[[Path], None]
    ) -> None:
        out = tmp_path / "engine"
        first = build(weights, out)
        damage(out / "model.bin")
        build(weights, out)
        assert load_engine(out) == first

    def test_steps_are_reported(self, weights: Path, tmp_path: Path) -> None:
        steps: list[str] = []
        build(weights, tmp_path / "engine", progress=steps.append)
        assert steps == ["checksum of weights", "compiling 3 layers", "manifest"]

    def test_failure_leaves_nothing_and_the_old_engine_as_it_was(
        self, weights: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "folder" / "engine"
        old = build(weights, out)
        broken = QWEN2.write(tmp_path / "broken")
        (broken / "tokenizer.json").write_text("{")
        with pytest.raises(EngineError, match=r"tokenizer\.json"):
            build(broken, out)

        def fail(step: str) -> None:
            if step == "manifest":
                raise RuntimeError(step)

        with pytest.raises(RuntimeError):
            build(QWEN2.write(tmp_path / "qwen2"), out, progress=fail)
        assert load_engine(out) == old
        assert [path.name for path in out.parent.iterdir()] == ["engine"]

    @pytest.mark.parametrize("failing", [0, 1])
    def test_an_engine_that_cannot_be_replaced_stays(
        self, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
    ) -> None:
        out = tmp_path / "folder" / "engine"
        old = build(weights, out)
        renames = iter(range(9))
        replace = os.replace

        def as_of_a_mount(source: Path, target: Path) -> None:
            if next(renames) == failing:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            replace(source, target)

        monkeypatch.setattr(os, "replace", as_of_a_mount)
        with pytest.raises(EngineError, match="engine: cannot be replaced: Device or resource"):
            build(weights, out, prompt_format="other")
        assert load_engine(out) == old
        assert [path.name for path in out.parent.iterdir()] == ["engine"]

    def test_a_folder_that_is_no_engine_is_not_touched(self, weights: Path, tmp_path: Path) -> None:
        precious = tmp_path / "precious"
        precious.mkdir()
        (precious / "file").write_text("mine")
        with pytest.raises(EngineError, match="not an engine directory"):
            build(weights, precious)
        assert (precious / "file").read_text() == "mine"

    def test_a_missing_source_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match="nowhere: no such file"):
            build(tmp_path / "nowhere", tmp_path / "engine")
