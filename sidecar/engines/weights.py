"""What a decoder-only model is made of, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

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
    """

    architecture: Architecture
    weights: Weights
    tokenizer: Mapping[str, Any]
    end_id: int
    pad_id: int
