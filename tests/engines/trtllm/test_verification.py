from __future__ import annotations

import math
from pathlib import Path

import pytest

from sidecar.engines import EngineError
from sidecar.engines.trtllm import Question, Reading, compare
from sidecar.engines.trtllm.verification import read_readings, write_questions

NAMES = ("a", "b", "other")


def question(name: str, accepted: str) -> Question:
    return Question(name, (1, 2), 1, NAMES, (accepted,), label_ids=(5, 6, 7))


def reference(name: str, *probabilities: float) -> Reading:
    logits = tuple(math.log(p) for p in probabilities)
    return Reading(name, NAMES[logits.index(max(logits))], logits)


QUESTIONS = [question("1", "a"), question("2", "b")]
SURE, UNSURE = reference("1", 0.8, 0.1, 0.1), reference("2", 0.40, 0.42, 0.18)


def test_an_engine_that_decides_alike_has_no_problems() -> None:
    engine = [Reading("1", "a", latency_ms=2.0), Reading("2", "b", latency_ms=4.0)]
    verdict = compare(QUESTIONS, [SURE, UNSURE], engine)
    assert (verdict.accuracy, verdict.reference_accuracy, verdict.same) == (1.0, 1.0, 2)
    assert (verdict.latency_p50_ms, verdict.latency_p99_ms) == (3.0, 4.0)
    assert verdict.problems == []


def test_another_decision_where_the_reference_was_sure_is_a_problem() -> None:
    verdict = compare(QUESTIONS, [SURE, UNSURE], [Reading("1", "b"), Reading("2", "b")])
    assert verdict.flipped == ("1",)
    assert len(verdict.problems) == 2  # it is less accurate as well


def test_another_decision_where_the_reference_tossed_a_coin_is_none_by_itself() -> None:
    questions = [question("1", "a"), Question("2", (1,), 0, NAMES, ("a", "b"))]
    verdict = compare(questions, [SURE, UNSURE], [Reading("1", "a"), Reading("2", "a")])
    assert (verdict.same, verdict.flipped, verdict.problems) == (1, (), [])


@pytest.mark.parametrize(
    ("probabilities", "sure"),
    [((0.54, 0.45, 0.01), False), ((0.56, 0.43, 0.01), True)],
)
def test_sure_is_a_margin_above_a_tenth(probabilities: tuple[float, ...], sure: bool) -> None:
    verdict = compare([QUESTIONS[0]], [reference("1", *probabilities)], [Reading("1", "b")])
    assert bool(verdict.flipped) is sure


def test_a_question_without_an_answer_is_an_error() -> None:
    with pytest.raises(EngineError, match="1 of 2 cases have no answer to compare, the first is 2"):
        compare(QUESTIONS, [SURE, UNSURE], [Reading("1", "a")])


def test_answers_of_the_reference_are_read(tmp_path: Path) -> None:
    write_questions(tmp_path / "questions.jsonl", QUESTIONS)
    path = tmp_path / "reference.jsonl"
    path.write_text('{"id": "1", "logits": [0.5, 2.5, 1.0]}\n')
    assert read_readings(path, QUESTIONS) == [Reading("1", "b", (0.5, 2.5, 1.0))]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "1", "logits": [0.5]}', "1 numbers for 3 answers"),
        ('{"id": "1", "logits": [0.5, NaN, 1]}', "not finite"),
        ('{"id": "9", "logits": []}', "not an answer of the reference"),
        ("{", "not an answer of the reference"),
    ],
)
def test_what_the_reference_should_not_write_is_an_error(
    tmp_path: Path, line: str, reason: str
) -> None:
    path = tmp_path / "reference.jsonl"
    path.write_text(line)
    with pytest.raises(EngineError, match=reason):
        read_readings(path, QUESTIONS)
