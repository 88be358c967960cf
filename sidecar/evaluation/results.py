"""The results of a run as one JSON document; docs/evaluation.md describes its keys."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sidecar.evaluation.baselines import Baseline
from sidecar.evaluation.calibration import (
    at_temperature,
    fit_temperature,
    negative_log_likelihood,
)
from sidecar.evaluation.metrics import (
    Metrics,
    accuracy,
    agreement,
    expected_calibration_error,
    grouped,
    measure,
    mistake_kind,
    route_count_group,
    shares,
    turn_group,
)
from sidecar.evaluation.outcomes import Outcome

FORMAT = "sidecar-eval/1"
SURE = 0.8
"""Confidence from which on the order of the routes should not change a decision."""

_CANDIDATES_KEPT = 5


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What was run.

    Args:
        asked: the engine's folder name or the address.
        temperature: of the engine; None where a running sidecar was asked.
        cases: how many were to be asked.
        complete: False if the run was interrupted.
        seconds: of asking, all runs together.
    """

    asked: str
    routing_model: str
    prompt_format: str
    sidecar_version: str
    temperature: float | None
    cases: int
    complete: bool
    seconds: float
    concurrency: int


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that a run found. `shuffled` and `opaque` are empty where they were not asked."""

    facts: RunFacts
    outcomes: Sequence[Outcome]
    shuffled: Sequence[Outcome] = ()
    opaque: Sequence[Outcome] = ()
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    fit: bool = False


Document = dict[str, Any]


def document(run: Run) -> Document:
    """The whole document, ready for JSON.

    Raises:
        NothingToFitError: a temperature is wanted and there is nothing to fit it to.
    """
    return {
        "format": FORMAT,
        "run": asdict(run.facts),
        **_by_group(run.outcomes),
        "breakdowns": breakdowns(run.outcomes),
        "mistakes": shares(kind for o in run.outcomes if (kind := mistake_kind(o))),
        "robustness": _robustness(run),
        "baselines": {
            name: {"threshold": each.threshold, **_by_group(each.outcomes)}
            for name, each in run.baselines.items()
        },
        "calibration": calibration(run) if run.fit else None,
        "decisions": [_decision(outcome) for outcome in run.outcomes],
    }


def interrupted(results: Document) -> str:
    """What an incomplete run lacks, for a person."""
    asked, wanted = results["overall"]["cases"], results["run"]["cases"]
    if asked < wanted:
        return f"Interrupted: {asked} of {wanted} cases were asked."
    return "Interrupted: all cases were asked once; what was to follow was not finished."


def _by_group(outcomes: Sequence[Outcome]) -> Document:
    families = {
        name: measure(each)
        for name, each in sorted(grouped(outcomes, lambda o: [o.case.family]).items())
    }
    files = grouped(outcomes, lambda o: [o.case.file])
    accuracies = [_number(each["turn_accuracy"]) for each in families.values()]
    macro = statistics.fmean(accuracies) if accuracies else None
    return {
        "overall": {**measure(outcomes), "macro_turn_accuracy": macro},
        "files": {name: measure(each) for name, each in sorted(files.items())},
        "families": families,
    }


def breakdowns(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Metrics]]:
    """Accuracy by properties of the cases."""
    return {
        "routes": _accuracies(grouped(outcomes, lambda o: [route_count_group(o)]), _first_number),
        "turn": _accuracies(grouped(outcomes, lambda o: [turn_group(o)]), _first_number),
        # Whatever the cases say: no numbers are looked for in it.
        "granularity": _accuracies(grouped(outcomes, lambda o: [o.case.granularity or "none"])),
        "tags": _accuracies(grouped(outcomes, lambda o: o.case.tags)),
    }


def _accuracies(
    groups: Mapping[str, Sequence[Outcome]], order: Callable[[str], int] | None = None
) -> dict[str, Metrics]:
    """By group, in the order of the names where no other is given."""
    names = sorted(groups, key=order) if order else sorted(groups)
    return {
        name: {"cases": len(groups[name]), "turn_accuracy": accuracy(groups[name])}
        for name in names
    }


def _first_number(group: str) -> int:
    """Of `3-5` and `50+`."""
    return int(group.rstrip("+").split("-")[0])


def _robustness(run: Run) -> Document:
    found: Document = {}
    if run.shuffled:
        found["shuffled_routes"] = _compared(run.outcomes, run.shuffled)
    if run.opaque:
        found["opaque_names"] = _compared(run.outcomes, run.opaque)
    return found


def _compared(first: Sequence[Outcome], second: Sequence[Outcome]) -> Document:
    """Over the cases that both runs asked, which an interrupted one has not all."""
    asked = {(o.case.file, o.case.id) for o in second}
    before = accuracy([o for o in first if (o.case.file, o.case.id) in asked])
    after = accuracy(second)
    found = agreement(first, second, SURE)
    return {
        "turn_accuracy": after,
        "accuracy_cost": before - after if before is not None and after is not None else None,
        "compared_cases": found.cases,
        "same_decision": found.same,
        "confident_cases": found.confident_cases,
        "confident_same_decision": found.confident_same,
    }


def calibration(run: Run) -> Document:
    """The fitted temperature and what it changes. Raises NothingToFitError."""
    factor = fit_temperature(run.outcomes)
    scaled = [at_temperature(outcome, factor) for outcome in run.outcomes]
    current = run.facts.temperature
    return {
        "factor": factor,
        "temperature": None if current is None else current * factor,
        "nll_before": negative_log_likelihood(run.outcomes),
        "nll_after": negative_log_likelihood(scaled),
        "ece_before": expected_calibration_error(run.outcomes),
        "ece_after": expected_calibration_error(scaled),
    }


def _decision(outcome: Outcome) -> Document:
    return {
        "file": outcome.case.file,
        "id": outcome.case.id,
        "label": outcome.case.label,
        "answer": outcome.answer,
        "right": outcome.right,
        "confidence": _rounded(outcome.confidence),
        "reason": outcome.reason,
        "ms": _rounded(outcome.latency_ms, 2),
        "candidates": {
            each.name: _rounded(each.probability) for each in outcome.candidates[:_CANDIDATES_KEPT]
        },
    }


def _rounded(value: float | None, digits: int = 5) -> float | None:
    return None if value is None else round(value, digits)


def _number(value: object) -> float:
    assert isinstance(value, float), "a group has at least one case"
    return value
