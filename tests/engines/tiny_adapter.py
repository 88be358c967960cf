"""Adapters for the tiny models: random codes by seed, in files as training writes them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.engines.engine_directory import sha256_of
from tests.engines.tiny_models import TinyModel

Tensors = dict[str, npt.NDArray[Any]]

LEVELS = {1: (-1.0, 1.0), 2: (-1.510, -0.4528, 0.4528, 1.510)}
NORM = "model.layers.1.input_layernorm.weight"
MATRICES = (
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.2.self_attn.k_proj.weight",
    "model.layers.2.mlp.down_proj.weight",
)
_TYPES = {"float16": "F16", "float32": "F32", "uint8": "U8"}


def change_of(model: TinyModel, bits: int = 2) -> Tensors:
    """The tensors of an adapter that changes three matrices and a norm."""
    rng = np.random.default_rng(5)
    tensors: Tensors = {NORM: rng.random(model.hidden, np.float32) + np.float32(0.5)}
    for name in MATRICES:
        rows, columns = model.tensors()[name].shape
        codes = rng.integers(0, 256, (rows, -(-columns * bits // 8)))
        tensors[f"{name}.codes"] = codes.astype(np.uint8)
        tensors[f"{name}.scale"] = (0.2 * rng.random((rows,))).astype(np.float16)
    return tensors


def merged_by_hand(model: TinyModel, change: Tensors, bits: int = 2) -> Tensors:
    """The model's tensors with `change` added, one weight after the other."""
    tensors: Tensors = {name: values.copy() for name, values in model.tensors().items()}
    tensors[NORM] = change[NORM].astype(np.float16)
    for name in MATRICES:
        codes, scale = change[f"{name}.codes"], change[f"{name}.scale"].astype(np.float32)
        old = tensors[name]
        new = np.zeros(old.shape, np.float32)
        for row, column in np.ndindex(*old.shape):
            byte, bit = divmod(column * bits, 8)
            level = LEVELS[bits][(int(codes[row, byte]) >> bit) % 2**bits]
            new[row, column] = np.float32(old[row, column]) + np.float32(level) * scale[row]
        tensors[name] = new.astype(np.float16)
    return tensors


def base_sha256(base: Path) -> str:
    """Of the weights in the Hugging Face folder `base`."""
    return sha256_of(base / "model.safetensors")


def write_adapter(folder: Path, base: Path, change: Tensors, bits: int = 2, **facts: Any) -> Path:
    """An adapter folder for the weights in the Hugging Face folder `base`.

    Args:
        facts: of adapter.json, instead of those that are right; None leaves one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sha256 = base_sha256(base)
    weights = folder / "adapter.safetensors"
    write_weights(weights, change, {**METADATA, "bits": str(bits), "base_sha256": sha256})
    content: dict[str, Any] = {
        "schema_version": 1,
        "id": "tiny-router",
        "file": weights.name,
        "sha256": sha256_of(weights),
        "base": {"name": "tiny base", "sha256": sha256},
        "prompt_format": "compact-v1",
        "temperature": {"openvino": 1.25},
        **facts,
    }
    given = {name: value for name, value in content.items() if value is not None}
    (folder / "adapter.json").write_text(json.dumps(given))
    return folder


METADATA = {"format": "row-scaled-delta-v1", "bits": "2"}


def write_weights(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> Path:
    """https://github.com/huggingface/safetensors#format"""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    body = b""
    for name, values in tensors.items():
        raw = values.tobytes()
        header[name] = {
            "dtype": _TYPES[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path
