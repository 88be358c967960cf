"""Metrics over outcomes. All are pure; None where there is nothing to measure.

Turn, span and conversation accuracy are those of arXiv 2506.16655.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from sidecar.core.policy import OTHER
from sidecar.evaluation.cases import dialogue_key
from sidecar.evaluation.outcomes import Outcome

MANY_ROUTES = 20
ECE_BINS = 15
PRECISIONS = (90, 95, 99)
"""Percent."""
PERCENTILES = (50, 90, 95, 99)

Metrics = dict[str, object]
"""The keys are documented in docs/evaluation.md and do not change their meaning."""


def measure(outcomes: Sequence[Outcome]) -> Metrics:
    """All metrics of a group of outcomes, ready for JSON."""
    right = sum(outcome.right for outcome in outcomes)
    low, high = interval(right, len(outcomes))
    dialogues = whole_dialogues(outcomes)
    all_spans = [span for dialogue in dialogues for span in spans(dialogue)]
    others = [outcome for outcome in outcomes if outcome.case.label == OTHER]
    many = [outcome for outcome in outcomes if len(outcome.case.routes) >= MANY_ROUTES]
    return {
        "cases": len(outcomes),
        "turn_accuracy": accuracy(outcomes),
        "turn_accuracy_low": low,
        "turn_accuracy_high": high,
        "spans": len(all_spans),
        "span_accuracy": share([_all_right(span) for span in all_spans]),
        "conversations": len(dialogues),
        "conversation_accuracy": share([_all_right(dialogue) for dialogue in dialogues]),
        "other_cases": len(others),
        "other_accuracy": accuracy(others),
        "many_routes_cases": len(many),
        "many_routes_accuracy": accuracy(many),
        "undecided": sum(not outcome.answer for outcome in outcomes),
        "ece": expected_calibration_error(outcomes),
        **{f"coverage_{p}": coverage(outcomes, p / 100) for p in PRECISIONS},
        "latency_ms": latency([o for o in outcomes]),
        "latency_ms_shared_prefix": latency([o for o in outcomes if o.prefix_shared]),
        "sources": shares(o.source for o in outcomes if o.source),
        "reasons": shares(o.reason for o in outcomes if o.reason),
    }


# --- Accuracy -------------------------------------------------------------------------------------


def accuracy(outcomes: Sequence[Outcome]) -> float | None:
    """Share of the outcomes that are right."""
    return share([outcome.right for outcome in outcomes])


def share(marks: Sequence[bool]) -> float | None:
    return sum(marks) / len(marks) if marks else None


def interval(right: int, count: int) -> tuple[float | None, float | None]:
    """95 % interval of a share (Wilson's score interval). Turns of one dialogue are not
    independent, so that it is somewhat too narrow for dialogues."""
    if count == 0:
        return None, None
    z = 1.959964
    p = right / count
    middle = p + z * z / (2 * count)
    spread = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def whole_dialogues(outcomes: Iterable[Outcome]) -> list[list[Outcome]]:
    """Dialogues of which there are at least two turns, in the order of their turns. Of a dialogue
    with one turn, conversation accuracy would be turn accuracy under another name."""
    dialogues: dict[Hashable, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        key = dialogue_key(outcome.case)
        if key is not None:
            dialogues[key].append(outcome)
    return [
        sorted(turns, key=lambda turn: turn.case.turn_index)
        for turns in dialogues.values()
        if len(turns) > 1
    ]


def spans(dialogue: Sequence[Outcome]) -> list[list[Outcome]]:
    """Maximal runs of consecutive turns with the same label. A turn that is not among the cases
    ends a run: its label is unknown."""
    runs: list[list[Outcome]] = []
    for turn in dialogue:
        last = runs[-1][-1].case if runs else None
        if (
            last is not None
            and turn.case.label == last.label
            and turn.case.turn_index == last.turn_index + 1
        ):
            runs[-1].append(turn)
        else:
            runs.append([turn])
    return runs


def _all_right(outcomes: Iterable[Outcome]) -> bool:
    return all(outcome.right for outcome in outcomes)


# --- Confidence -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bin:
    """Outcomes whose confidence is in `low` (exclusive, but 0 is in the first) to `high`."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(outcomes: Iterable[Outcome], bins: int = ECE_BINS) -> list[Bin]:
    """Mean confidence and accuracy in bins of equal width; empty bins are left out."""
    members: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for confidence, right in _confident(outcomes):
        # ceil - 1, so that a bin holds its upper edge; rounded, because 0.2 * 15 is a little
        # above 3.
        index = math.ceil(round(confidence * bins, 9)) - 1
        members[min(max(index, 0), bins - 1)].append((confidence, right))
    return [
        Bin(
            low=index / bins,
            high=(index + 1) / bins,
            count=len(each),
            confidence=sum(confidence for confidence, _ in each) / len(each),
            accuracy=sum(right for _, right in each) / len(each),
        )
        for index, each in sorted(members.items())
    ]


def expected_calibration_error(outcomes: Iterable[Outcome], bins: int = ECE_BINS) -> float | None:
    """Mean gap between confidence and accuracy over bins of equal width, weighted by their counts
    (arXiv 1706.04599, equation 3). Outcomes without confidence are left out."""
    found = reliability(outcomes, bins)
    total = sum(each.count for each in found)
    if total == 0:
        return None
    return sum(each.count * abs(each.confidence - each.accuracy) for each in found) / total


def coverage(outcomes: Sequence[Outcome], precision: float) -> float | None:
    """The largest share of the outcomes that a threshold of confidence lets through while at least
    `precision` of those are right. Outcomes without confidence are let through by none."""
    ranked = sorted(_confident(outcomes), key=lambda each: -each[0])
    if not ranked:
        return None
    right = 0
    best = 0
    for count, (confidence, is_right) in enumerate(ranked, 1):
        right += is_right
        # A threshold cannot part equals.
        last_of_equals = count == len(ranked) or ranked[count][0] < confidence
        if last_of_equals and right >= precision * count:
            best = count
    return best / len(outcomes)


def _confident(outcomes: Iterable[Outcome]) -> list[tuple[float, bool]]:
    return [(o.confidence, o.right) for o in outcomes if o.confidence is not None]


# --- Time, and how decisions came about -----------------------------------------------------------


def latency(outcomes: Iterable[Outcome]) -> Metrics | None:
    """Percentiles (nearest rank) and mean of the decisions' own times, in milliseconds."""
    times = sorted(o.latency_ms for o in outcomes if o.latency_ms is not None)
    if not times:
        return None
    ranks: Metrics = {f"p{p}": times[math.ceil(p / 100 * len(times)) - 1] for p in PERCENTILES}
    return {**ranks, "mean": sum(times) / len(times), "max": times[-1]}


def shares(names: Iterable[str]) -> dict[str, float]:
    """Share of each name, the most frequent first."""
    counts = Counter(names)
    return {name: count / counts.total() for name, count in counts.most_common()}


# --- Groups ---------------------------------------------------------------------------------------

GroupBy = Callable[[Outcome], Iterable[str]]
"""The groups an outcome belongs to."""


def grouped(outcomes: Iterable[Outcome], by: GroupBy) -> dict[str, list[Outcome]]:
    """Outcomes by group, in the order of the groups' first members."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        for name in by(outcome):
            groups[name].append(outcome)
    return dict(groups)


_ROUTE_COUNTS = ((1, 2), (3, 5), (6, 9), (10, 14), (15, 19), (20, 29), (30, 49))


def route_count_group(outcome: Outcome) -> str:
    """`3-5`, `50+`."""
    count = len(outcome.case.routes)
    return next((f"{low}-{high}" for low, high in _ROUTE_COUNTS if count <= high), "50+")


def turn_group(outcome: Outcome) -> str:
    """User messages so far; `8+` from eight on."""
    turns = outcome.case.user_turns
    return str(turns) if turns < 8 else "8+"


# --- Mistakes -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often `answer` was given where `label` was right. `of`: cases with that label."""

    label: str
    answer: str
    count: int
    of: int


def confusions(outcomes: Sequence[Outcome]) -> list[Confusion]:
    """Wrong answers, the most frequent first. Routes of different lists count as one where they
    have the same name."""
    labels = Counter(outcome.case.label for outcome in outcomes)
    wrong = Counter((o.case.label, o.answer) for o in outcomes if not o.right)
    ranked = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    return [Confusion(label, answer, count, labels[label]) for (label, answer), count in ranked]


def mistake_kind(outcome: Outcome) -> str | None:
    """None for a right outcome."""
    if outcome.right:
        return None
    if not outcome.answer:
        return "undecided"
    if outcome.case.label == OTHER:
        return "route_instead_of_other"
    return "other_instead_of_route" if outcome.answer == OTHER else "wrong_route"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two runs over the same cases decided alike.

    Args:
        cases: those with at least two routes that both decided.
        same: share of them with the same answer.
        confident_cases, confident_same: the same over those that the first run decided with at
            least the given confidence.
    """

    cases: int
    same: float | None
    confident_cases: int
    confident_same: float | None


def agreement(
    first: Iterable[Outcome], second: Iterable[Outcome], confidence: float = 0.8
) -> Agreement:
    """Compares runs by case."""
    answers = {(o.case.file, o.case.id): o.answer for o in second if o.answer}
    same: list[bool] = []
    confident: list[bool] = []
    for outcome in first:
        other = answers.get((outcome.case.file, outcome.case.id))
        if other is None or not outcome.answer or len(outcome.case.routes) < 2:
            continue
        same.append(outcome.answer == other)
        if outcome.confidence is not None and outcome.confidence >= confidence:
            confident.append(outcome.answer == other)
    return Agreement(len(same), share(same), len(confident), share(confident))
