"""What a decoder-only model is made of, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sidecar.engines.errors import EngineError

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """Facts of a Llama or Qwen2 decoder.

    Args:
        family: `llama` or `qwen2`; they differ in the bias of the Q, K and V projections alone.
        context_length: tokens the weights were trained for.
        rope_theta: base of the rotary embedding's frequencies; no scaling.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context_length: int
    rope_theta: float
    rms_eps: float
    qkv_bias: bool
    tied_embeddings: bool

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in float32, all layers."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 4


class Weights(Protocol):
    """Named tensors in Hugging Face's names and layout (`model.layers.0.self_attn.q_proj.weight`,
    [out, in], rotary halves not interleaved), read one at a time."""

    def tensor(self, name: str) -> FloatArray:
        """The tensor in float16 or float32. Raises EngineError if there is none so named."""
        ...


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Weights on disk, opened.

    Args:
        tokenizer: content of `tokenizer.json` (the `tokenizers` library's format).
        end_id: the token that ends an answer.
        pad_id: filler of unused positions; never read by the model.
        begin_id: the token that begins a text, where the model has one.
        chat_template: Jinja template of its chat prompts; empty where the files name none. Routing
            does not use it.
    """

    architecture: Architecture
    weights: Weights
    tokenizer: Mapping[str, Any]
    end_id: int
    pad_id: int
    begin_id: int | None = None
    chat_template: str = ""


def tensor_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the decoder, from the embeddings to the head."""
    a = architecture
    hidden, queries, keys = a.hidden_size, a.heads * a.head_dim, a.kv_heads * a.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (a.vocab_size, hidden)}
    for layer in range(a.layers):
        name = f"model.layers.{layer}"
        for projection, rows in (("q", queries), ("k", keys), ("v", keys)):
            shapes[f"{name}.self_attn.{projection}_proj.weight"] = (rows, hidden)
            if a.qkv_bias:
                shapes[f"{name}.self_attn.{projection}_proj.bias"] = (rows,)
        shapes[f"{name}.self_attn.o_proj.weight"] = (hidden, queries)
        shapes[f"{name}.mlp.gate_proj.weight"] = (a.intermediate_size, hidden)
        shapes[f"{name}.mlp.up_proj.weight"] = (a.intermediate_size, hidden)
        shapes[f"{name}.mlp.down_proj.weight"] = (hidden, a.intermediate_size)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{name}.{norm}.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not a.tied_embeddings:
        shapes["lm_head.weight"] = (a.vocab_size, hidden)
    return shapes


def to_float16(name: str, values: FloatArray) -> npt.NDArray[np.float16]:
    """Float16 has more precision than bfloat16, and enough range.

    Raises:
        EngineError: for these values it has not.
    """
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise EngineError(f"tensor {name!r} has values that are not finite in float16")
    return rounded
