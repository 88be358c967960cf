"""What simple methods reach on the same cases: the least that a routing model must beat."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sidecar.core.conversation import Role
from sidecar.core.policy import OTHER
from sidecar.evaluation.cases import Case
from sidecar.evaluation.outcomes import Outcome
from sidecar.evaluation.policies import CaseRoute

ScoreRoutes = Callable[[Case], Sequence[float]]
"""A score for each route of the case, in order; higher fits better."""

_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Baseline:
    """Outcomes of a simple method. `threshold`: best scores below it are answered `other`."""

    outcomes: tuple[Outcome, ...]
    threshold: float | None = None


def majority(cases: Sequence[Case]) -> Baseline:
    """Always the label that is the most frequent of those that the case may answer."""
    counts = Counter(case.label for case in cases)
    return Baseline(
        tuple(
            Outcome(case, max([OTHER, *(r.name for r in case.routes)], key=lambda n: counts[n]))
            for case in cases
        )
    )


def word_overlap(cases: Sequence[Case]) -> Baseline:
    """The route that shares the most words with the request, rare ones counted for more."""
    return best_route(cases, overlap_scores)


def best_route(cases: Sequence[Case], score: ScoreRoutes) -> Baseline:
    """The route with the highest score, and `other` below the threshold that is best for these very
    cases: more than the method could know in use."""
    best = [_best(case, score(case)) for case in cases]
    threshold = _best_threshold(cases, best)
    return Baseline(
        tuple(
            Outcome(case, OTHER if value < threshold else name)
            for case, (name, value) in zip(cases, best, strict=True)
        ),
        threshold,
    )


def overlap_scores(case: Case) -> list[float]:
    """Shared words of the request and each route, weighted by how few routes have them; a long
    description has many words, which says nothing."""
    asked = set(_words(request_text(case)))
    routes = [set(_words(route_text(route))) for route in case.routes]
    having = Counter(word for words in routes for word in words)
    return [
        sum(math.log(1 + len(routes) / having[word]) for word in sorted(words & asked))
        / math.sqrt(len(words) or 1)
        for words in routes
    ]


def request_text(case: Case) -> str:
    """The newest user message; empty if there is none."""
    newest = (m.text for m in reversed(case.conversation.messages) if m.role is Role.USER)
    return next(newest, "")


def route_text(route: CaseRoute) -> str:
    """Name, as words, and description."""
    return f"{' '.join(_name_words(route.name))}: {route.description}"


def _name_words(name: str) -> list[str]:
    return _WORD.findall(_CAMEL.sub(" ", name))


def _words(text: str) -> Iterator[str]:
    for word in _WORD.findall(text.casefold()):
        # Plurals of English are the commonest difference between a request and a description.
        yield word[:-1] if len(word) > 3 and word.endswith("s") else word


def _best(case: Case, scores: Sequence[float]) -> tuple[str, float]:
    index = max(range(len(scores)), key=lambda i: scores[i])
    return case.routes[index].name, scores[index]


def _best_threshold(cases: Sequence[Case], best: Sequence[tuple[str, float]]) -> float:
    """The value below which `other` is answered so that most cases are right. Finite: JSON has no
    other numbers."""
    ranked = sorted(zip(best, cases, strict=True), key=lambda each: each[0][1])
    right = sum(case.accepts(name) for (name, _), case in ranked)
    most, threshold = right, ranked[0][0][1]
    for index, ((name, value), case) in enumerate(ranked):
        right += case.accepts(OTHER) - case.accepts(name)
        last = index + 1 == len(ranked)
        following = math.nextafter(value, math.inf) if last else ranked[index + 1][0][1]
        if right > most and following > value:
            most, threshold = right, following
    return threshold
