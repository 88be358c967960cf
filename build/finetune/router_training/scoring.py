"""Accuracy over cases, in PyTorch: to choose between runs while training.

What is released is measured through the sidecar, not here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from router_training.cases import OTHER, Case, Draw
from router_training.encoding import Encoder
from router_training.llama import Llama
from router_training.loop import candidate_log_probs

_MANY_ROUTES = 20
_ECE_BINS = 15


@dataclass(frozen=True, slots=True)
class Scored:
    """One case, what was answered, and the probability of every candidate (routes, `other`)."""

    case: Case
    answer: str
    probabilities: NDArray[np.float64]

    @property
    def right(self) -> bool:
        return self.answer in self.case.request.right

    @property
    def confidence(self) -> float:
        return float(self.probabilities.max())


def stratified(cases: Iterable[Case], per_family: int, seed: int) -> list[Case]:
    """Up to `per_family` cases of every family, drawn at random."""
    families: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        families[case.family].append(case)
    rng = Random(seed)  # noqa: S311
    chosen = []
    for family in sorted(families):
        pool = families[family]
        chosen += rng.sample(pool, min(per_family, len(pool)))
    return chosen


def score(model: Llama, encoder: Encoder, cases: Sequence[Case], threads: int = 1) -> list[Scored]:
    """Scores of every case whose routes fit, in packs of cases with the same routes."""
    groups: dict[Any, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.routes].append(case)
    torch.set_num_threads(1 if threads > 1 else torch.get_num_threads())
    device = next(model.parameters()).device

    def of_group(group: list[Case]) -> list[Scored]:
        scored = []
        rest = group
        while rest:
            draw = Draw("", rest[0].routes, tuple(case.request for case in rest))
            encoded = encoder.encode(draw)
            if encoded is None:
                break
            with torch.inference_mode():
                log_probs = candidate_log_probs(model, encoded, device).double().cpu()
            for case, row in zip(rest, log_probs.exp().numpy(), strict=False):
                scored.append(Scored(case, encoded.names[int(row.argmax())], row))
            rest = rest[len(log_probs) :]
        return scored

    with ThreadPoolExecutor(threads) as workers:
        results = workers.map(of_group, groups.values())
        bar = tqdm(results, total=len(groups), unit="list", mininterval=10)
        return [one for scored in bar for one in scored]


def summary(scored: Sequence[Scored]) -> dict[str, Any]:
    """Turn accuracy overall, by family, on `other` and on long lists; calibration error."""
    by_family: dict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        by_family[one.case.family].append(one)
    families = {family: _accuracy(group) for family, group in sorted(by_family.items())}
    return {
        "cases": len(scored),
        "turn_accuracy": _accuracy(scored),
        "macro_turn_accuracy": round(float(np.mean(list(families.values()))), 4),
        "families": families,
        "other_accuracy": _accuracy([s for s in scored if s.case.label == OTHER]),
        "routed_accuracy": _accuracy([s for s in scored if s.case.label != OTHER]),
        "many_routes_accuracy": _accuracy(
            [s for s in scored if len(s.case.routes) >= _MANY_ROUTES]
        ),
        "opaque_accuracy": _accuracy([s for s in scored if "opaque_names" in s.case.tags]),
        "ece": _calibration_error(scored),
        "log_loss": _log_loss(scored),
    }


def _accuracy(scored: Sequence[Scored]) -> float | None:
    return round(sum(one.right for one in scored) / len(scored), 4) if scored else None


def _log_loss(scored: Sequence[Scored]) -> float | None:
    losses = [
        -np.log(max(1e-12, sum(p for p, name in _named(one) if name in one.case.request.right)))
        for one in scored
    ]
    return round(float(np.mean(losses)), 4) if losses else None


def _named(one: Scored) -> Iterable[tuple[float, str]]:
    names = [*(route.name for route in one.case.routes), OTHER]
    return zip(one.probabilities, names, strict=True)


def _calibration_error(scored: Sequence[Scored]) -> float | None:
    """Expected calibration error over equal-width bins (arXiv 1706.04599)."""
    if not scored:
        return None
    confidence = np.array([one.confidence for one in scored])
    right = np.array([one.right for one in scored])
    bins = np.minimum((confidence * _ECE_BINS).astype(int), _ECE_BINS - 1)
    gaps = [
        abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean()
        for b in np.unique(bins)
    ]
    return round(float(sum(gaps)), 4)
