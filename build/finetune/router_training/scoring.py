"""Accuracy over cases, in PyTorch: to choose between runs while training.

What is released is measured through the sidecar, not here.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from router_training.batched import batch_log_probs, collate
from router_training.cases import OTHER, Case, Draw
from router_training.encoding import EncodedDraw, Encoder
from router_training.llama import Llama
from router_training.loop import candidate_log_probs

log = logging.getLogger(__name__)

_MANY_ROUTES = 20
_ECE_BINS = 15
_WINDOW = 16
"""Batches whose packs are sorted by length together: all of a corpus would not fit in memory."""


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
    """Scores of every case whose routes fit, in packs of cases with the same routes; on CUDA many
    packs at once. How many do not is logged: accuracies are over the others."""
    on_cuda = next(model.parameters()).device.type == "cuda"
    if on_cuda:
        scored = score_in_batches(model, encoder, cases)
    else:
        scored = _score_one_by_one(model, encoder, cases, threads)
    if unread := len(cases) - len(scored):
        log.warning("%d of %d cases are not scored: %s", unread, len(cases), encoder.limit)
    return scored


def _score_one_by_one(
    model: Llama, encoder: Encoder, cases: Sequence[Case], threads: int
) -> list[Scored]:
    device = next(model.parameters()).device
    groups = _by_routes(cases)
    torch.set_num_threads(1 if threads > 1 else torch.get_num_threads())

    def of_group(group: list[Case]) -> list[Scored]:
        scored = []
        for asked, encoded in _packs(encoder, group):
            with torch.inference_mode():
                log_probs = candidate_log_probs(model, encoded, device).double().cpu()
            scored += _scored(asked, encoded, log_probs)
        return scored

    with ThreadPoolExecutor(threads) as workers:
        results = workers.map(of_group, groups)
        bar = tqdm(results, total=len(groups), unit="list", mininterval=10)
        return [one for scored in bar for one in scored]


def score_in_batches(
    model: Llama, encoder: Encoder, cases: Sequence[Case], packs: int = 32
) -> list[Scored]:
    """What `score` gives, in the same order, from batches of `packs` packs of about one length."""
    device = next(model.parameters()).device
    made = (pack for group in _by_routes(cases) for pack in _packs(encoder, group))
    scored: list[Scored] = []
    with tqdm(total=len(cases), unit="case", mininterval=10) as bar:
        while window := list(islice(made, _WINDOW * packs)):
            by_pack: dict[int, list[Scored]] = {}
            order = sorted(range(len(window)), key=lambda index: len(window[index][1].pack.ids))
            for start in range(0, len(order), packs):
                chosen = order[start : start + packs]
                batch = collate([window[index][1] for index in chosen])
                with torch.inference_mode():
                    log_probs = batch_log_probs(model, batch, device).double().cpu()
                rows = log_probs.split([len(window[index][1].right) for index in chosen])
                for index, own in zip(chosen, rows, strict=True):
                    asked, encoded = window[index]
                    by_pack[index] = _scored(asked, encoded, own[:, : len(encoded.names)])
                    bar.update(len(asked))
            scored += [one for index in range(len(window)) for one in by_pack[index]]
    return scored


def _by_routes(cases: Iterable[Case]) -> list[list[Case]]:
    groups: dict[Any, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.routes].append(case)
    return list(groups.values())


def _packs(encoder: Encoder, group: Sequence[Case]) -> Iterator[tuple[Sequence[Case], EncodedDraw]]:
    """Cases with the same routes as packs, each with the cases that it answers; none if the routes
    do not fit."""
    rest = group
    while rest:
        draw = Draw("", rest[0].routes, tuple(case.request for case in rest))
        encoded = encoder.encode(draw)
        if encoded is None:
            return
        answers = len(encoded.right)
        yield rest[:answers], encoded
        rest = rest[answers:]


def _scored(cases: Sequence[Case], encoded: EncodedDraw, log_probs: Tensor) -> list[Scored]:
    rows = zip(cases, log_probs.exp().numpy(), strict=True)
    return [Scored(case, encoded.names[int(row.argmax())], row) for case, row in rows]


def summary(scored: Sequence[Scored]) -> dict[str, Any]:
    """Turn accuracy overall, by family, on `other` and on long lists; calibration error."""
    by_family: dict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        by_family[one.case.family].append(one)
    families = {family: _accuracy(group) for family, group in sorted(by_family.items())}
    return {
        "cases": len(scored),
        "turn_accuracy": _accuracy(scored),
        "macro_turn_accuracy": round(float(np.mean(list(families.values()))), 4)
        if families
        else None,
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
