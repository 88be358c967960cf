"""Adapters: merged as they say, refused when they do not belong or are not whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sidecar.engines import (
    Adapter,
    EngineError,
    build_cpu_engine,
    describe_adapter,
    load_engine,
    open_adapter,
)
from sidecar.engines.adapter import open_merged
from sidecar.engines.delta import LEVELS, decode_rows
from tests.engines.parts import ask, compile_engine, logits_of, new_decider
from tests.engines.tiny_adapter import (
    MATRICES,
    METADATA,
    NORM,
    Tensors,
    base_sha256,
    change_of,
    merged_by_hand,
    write_adapter,
    write_weights,
)
from tests.engines.tiny_models import LLAMA, QWEN2, TinyModel

PROMPT = [1, 40, 41, 42, 50, 60, 2, 7]
MODELS = pytest.mark.parametrize("model", [LLAMA, QWEN2], ids=["llama", "qwen2"])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return LLAMA.write(tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", base, change_of(LLAMA))


def logits(engine: Path) -> npt.NDArray[np.float32]:
    decider = new_decider(compile_engine(engine, "f32"), engine / "tokenizer.json")
    first: npt.NDArray[np.float32] = logits_of(decider, [ask([], PROMPT, logits=True)])[0]
    return first


def build(source: Path, out: Path, adapter: Adapter | None = None) -> Path:
    return build_cpu_engine(
        source, out, model_id="tiny", prompt_format="compact-v1", adapter=adapter
    ).path


@MODELS
@pytest.mark.parametrize("bits", [1, 2])
def test_an_engine_of_base_and_adapter_computes_as_weights_merged_by_hand(
    model: TinyModel, bits: int, tmp_path: Path
) -> None:
    base = model.write(tmp_path / "base")
    change = change_of(model, bits)
    adapter = open_adapter(write_adapter(tmp_path / "adapter", base, change, bits))
    by_hand = Path(shutil.copytree(base, tmp_path / "by-hand"))
    write_weights(by_hand / "model.safetensors", merged_by_hand(model, change, bits), {})

    merged = logits(build(base, tmp_path / "merged", adapter))

    np.testing.assert_allclose(merged, logits(build(by_hand, tmp_path / "expected")), atol=1e-5)
    assert np.abs(merged - logits(build(base, tmp_path / "alone"))).max() > 0.1


def test_columns_that_do_not_fill_the_last_byte_are_decoded() -> None:
    codes = np.array([[0b11100100, 0b00000010]], np.uint8)
    decoded = decode_rows(codes, np.array([2], np.float16), 2, 5)
    np.testing.assert_array_equal(decoded, 2 * LEVELS[2][[0, 1, 2, 3, 2]][None])


def test_an_engine_says_which_adapter_it_was_built_from(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    opened = open_adapter(adapter)
    router = load_engine(build(base, tmp_path / "engine", opened)).router
    assert router.adapter_sha256 == opened.facts.sha256
    assert router.build_id == f"tiny@{opened.facts.sha256[:12]}"


def test_another_adapter_builds_anew(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    first = load_engine(build(base, out, open_adapter(adapter))).router
    change = change_of(LLAMA)
    change[NORM] = change[NORM] * np.float32(2)
    second = write_adapter(tmp_path / "second", base, change)
    assert load_engine(build(base, out, open_adapter(second))).router.weights_sha256 != (
        first.weights_sha256
    )
    assert load_engine(build(base, out)).router.adapter_sha256 == ""


def test_an_adapter_of_other_base_weights_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = TinyModel("llama", True, 10000.0, seed=8).write(tmp_path / "other")
    with pytest.raises(EngineError, match=r"made for the base weights tiny base, sha256 .*other"):
        build(other, tmp_path / "engine", open_adapter(adapter))
    assert not (tmp_path / "engine").exists()


def test_calibration_is_by_what_computes_the_engine(adapter: Path) -> None:
    opened = open_adapter(adapter)
    assert opened.temperature("openvino") == 1.25
    assert opened.temperature("tensorrt_llm") == 1.0


def change_facts(adapter: Path, **facts: object) -> None:
    path = adapter / "adapter.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def damaged_weights(adapter: Path) -> str:
    with (adapter / "adapter.safetensors").open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"damaged")
    return (
        r"adapter\.safetensors: sha256 is \w+, adapter\.json says \w+; get .*, or describe it again"
    )


def missing_weights(adapter: Path) -> str:
    (adapter / "adapter.safetensors").unlink()
    return r"adapter\.safetensors: missing"


def missing_facts(adapter: Path) -> str:
    (adapter / "adapter.json").unlink()
    return r"adapter\.json: missing, so .*adapter is not an adapter"


def facts_not_json(adapter: Path) -> str:
    (adapter / "adapter.json").write_text("{")
    return r"adapter\.json: not valid JSON"


def newer_schema(adapter: Path) -> str:
    change_facts(adapter, schema_version=2)
    return r"adapter\.json: schema_version is 2, this version reads up to 1; upgrade"


def no_schema(adapter: Path) -> str:
    change_facts(adapter, schema_version=None)
    return r"adapter\.json: schema_version is missing"


def no_base(adapter: Path) -> str:
    change_facts(adapter, base={"name": "x"})
    return r"adapter\.json: a fact is missing or of another kind.*sha256"


def empty_prompt_format(adapter: Path) -> str:
    change_facts(adapter, prompt_format="")
    return r"adapter\.json: id, file, sha256, prompt_format and base\.sha256 must be"


def other_base_than_its_weights(adapter: Path) -> str:
    change_facts(adapter, base={"name": "x", "sha256": "ff"})
    return r"base\.sha256 is ff, but adapter\.safetensors was made for"


def cold_temperature(adapter: Path) -> str:
    change_facts(adapter, temperature={"openvino": 0})
    return r"temperature\.openvino is 0\.0; it must be above 0"


def id_of_a_path(adapter: Path) -> str:
    change_facts(adapter, id="../elsewhere")
    return r"id is '\.\./elsewhere'"


def file_elsewhere(adapter: Path) -> str:
    change_facts(adapter, file="../adapter.safetensors")
    return r"file is '\.\./adapter\.safetensors'; it must be a name within"


@pytest.mark.parametrize(
    "damage",
    [
        damaged_weights,
        missing_weights,
        missing_facts,
        facts_not_json,
        newer_schema,
        no_schema,
        no_base,
        empty_prompt_format,
        other_base_than_its_weights,
        cold_temperature,
        id_of_a_path,
        file_elsewhere,
    ],
)
def test_a_damaged_adapter_is_named(adapter: Path, damage: Callable[[Path], str]) -> None:
    expected = damage(adapter)
    with pytest.raises(EngineError, match=expected):
        open_adapter(adapter)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "row-scaled-delta-v2"}, "format is 'row-scaled-delta-v2', this version reads"),
        ({"format": ""}, "format is ''"),
        ({"bits": "3"}, "bits is '3'; it must be 1, 2 or 4"),
        ({"bits": "two"}, "bits is 'two'"),
    ],
    ids=str,
)
def test_weights_of_another_format_are_refused(
    metadata: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = write_weights(tmp_path / "a.safetensors", change_of(LLAMA), METADATA | metadata)
    with pytest.raises(EngineError, match=message):
        open_adapter(path)


def unknown_tensor(change: Tensors) -> str:
    change["model.layers.9.mlp.up_proj.weight"] = change[NORM]
    return r"changes 'model\.layers\.9\.mlp\.up_proj\.weight', which the base does not have"


def matrix_in_full(change: Tensors) -> str:
    change["model.embed_tokens.weight"] = np.zeros((LLAMA.vocab, LLAMA.hidden), np.float32)
    return r"changes 'model\.embed_tokens\.weight'"


def codes_without_scale(change: Tensors) -> str:
    del change[f"{MATRICES[0]}.scale"]
    return r"q_proj\.weight\.scale' is None; expected \('F16', \(48,\)\)"


def scale_without_codes(change: Tensors) -> str:
    del change[f"{MATRICES[0]}.codes"]
    return r"changes '.*q_proj\.weight\.scale'"


def cut_codes(change: Tensors) -> str:
    change[f"{MATRICES[0]}.codes"] = change[f"{MATRICES[0]}.codes"][:, :-1]
    return r"q_proj\.weight\.codes' is \('U8', \(48, 11\)\); expected \('U8', \(48, 12\)\)"


def rounded_norm(change: Tensors) -> str:
    change[NORM] = change[NORM].astype(np.float16)
    return r"input_layernorm\.weight' is \('F16', \(48,\)\); expected \('F32', \(48,\)\)"


@pytest.mark.parametrize(
    "differ",
    [
        unknown_tensor,
        matrix_in_full,
        codes_without_scale,
        scale_without_codes,
        cut_codes,
        rounded_norm,
    ],
)
def test_a_change_that_does_not_fit_the_base_is_refused(
    differ: Callable[[Tensors], str], base: Path, tmp_path: Path
) -> None:
    change = change_of(LLAMA)
    expected = differ(change)
    adapter = open_adapter(write_adapter(tmp_path / "adapter", base, change))
    with pytest.raises(EngineError, match=expected):
        open_merged(base, adapter)


def test_a_change_beyond_float16_is_refused(base: Path, tmp_path: Path) -> None:
    change = change_of(LLAMA)
    change[f"{MATRICES[0]}.scale"] = np.full(48, 65504, np.float16)
    adapter = open_adapter(write_adapter(tmp_path / "adapter", base, change))
    with pytest.raises(EngineError, match=r"q_proj\.weight' has values that are not finite"):
        build(base, tmp_path / "engine", adapter)


class TestFileAlone:
    def test_is_an_adapter_without_calibration(self, base: Path, tmp_path: Path) -> None:
        metadata = {**METADATA, "base_sha256": base_sha256(base)}
        path = write_weights(tmp_path / "mine.safetensors", change_of(LLAMA), metadata)
        adapter = open_adapter(path)
        assert (adapter.facts.id, adapter.facts.prompt_format) == ("mine", "")
        assert adapter.temperature("openvino") == 1.0
        open_merged(base, adapter)

    def test_that_was_cut_is_refused(self, adapter: Path) -> None:
        path = adapter / "adapter.safetensors"
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 1)
        with pytest.raises(EngineError, match=r"not a readable safetensors file.*ends at byte"):
            open_adapter(path)

    def test_is_described(self, base: Path, adapter: Path) -> None:
        (adapter / "adapter.json").unlink()
        described = describe_adapter(
            adapter,
            model_id="mine",
            prompt_format="compact-v1",
            base_name="tiny",
            temperature={"openvino": 2.0},
            training={"minutes": 3},
        )
        assert open_adapter(adapter) == described
        assert described.facts.base.sha256 == base_sha256(base)
        assert described.temperature("openvino") == 2.0

    def test_an_id_that_is_none_leaves_its_description_as_it_is(self, adapter: Path) -> None:
        before = (adapter / "adapter.json").read_text()
        with pytest.raises(
            EngineError, match=r"adapter\.json: id is 'My Router'; it must be of lower-case"
        ):
            describe_adapter(adapter, model_id="My Router", prompt_format="compact-v1")
        assert (adapter / "adapter.json").read_text() == before

    def test_that_is_missing_is_not_described(self, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match=r"adapter\.safetensors: not a readable"):
            describe_adapter(tmp_path, model_id="mine", prompt_format="compact-v1")

    def test_with_an_id_that_cannot_be_keeps_its_description(self, adapter: Path) -> None:
        before = (adapter / "adapter.json").read_text()
        with pytest.raises(EngineError, match=r"id is 'My Router'; it must be of lower-case"):
            describe_adapter(adapter, model_id="My Router", prompt_format="compact-v1")
        assert (adapter / "adapter.json").read_text() == before
