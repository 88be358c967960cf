"""Cases and outcomes for tests, short to write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sidecar.core.decision import Candidate
from sidecar.evaluation.cases import Case
from sidecar.evaluation.outcomes import Outcome
from sidecar.evaluation.policies import CaseRoute
from tests.doubles import talk

ROUTES = (
    CaseRoute("billing", "Invoices, payments and refunds."),
    CaseRoute("code", "Writing and fixing programs."),
    CaseRoute("weather", "Weather and forecasts."),
)


def case(
    label: str = "code",
    *,
    id: str = "1",
    file: str = "file",
    family: str = "family",
    text: str = "Fix this.",
    routes: Iterable[CaseRoute] = ROUTES,
    also_ok: Iterable[str] = (),
    dialogue: str | None = None,
    turn: int = 0,
) -> Case:
    return Case(
        id=id,
        file=file,
        family=family,
        conversation=talk(text),
        routes=tuple(routes),
        label=label,
        also_ok=frozenset(also_ok),
        dialogue_id=dialogue,
        turn_index=turn,
    )


def outcome(
    right: bool,
    confidence: float | None = None,
    *,
    of: Case | None = None,
    answer: str | None = None,
    latency_ms: float | None = None,
) -> Outcome:
    of = of or case()
    wrong = "weather" if of.label != "weather" else "billing"
    return Outcome(
        of,
        answer if answer is not None else of.label if right else wrong,
        confidence,
        source="model",
        reason="matched",
        latency_ms=latency_ms,
    )


def with_candidates(of: Case, probabilities: Mapping[str, float]) -> Outcome:
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    candidates = tuple(Candidate(name, p) for name, p in ranked)
    return Outcome(of, ranked[0][0], ranked[0][1], candidates)


def line(**changes: Any) -> dict[str, Any]:
    """A case as a file has it; a key that is changed to None is left out."""
    content = {
        "id": "1",
        "conversation": [{"role": "user", "content": "Fix this."}],
        "routes": [{"name": r.name, "description": r.description} for r in ROUTES],
        "label": "code",
        **changes,
    }
    return {key: value for key, value in content.items() if value is not None}


def write_cases(path: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    return path
