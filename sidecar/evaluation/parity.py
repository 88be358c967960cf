"""Whether two computations of the same weights decide alike, and how close it was where not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.engines.trtllm import Reading

MIN_SAME = 0.995
"""Least share of the cases that must be decided alike."""
MAX_MARGIN = 0.02
"""A difference below it is one that rounding explains."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A case that the two decide otherwise.

    Args:
        margin: how far apart the probabilities of the two answers are, where they are further: 0
            would be a tie in both.
    """

    id: str
    answer: str
    reference: str
    margin: float


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two computations agree.

    Args:
        largest_gap: the largest difference of a probability, over all cases and answers.
    """

    cases: int
    differences: tuple[Difference, ...]
    largest_gap: float

    @property
    def same(self) -> float:
        """Share of the cases that are decided alike."""
        return 1 - len(self.differences) / self.cases

    @property
    def alike(self) -> bool:
        """True if the two count as the same model."""
        return self.same >= MIN_SAME and all(d.margin < MAX_MARGIN for d in self.differences)


def parity(
    readings: Sequence[Reading], references: Sequence[Reading], temperature: float = 1.0
) -> Parity:
    """Compares case by case.

    Args:
        readings, references: at least one, of the same cases in the same order, each with the
            logits of all answers.
        temperature: divides the logits; that of decisions, so that margins are those of the
            confidences that people see.
    """
    differences = []
    largest = 0.0
    for ours, theirs in zip(readings, references, strict=True):
        pair = [_probabilities(each.logits, temperature) for each in (ours, theirs)]
        largest = max(largest, *(abs(a - b) for a, b in zip(*pair, strict=True)))
        if ours.name != theirs.name:
            best, other = (each.logits.index(max(each.logits)) for each in (ours, theirs))
            margin = max(abs(each[best] - each[other]) for each in pair)
            differences.append(Difference(ours.id, ours.name, theirs.name, margin))
    return Parity(len(readings), tuple(differences), largest)


def _probabilities(logits: Sequence[float], temperature: float) -> list[float]:
    top = max(logits)
    weights = [math.exp((logit - top) / temperature) for logit in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
