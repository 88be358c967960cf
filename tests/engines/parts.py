"""The CPU model's parts over an engine, and requests to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cpu_engine.decisions import Decider, Outcome, Result, Undecided
from cpu_engine.engine_files import open_engine
from cpu_engine.forward import Forward
from cpu_engine.prefix_cache import PrefixCache
from cpu_engine.requests import Asked
from cpu_engine.vocabulary import Vocabulary

from tests.engines.tiny_models import END_ID

OUTPUTS = frozenset({"output_ids", "sequence_length"})


def compile_engine(engine: Path, precision: str) -> Forward:
    return Forward(open_engine(engine), threads=1, precision=precision)


def new_decider(
    forward: Forward, tokenizer: Path, *, cache_bytes: int = 1 << 24, max_pass_tokens: int = 512
) -> Decider:
    return Decider(
        forward, PrefixCache(cache_bytes), Vocabulary.from_file(tokenizer), max_pass_tokens
    )


def ask(
    prefix: list[int],
    suffix: list[int],
    *,
    max_tokens: int = 1,
    literals: tuple[str, ...] = (),
    logits: bool = False,
    label_ids: Sequence[int] | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Asked:
    """A checked request."""
    return Asked(
        ids=np.array([*prefix, *suffix], np.int32),
        prefix_length=len(prefix),
        max_tokens=max_tokens,
        end_id=END_ID,
        literals=tuple(literal.encode() for literal in literals) or None,
        log_probs=True,
        logits=logits or label_ids is not None,
        without_input=True,
        perf_metrics=False,
        outputs=OUTPUTS,
        is_cancelled=is_cancelled,
        label_ids=None if label_ids is None else np.array(label_ids, np.int32),
    )


def results_of(decider: Decider, requests: Sequence[Asked]) -> list[Result]:
    """Results as they come, without an encoder."""
    return list(decider.decide([Undecided(asked) for asked in requests]))


def outcomes(decider: Decider, requests: Sequence[Asked]) -> list[Outcome]:
    """Outcomes in the order of `requests`."""
    results = {id(asked): result for asked, result in results_of(decider, requests)}
    ordered = [results[id(asked)] for asked in requests]
    assert all(isinstance(result, Outcome) for result in ordered), ordered
    return [result for result in ordered if isinstance(result, Outcome)]


def logits_of(decider: Decider, requests: Sequence[Asked]) -> npt.NDArray[np.float32]:
    """[requests, vocabulary], of each one's first answer token."""
    return np.stack([outcome.logits[0] for outcome in outcomes(decider, requests)])
