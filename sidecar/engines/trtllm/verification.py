"""Whether an engine decides as the weights do that it was made from.

The reference is the model in bfloat16 as transformers computes it, on the same machine
(`triton_models/gpu/reference.py`). It gives the probability of every answer, so that a decision
which the reference was sure of can be told from one that was a coin's toss.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sidecar.engines.errors import EngineError

MAX_ACCURACY_LOSS = 0.005
"""Half a percentage point."""
SURE_MARGIN = 0.1
"""Between the reference's best and second answer; beyond it the engine must decide the same."""


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt whose right answer is known.

    Args:
        prefix_length: leading tokens that other questions share.
        names: the routes, and `other`.
        label_ids: token of each name; empty where the answer is text.
        literals: text of each name; empty where the answer is a label.
        accepted: names that count as right.
    """

    id: str
    input_ids: tuple[int, ...]
    prefix_length: int
    names: tuple[str, ...]
    accepted: tuple[str, ...]
    label_ids: tuple[int, ...] = ()
    literals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model answered to one question.

    Args:
        logits: of every name, up to a constant; of the reference always, of an engine where the
            answer is a label.
        latency_ms: where it was measured.
    """

    id: str
    name: str
    logits: tuple[float, ...] = ()
    latency_ms: float = math.nan


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an engine compares with the reference, over the same questions.

    Args:
        flipped: ids of questions that the reference was sure of and the engine decides otherwise.
        latency_p50_ms, latency_p99_ms: one question at a time; None where nothing was measured.
    """

    questions: int
    accuracy: float
    reference_accuracy: float
    same: int
    flipped: tuple[str, ...]
    latency_p50_ms: float | None
    latency_p99_ms: float | None

    @property
    def problems(self) -> list[str]:
        """Why the engine should not be served; empty if nothing speaks against it."""
        found = []
        loss = self.reference_accuracy - self.accuracy
        # Differences of fractions are not exact.
        if loss > MAX_ACCURACY_LOSS + 1e-9:
            found.append(
                f"{self.accuracy:.1%} of {self.questions} cases are decided right, the reference "
                f"decides {self.reference_accuracy:.1%}: more than half a point less"
            )
        if self.flipped:
            shown = ", ".join(self.flipped[:5]) + (" …" if len(self.flipped) > 5 else "")
            found.append(
                f"{len(self.flipped)} cases that the reference is sure of (margin above "
                f"{SURE_MARGIN}) are decided otherwise: {shown}"
            )
        return found

    def to_json(self) -> Mapping[str, Any]:
        return asdict(self) | {"passed": not self.problems}


def compare(
    questions: Sequence[Question], reference: Iterable[Reading], engine: Iterable[Reading]
) -> Verdict:
    """Raises EngineError if a question was not answered by both."""
    theirs = {reading.id: reading for reading in reference}
    ours = {reading.id: reading for reading in engine}
    missing = [q.id for q in questions if q.id not in theirs or q.id not in ours]
    if missing or not questions:
        raise EngineError(
            f"{len(missing)} of {len(questions)} cases have no answer to compare"
            + (f", the first is {missing[0]}" if missing else "")
        )
    right = sum(ours[q.id].name in q.accepted for q in questions)
    reference_right = sum(theirs[q.id].name in q.accepted for q in questions)
    differing = [q for q in questions if ours[q.id].name != theirs[q.id].name]
    flipped = tuple(q.id for q in differing if _margin(theirs[q.id].logits) > SURE_MARGIN)
    times = sorted(r.latency_ms for r in ours.values() if not math.isnan(r.latency_ms))
    return Verdict(
        questions=len(questions),
        accuracy=right / len(questions),
        reference_accuracy=reference_right / len(questions),
        same=len(questions) - len(differing),
        flipped=flipped,
        latency_p50_ms=statistics.median(times) if times else None,
        latency_p99_ms=times[math.ceil(0.99 * len(times)) - 1] if times else None,
    )


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """One JSON object a line, as `triton_models/gpu/reference.py` reads them."""
    lines = (json.dumps(asdict(question)) + "\n" for question in questions)
    path.write_text("".join(lines), encoding="utf-8")


def read_readings(path: Path, questions: Sequence[Question]) -> list[Reading]:
    """What the reference wrote: one `{"id": …, "logits": […]}` a line, a logit for each name.

    Raises:
        EngineError: the file is not of that form.
    """
    names = {question.id: question.names for question in questions}
    readings = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            content = json.loads(line)
            logits = tuple(float(value) for value in content["logits"])
            options = names[content["id"]]
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{path}:{number}: not an answer of the reference: {error}") from None
        if len(logits) != len(options) or not all(map(math.isfinite, logits)):
            raise EngineError(
                f"{path}:{number}: {len(logits)} numbers for {len(options)} answers, or not finite"
            )
        readings.append(Reading(content["id"], options[logits.index(max(logits))], logits))
    return readings


def _margin(logits: Sequence[float]) -> float:
    best, *rest = sorted(logits, reverse=True)
    total = math.fsum(math.exp(logit - best) for logit in logits)
    return (1.0 - (math.exp(rest[0] - best) if rest else 0.0)) / total
