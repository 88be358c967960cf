"""What became of a case."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core.decision import Candidate, Decision, Reason
from sidecar.core.policy import OTHER
from sidecar.evaluation.cases import Case
from sidecar.evaluation.policies import Question

_SAYS_OTHER = frozenset({Reason.NO_MATCH, Reason.LOW_CONFIDENCE, Reason.NOTHING_TO_ROUTE})
"""Reasons of a fallback that are decisions about the request. Other fallbacks say that nothing was
decided, and count as wrong even where `other` would be right."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case and what was decided.

    Args:
        answer: route or `other`, by the case's own names; empty: nothing was decided.
        confidence: probability of the answer; None where none was given.
        candidates: most probable first, by the case's own names.
        source, reason: of the decision; empty for a baseline, which has none.
        latency_ms: the decision's own time; None for a baseline.
        alone: one of language model and encoder decided by itself, whatever the temperature is;
            known only where explanations were asked for.
        prefix_shared: a case with the same routes was asked before it in the same run.
    """

    case: Case
    answer: str
    confidence: float | None = None
    candidates: tuple[Candidate, ...] = ()
    source: str = ""
    reason: str = ""
    latency_ms: float | None = None
    alone: bool = False
    prefix_shared: bool = False

    @property
    def right(self) -> bool:
        return bool(self.answer) and self.case.accepts(self.answer)


def outcome_of(question: Question, decision: Decision, prefix_shared: bool) -> Outcome:
    """The outcome of `question`, in the names of its case."""
    answer = question.original(decision.route) if decision.route else ""
    if not answer and decision.reason in _SAYS_OTHER:
        answer = OTHER
    return Outcome(
        case=question.case,
        answer=answer,
        confidence=decision.confidence,
        candidates=tuple(
            Candidate(question.original(each.name), each.probability)
            for each in decision.candidates
        ),
        source=str(decision.source),
        reason=str(decision.reason),
        latency_ms=decision.total_ms or None,
        alone=decision.explanation is not None and decision.explanation.alone,
        prefix_shared=prefix_shared,
    )
