"""Reads a model out of a Hugging Face directory: config.json, safetensors, tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidecar.engines.errors import EngineError
from sidecar.engines.safetensors_file import SafetensorsFile
from sidecar.engines.weights import Architecture, FloatArray, ModelSource

_FAMILIES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}


def open_hugging_face(path: Path) -> ModelSource:
    """Open a model directory.

    Raises:
        EngineError: a file is missing or damaged, an architecture other than Llama and Qwen2, or
            a feature this engine does not compute (scaled rotary embeddings, sliding windows).
    """
    config = _json(path / "config.json")
    architecture = _architecture(path / "config.json", config)
    end_id, pad_id = _end_and_pad(path, config)
    return ModelSource(
        architecture=architecture,
        weights=SafetensorsWeights(path, safetensors_files(path)),
        tokenizer=_json(path / "tokenizer.json"),
        end_id=end_id,
        pad_id=pad_id,
        begin_id=_begin(config),
        chat_template=_chat_template(path),
    )


def hugging_face_files(path: Path) -> tuple[Path, ...]:
    """Every file that the engine depends on, in a fixed order.

    Raises:
        EngineError: one is missing.
    """
    required = (path / "config.json", path / "tokenizer.json")
    for file in required:
        if not file.is_file():
            raise EngineError(f"{file}: missing; download the whole model directory")
    generation = path / "generation_config.json"
    optional = (generation,) if generation.is_file() else ()
    return (*required, *optional, *safetensors_files(path))


def safetensors_files(path: Path) -> tuple[Path, ...]:
    """The files with tensors, in a fixed order. Raises EngineError if one is missing."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(_json(index)["weight_map"].values()))
        files = tuple(path / name for name in names)
    else:
        files = (path / "model.safetensors",)
    for file in files:
        if not file.is_file():
            raise EngineError(f"{file}: missing; download the whole model directory")
    return files


class SafetensorsWeights:
    """The tensors of one or several safetensors files."""

    def __init__(self, path: Path, files: tuple[Path, ...]) -> None:
        self._path = path
        opened = [SafetensorsFile(file) for file in files]
        self._file_of = {name: file for file in opened for name in file.names}

    def tensor(self, name: str) -> FloatArray:
        file = self._file_of.get(name)
        if file is None:
            raise EngineError(f"{self._path}: tensor {name!r} is in none of the safetensors files")
        return file.read(name)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EngineError(f"{path}: missing; download the whole model directory") from error
    except ValueError as error:
        raise EngineError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise EngineError(f"{path}: must hold a JSON object")
    return content


def _architecture(path: Path, config: Mapping[str, Any]) -> Architecture:
    names = config.get("architectures") or []
    family = _FAMILIES.get(names[0] if names else "")
    if family is None:
        raise EngineError(f"{path}: architectures is {names}; supported are {', '.join(_FAMILIES)}")
    rope = _rope(path, config)
    _refuse_unsupported(path, config)
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return Architecture(
            family=family,
            vocab_size=int(config["vocab_size"]),
            hidden_size=hidden,
            intermediate_size=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            context_length=int(config["max_position_embeddings"]),
            rope_theta=rope,
            rms_eps=float(config["rms_norm_eps"]),
            qkv_bias=family == "qwen2",
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise EngineError(f"{path}: key {error} is missing") from error


def _rope(path: Path, config: Mapping[str, Any]) -> float:
    """Base of the rotary embedding. transformers 5 moved it and the scaling into
    `rope_parameters`; older files have `rope_theta` and `rope_scaling`."""
    parameters = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or parameters
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise EngineError(
            f"{path}: rotary scaling {kind!r} is not supported; use a model without rope scaling"
        )
    return float(parameters.get("rope_theta", config.get("rope_theta", 10000.0)))


def _refuse_unsupported(path: Path, config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise EngineError(f"{path}: hidden_act {activation!r} is not supported; only 'silu' is")
    for key in ("use_sliding_window", "attention_bias", "mlp_bias"):
        if config.get(key):
            raise EngineError(f"{path}: {key} is true, which is not supported")
    partial = config.get("partial_rotary_factor", 1.0)
    if partial != 1.0:
        raise EngineError(f"{path}: partial_rotary_factor {partial} is not supported; only 1.0 is")


def _end_and_pad(path: Path, config: Mapping[str, Any]) -> tuple[int, int]:
    """The chat's end token: generation_config.json lists it first where config.json still has the
    base model's."""
    generation_path = path / "generation_config.json"
    generation = _json(generation_path) if generation_path.exists() else {}
    end = generation.get("eos_token_id", config.get("eos_token_id"))
    if isinstance(end, list):
        end = end[0] if end else None
    if not isinstance(end, int):
        raise EngineError(f"{path / 'config.json'}: eos_token_id is missing")
    pad = generation.get("pad_token_id", config.get("pad_token_id"))
    return end, pad if isinstance(pad, int) else end


def _begin(config: Mapping[str, Any]) -> int | None:
    begin = config.get("bos_token_id")
    return begin if isinstance(begin, int) else None


def _chat_template(path: Path) -> str:
    """Newer versions of transformers write it as a file of its own, older ones into
    tokenizer_config.json: one template, or several of which one is named `default`."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = path / "tokenizer_config.json"
    template = _json(config).get("chat_template") if config.is_file() else None
    if isinstance(template, list):
        named = {each["name"]: each["template"] for each in template}
        template = named.get("default")
    return template if isinstance(template, str) else ""
