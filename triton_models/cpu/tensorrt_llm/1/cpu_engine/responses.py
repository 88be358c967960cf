"""An answer as tensors of TensorRT-LLM's names, types and shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cpu_engine.decisions import Outcome
from cpu_engine.requests import TOKENS_PER_BLOCK, Asked


def to_tensors(asked: Asked, outcome: Outcome) -> dict[str, npt.NDArray[Any]]:
    """The outputs that were requested and switched on: output_ids [1, 1, n], sequence_length
    [1, 1], cum_log_probs [1, 1], output_log_probs [1, 1, n], generation_logits
    [1, 1, n, vocabulary or labels], second_opinion_logits [1, routes + 1], kv_cache_* [1, 1]; n is
    0 where the encoder was enough, or asked alone."""
    answer = outcome.answer
    shown = answer.tokens if asked.without_input else [*asked.ids.tolist(), *answer.tokens]
    tensors: dict[str, npt.NDArray[Any]] = {
        "output_ids": np.array(shown, np.int32).reshape(1, 1, -1),
        "sequence_length": np.array([[len(shown)]], np.int32),
    }
    if asked.log_probs:
        tensors["cum_log_probs"] = np.array([[answer.cum_log_prob]], np.float32)
        tensors["output_log_probs"] = np.array(answer.log_probs, np.float32).reshape(1, 1, -1)
    if asked.logits:
        tensors["generation_logits"] = _logits(asked, outcome)[None, None]
    if outcome.opinion is not None:
        tensors["second_opinion_logits"] = outcome.opinion[None]
    if asked.perf_metrics:
        tensors.update(_blocks(asked, outcome))
    return {name: values for name, values in tensors.items() if name in asked.outputs}


def _logits(asked: Asked, outcome: Outcome) -> npt.NDArray[np.float32]:
    if outcome.logits:
        return np.stack(outcome.logits)
    return np.zeros((0, 0 if asked.label_ids is None else len(asked.label_ids)), np.float32)


def _blocks(asked: Asked, outcome: Outcome) -> dict[str, npt.NDArray[Any]]:
    tokens = len(asked.ids) + len(outcome.answer.tokens)
    total = -(-tokens // TOKENS_PER_BLOCK)
    reused = outcome.reused_tokens // TOKENS_PER_BLOCK
    counts = {
        "kv_cache_reused_blocks": reused,
        "kv_cache_alloc_new_blocks": total - reused,
        "kv_cache_alloc_total_blocks": total,
    }
    return {name: np.array([[count]], np.int32) for name, count in counts.items()}
