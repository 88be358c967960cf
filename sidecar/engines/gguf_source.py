"""Reads a model out of a GGUF file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, read and dequantised by
llama.cpp's own `gguf` package.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize

from sidecar.engines.errors import EngineError
from sidecar.engines.gguf_tokenizer import tokenizer_from_gguf
from sidecar.engines.weights import Architecture, FloatArray, ModelSource

_FAMILIES = ("llama", "qwen2")

# Hugging Face name -> GGUF name; `{i}` is the layer.
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def open_gguf(path: Path) -> ModelSource:
    """Open one GGUF file.

    Raises:
        EngineError: not GGUF, an architecture other than Llama and Qwen2, scaled rotary
            embeddings, or an unknown tokenizer.
    """
    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise EngineError(f"{path}: not a readable GGUF file ({error})") from error
    fields = _Fields(path, reader)
    weights = GgufWeights(path, reader, fields.architecture_name())
    architecture = _architecture(fields, weights)
    weights.check_shapes(architecture)
    end_id = fields.integer("tokenizer.ggml.eos_token_id")
    return ModelSource(
        architecture=architecture,
        weights=weights,
        tokenizer=tokenizer_from_gguf(path, fields.values()),
        end_id=end_id,
        pad_id=fields.integer("tokenizer.ggml.padding_token_id", default=end_id),
        begin_id=fields.get("tokenizer.ggml.bos_token_id"),
        chat_template=fields.get("tokenizer.chat_template") or "",
    )


class _Fields:
    """Typed access to the file's metadata."""

    def __init__(self, path: Path, reader: GGUFReader) -> None:
        self._path = path
        self._reader = reader

    def values(self) -> dict[str, Any]:
        wanted = ("tokenizer.ggml.", "general.")
        return {
            key: field.contents()
            for key, field in self._reader.fields.items()
            if key.startswith(wanted)
        }

    def get(self, key: str) -> Any:
        field = self._reader.get_field(key)
        return None if field is None else field.contents()

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise EngineError(f"{self._path}: metadata key {key!r} is missing; the file is damaged")
        return float(value)

    def integer(self, key: str, default: int | None = None) -> int:
        return int(self.number(key, default))

    def architecture_name(self) -> str:
        name = str(self.get("general.architecture"))
        if name not in _FAMILIES:
            raise EngineError(
                f"{self._path}: architecture {name!r} is not supported; use a model of one of "
                f"{', '.join(_FAMILIES)}"
            )
        return name


class GgufWeights:
    """Tensors under Hugging Face's names."""

    def __init__(self, path: Path, reader: GGUFReader, family: str) -> None:
        self._path = path
        self._family = family
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._heads: dict[str, int] = {}

    def has(self, name: str) -> bool:
        return _gguf_name(name) in self._tensors

    def check_shapes(self, architecture: Architecture) -> None:
        """Remember the head counts, and refuse a file with per-frequency rotary factors (the form
        in which GGUF stores Llama 3's scaling)."""
        if "rope_freqs.weight" in self._tensors:
            raise EngineError(
                f"{self._path}: scaled rotary embeddings (rope_freqs) are not supported"
            )
        self._heads = {"q_proj": architecture.heads, "k_proj": architecture.kv_heads}

    def tensor(self, name: str) -> FloatArray:
        stored = self._tensors.get(_gguf_name(name))
        if stored is None:
            raise EngineError(f"{self._path}: tensor {_gguf_name(name)!r} is missing")
        values: FloatArray = np.asarray(dequantize(stored.data, stored.tensor_type))
        projection = name.split(".")[-2]
        if self._family == "llama" and projection in self._heads:
            return _halves_from_pairs(values, self._heads[projection])
        return values


def _gguf_name(name: str) -> str:
    layer = _LAYER.fullmatch(name)
    if layer:
        return f"blk.{layer.group(1)}.{_NAMES[layer.group(2)]}"
    return _NAMES[name]


def _halves_from_pairs(values: FloatArray, heads: int) -> FloatArray:
    """Rows of one head from (pair, element) order back to (element, pair) order.

    llama.cpp's converter interleaves the Q and K rows of Llama models for its own rotary kernel
    (`LlamaModel.permute` in convert_hf_to_gguf.py); Qwen2's are left alone.
    """
    rest = values.shape[1:]
    paired = values.reshape(heads, values.shape[0] // heads // 2, 2, *rest)
    return paired.swapaxes(1, 2).reshape(values.shape)


def _architecture(fields: _Fields, weights: GgufWeights) -> Architecture:
    family = fields.architecture_name()
    scaling = fields.get(f"{family}.rope.scaling.type")
    if scaling not in (None, "none"):
        raise EngineError(
            f"{fields._path}: rotary scaling {scaling!r} is not supported; use a model without it"
        )
    hidden = fields.integer(f"{family}.embedding_length")
    heads = fields.integer(f"{family}.attention.head_count")
    tokens = fields.get("tokenizer.ggml.tokens") or ()
    return Architecture(
        family=family,
        vocab_size=fields.integer(f"{family}.vocab_size", default=len(tokens)),
        hidden_size=hidden,
        intermediate_size=fields.integer(f"{family}.feed_forward_length"),
        layers=fields.integer(f"{family}.block_count"),
        heads=heads,
        kv_heads=fields.integer(f"{family}.attention.head_count_kv", default=heads),
        head_dim=fields.integer(f"{family}.attention.key_length", default=hidden // heads),
        context_length=fields.integer(f"{family}.context_length"),
        rope_theta=fields.number(f"{family}.rope.freq_base", default=10000.0),
        rms_eps=fields.number(f"{family}.attention.layer_norm_rms_epsilon"),
        qkv_bias=weights.has("model.layers.0.self_attn.q_proj.bias"),
        tied_embeddings=not weights.has("lm_head.weight"),
    )
