"""Temperature scaling (arXiv 1706.04599): one number that makes confidences mean probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sidecar.core.decision import Candidate
from sidecar.evaluation.outcomes import Outcome

_LOWEST, _HIGHEST = 0.05, 20.0
_STEPS = 30
"""Narrow the factor to a few millionths."""
_SMALLEST = 1e-300
"""Stands for a probability that was rounded to zero."""


class NothingToFitError(Exception):
    """No outcome has the probabilities of all routes, or none is wrong."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Log-probabilities of every answer, and which of them are right."""

    log_probs: tuple[float, ...]
    right: tuple[int, ...]


def fit_temperature(outcomes: Iterable[Outcome]) -> float:
    """The factor for the temperature under which the outcomes were decided that makes the right
    answers most likely: logits differ from log-probabilities by a constant alone, which a softmax
    takes away. Outcomes that one model decided alone are left out: the temperature is not theirs.

    A golden-section search over the factor's logarithm; the loss is convex in its inverse, and so
    has one minimum.

    Returns:
        A factor in 0.05..20; multiply the engine's temperature by it.

    Raises:
        NothingToFitError: no such outcome has the probabilities of several answers, or none is
            wrong, and surer is always better.
    """
    samples = _samples(outcome for outcome in outcomes if not outcome.alone)
    if not samples:
        raise NothingToFitError(
            "no decision at the engine's temperature gave the probability of every route; a model "
            "with label answers does, of cases that its encoder does not decide by itself"
        )
    if all(_is_right(sample) for sample in samples):
        raise NothingToFitError(
            f"none of the {len(samples)} decisions at the engine's temperature is wrong, which "
            "tells how good they are and not how sure to be of them; fit it to more cases, of "
            "which some are decided wrong"
        )
    golden = (math.sqrt(5) - 1) / 2
    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    for _ in range(_STEPS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if _loss(samples, math.exp(left)) <= _loss(samples, math.exp(right)):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def negative_log_likelihood(outcomes: Iterable[Outcome]) -> float | None:
    """Mean over the outcomes that give every answer's probability; nats."""
    samples = _samples(outcomes)
    return _loss(samples, 1.0) if samples else None


def at_temperature(outcome: Outcome, factor: float) -> Outcome:
    """The outcome as it would be with the temperature multiplied by `factor`; the answer stays,
    and so does all that one model decided alone."""
    if outcome.alone or len(outcome.candidates) < 2:
        return outcome
    scaled = _scaled([_log(each.probability) for each in outcome.candidates], factor)
    candidates = tuple(
        Candidate(each.name, math.exp(log_prob))
        for each, log_prob in zip(outcome.candidates, scaled, strict=True)
    )
    confidence = next((c.probability for c in candidates if c.name == outcome.answer), None)
    return replace(outcome, candidates=candidates, confidence=confidence)


def _samples(outcomes: Iterable[Outcome]) -> list[_Sample]:
    samples = []
    for outcome in outcomes:
        right = tuple(
            index
            for index, each in enumerate(outcome.candidates)
            if outcome.case.accepts(each.name)
        )
        if right and len(outcome.candidates) > 1:
            log_probs = tuple(_log(each.probability) for each in outcome.candidates)
            samples.append(_Sample(log_probs, right))
    return samples


def _is_right(sample: _Sample) -> bool:
    best = max(sample.log_probs)
    return any(sample.log_probs[index] == best for index in sample.right)


def _loss(samples: Sequence[_Sample], factor: float) -> float:
    """Mean negative log-likelihood of the right answers."""
    total = 0.0
    for sample in samples:
        scaled = _scaled(sample.log_probs, factor)
        total -= _log_sum([scaled[index] for index in sample.right])
    return total / len(samples)


def _scaled(log_probs: Sequence[float], factor: float) -> list[float]:
    divided = [each / factor for each in log_probs]
    total = _log_sum(divided)
    return [each - total for each in divided]


def _log(probability: float) -> float:
    return math.log(max(probability, _SMALLEST))


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
