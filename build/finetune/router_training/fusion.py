"""Fits how the language model's opinion and the encoder's become one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router_training.errors import InputError
from sidecar.engines.engine_directory import FusionFacts

_ITERATIONS = 200
_SHRINKAGE = 1e-3


@dataclass(frozen=True, slots=True)
class Opinions:
    """Of one case, over its routes and `other`.

    Args:
        language_model: log-probabilities.
        encoder: logits.
        right: where an answer is right.

    Raises InputError for what is no number, of which the first would pass for the greatest.
    """

    family: str
    language_model: NDArray[np.float64]
    encoder: NDArray[np.float64]
    right: NDArray[np.bool_]

    def __post_init__(self) -> None:
        for name in ("language_model", "encoder"):
            if not np.isfinite(getattr(self, name)).all():
                raise InputError(
                    f"{name}: what it says of a case of {self.family} is not a number; its weights "
                    "have run away, train it anew with a lower --rate"
                )


def fit_fusion(cases: Sequence[Opinions], shares: Mapping[str, float] | None = None) -> FusionFacts:
    """The factors with the least log loss: those of the opinions above 0, whatever few cases say;
    and those of the encoder by itself.

    Args:
        shares: of families in the loss; what they leave goes to the others, to each the same.

    Raises InputError for no cases, and for shares that are no part of 1 or of families without a
    case."""
    start = [math.log(0.5), math.log(0.5), 0.0]
    weights = _weights(cases, shares or {})
    language_model, encoder, other_bias = _fit(cases, weights, start)
    nothing = [replace(case, language_model=np.zeros_like(case.encoder)) for case in cases]
    _, alone, alone_other_bias = _fit(nothing, weights, start)
    return FusionFacts(
        language_model,
        encoder,
        other_bias,
        alone_encoder=alone,
        alone_other_bias=alone_other_bias,
    )


def check_shares(families: Set[str], shares: Mapping[str, float]) -> float:
    """What the shares leave to the other families. Raises InputError for shares that are no part of
    1 or of families without a case."""
    if unknown := sorted(shares.keys() - families):
        raise InputError(f"a share is given for families without a case: {unknown}")
    rest = round(1 - sum(shares.values()), 9)  # 0.1, 0.2 and 0.7 come to less than 1
    if min(shares.values(), default=0) < 0 or rest < 0 or (shares.keys() == families and rest > 0):
        raise InputError(f"shares must be parts of 1, all of it if of all families: {shares}")
    return rest


def fit_temperature(cases: Sequence[Opinions]) -> float:
    """For the language model alone: what divides its logits. Raises InputError for no cases."""
    return 1.0 / _fit(cases, _weights(cases, {}), [0.0])[0]


def fused(case: Opinions, fusion: FusionFacts) -> NDArray[np.float64]:
    """Probabilities."""
    logits = fusion.language_model * case.language_model + fusion.encoder * case.encoder
    logits[-1] += fusion.other_bias
    exp = np.exp((logits - logits.max()) / fusion.temperature)
    probabilities: NDArray[np.float64] = exp / exp.sum()
    return probabilities


def encoder_alone(
    cases: Sequence[Opinions],
    fusion: FusionFacts,
    probabilities: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98),
) -> list[dict[str, float]]:
    """For probabilities from which on the encoder decides by itself: the share of cases that it
    decides, how many of these are right, how many would be by both, and how many of all are."""
    own = FusionFacts(0.0, fusion.alone_encoder, fusion.alone_other_bias)
    alone = [fused(case, own) for case in cases]
    sure = np.array([probability.max() for probability in alone])
    by_encoder = _right(cases, alone)
    by_both = _right(cases, [fused(case, fusion) for case in cases])
    table = []
    for probability in probabilities:
        decided = sure >= probability
        row = {"from": probability, "share": float(decided.mean())}
        if decided.any():
            row["right"] = float(by_encoder[decided].mean())
            row["right_by_both"] = float(by_both[decided].mean())
        table.append({**row, "all_right": float(np.where(decided, by_encoder, by_both).mean())})
    return table


def _right(cases: Sequence[Opinions], decided: Sequence[NDArray[np.float64]]) -> NDArray[np.bool_]:
    pairs = zip(cases, decided, strict=True)
    return np.array([bool(case.right[int(chosen.argmax())]) for case, chosen in pairs])


def _weights(cases: Sequence[Opinions], shares: Mapping[str, float]) -> Tensor:
    """Of the cases in the loss, [cases], their sum 1."""
    if not cases:
        raise InputError("there are no cases to fit the fusion to")
    counts = Counter(case.family for case in cases)
    rest = check_shares(counts.keys(), shares)
    others = len(counts) - len(shares)
    return torch.tensor(
        [shares.get(case.family, rest / max(others, 1)) / counts[case.family] for case in cases],
        dtype=torch.float64,
    )


def _fit(cases: Sequence[Opinions], weights: Tensor, start: Sequence[float]) -> list[float]:
    """Factors of the language model and the encoder, of which `start` has the logarithms, and the
    bias of `other`: as many as `start` has."""
    features, right = _tensors(cases)
    found = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = features[..., : len(start)] @ _factors(found)
        logits = logits.masked_fill(features[..., 3] == 0, -1e9)
        right_log_prob = logits.log_softmax(-1).masked_fill(~right, -1e9).logsumexp(-1)
        total: Tensor = -(weights * right_log_prob).sum() + _SHRINKAGE * found.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    factors: list[float] = _factors(found).tolist()
    return factors


def _factors(found: Tensor) -> Tensor:
    return torch.cat([found[:2].exp(), found[2:]])


def _tensors(cases: Sequence[Opinions]) -> tuple[Tensor, Tensor]:
    """[cases, candidates, 4]: two opinions, whether it is `other`, whether there is a candidate;
    and where an answer is right."""
    longest = max(len(case.right) for case in cases)
    features = np.zeros((len(cases), longest, 4))
    right = np.zeros((len(cases), longest), np.bool_)
    for row, case in enumerate(cases):
        count = len(case.right)
        features[row, :count, 0] = case.language_model
        features[row, :count, 1] = case.encoder
        features[row, count - 1, 2] = 1
        features[row, :count, 3] = 1
        right[row, :count] = case.right
    return torch.from_numpy(features), torch.from_numpy(right)
