"""How long prompts may be, and how large what is built will be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sidecar.engines.engine_directory import ANSWER_TOKENS
from sidecar.engines.errors import EngineError
from sidecar.engines.trtllm.precision import Precision
from sidecar.engines.weights import Architecture, tensor_shapes

TOKENS_PER_BLOCK = 32
"""Unit in which the KV cache is kept and shared."""

_KV_BYTES = 2
_HEAD_BYTES = 2
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine is built for, in tokens.

    Args:
        max_input_len: of the longest prompt.
        max_batch_size: requests computed together.
    """

    max_input_len: int = 4096
    max_batch_size: int = 64

    @property
    def max_seq_len(self) -> int:
        """Prompt and answer together; the context length that the sidecar is told."""
        return self.max_input_len + ANSWER_TOKENS

    @property
    def max_num_tokens(self) -> int:
        """Of one step over all its requests. Never less than a prompt, so that none has to be
        read in chunks."""
        return max(8192, self.max_input_len)

    def check(self, architecture: Architecture) -> None:
        """Raises EngineError if the model was not made for prompts this long."""
        if self.max_seq_len > architecture.context_length:
            raise EngineError(
                f"prompts of {self.max_input_len} tokens and {ANSWER_TOKENS} for the answer are "
                f"more than the model's context of {architecture.context_length}; choose "
                f"--max-prompt-tokens {architecture.context_length - ANSWER_TOKENS} or less"
            )


def limits_for(longest_prefix: int, conversation: int, max_batch_size: int = 64) -> EngineLimits:
    """Limits with room for the longest route block of the policies and a conversation beside it,
    rounded up to whole blocks."""
    blocks = math.ceil((longest_prefix + conversation) / TOKENS_PER_BLOCK)
    return EngineLimits(blocks * TOKENS_PER_BLOCK, max_batch_size)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Computed sizes in bytes. Tables beside the weights are left out, so that real files are some
    per cent larger."""

    source: int
    checkpoint: int
    engine: int
    kv_per_token: int

    @property
    def disk(self) -> int:
        """Free space for checkpoint, engine and its copy."""
        return self.checkpoint + 2 * self.engine + 1024 * _MIB

    @property
    def gpu_memory_to_build(self) -> int:
        """The weights twice (as read, as optimised) and room for the builder's trials."""
        return self.source + self.engine + 2048 * _MIB


def sizes_of(architecture: Architecture, precision: Precision) -> Sizes:
    """TensorRT-LLM keeps the embedding and the head apart also where they are the same numbers."""
    total = sum(math.prod(shape) for shape in tensor_shapes(architecture).values())
    table = architecture.vocab_size * architecture.hidden_size
    body = total - table * (1 if architecture.tied_embeddings else 2)
    weights = int(body * precision.facts.weight_bits / 8) + 2 * table * _HEAD_BYTES
    kv = architecture.layers * 2 * architecture.kv_heads * architecture.head_dim * _KV_BYTES
    return Sizes(source=2 * total, checkpoint=weights, engine=weights, kv_per_token=kv)
