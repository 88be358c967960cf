"""Metrics by table."""

from __future__ import annotations

import pytest

from sidecar.core.policy import OTHER
from sidecar.evaluation.metrics import (
    Agreement,
    Confusion,
    agreement,
    confusions,
    coverage,
    expected_calibration_error,
    interval,
    latency,
    measure,
    mistake_kind,
    reliability,
    route_count_group,
    spans,
    turn_group,
    whole_dialogues,
)
from sidecar.evaluation.outcomes import Outcome
from sidecar.evaluation.policies import CaseRoute
from tests.evaluation.making import case, outcome

R, W = True, False


def turns(marks: str, labels: str, first: int = 0, dialogue: str = "d") -> list[Outcome]:
    """`r` right, `w` wrong; labels by their first letters."""
    names = {"c": "code", "b": "billing", "o": OTHER}
    return [
        outcome(
            mark == "r",
            of=case(names[label], id=f"{dialogue}{n}", dialogue=dialogue, turn=first + n),
        )
        for n, (mark, label) in enumerate(zip(marks, labels, strict=True))
    ]


def test_also_ok_counts_as_right() -> None:
    given = outcome(False, of=case("code", also_ok=["weather"]), answer="weather")
    assert measure([given])["turn_accuracy"] == 1.0


def test_nothing_decided_is_wrong_even_where_other_is_right() -> None:
    metrics = measure([outcome(False, of=case(OTHER), answer="")])
    assert (metrics["turn_accuracy"], metrics["undecided"]) == (0.0, 1)


@pytest.mark.parametrize(
    ("marks", "labels", "count", "accuracy"),
    [
        ("rrr", "ccc", 1, 1.0),
        ("rwr", "ccc", 1, 0.0),
        ("rwr", "cbc", 3, 2 / 3),
        ("rrw", "ccb", 2, 0.5),
        ("ww", "co", 2, 0.0),
    ],
)
def test_a_span_is_right_throughout_or_wrong(
    marks: str, labels: str, count: int, accuracy: float
) -> None:
    metrics = measure(turns(marks, labels))
    assert metrics["spans"] == count
    assert metrics["span_accuracy"] == pytest.approx(accuracy)


def test_a_missing_turn_ends_a_span() -> None:
    gap = [*turns("r", "c"), *turns("w", "c", first=2)]
    assert [len(span) for span in spans(gap)] == [1, 1]


def test_turns_are_taken_in_their_order() -> None:
    (dialogue,) = whole_dialogues(reversed(turns("rwr", "cbo")))
    assert [turn.case.turn_index for turn in dialogue] == [0, 1, 2]


def test_a_conversation_is_right_throughout_or_wrong() -> None:
    metrics = measure([*turns("rr", "cb", dialogue="a"), *turns("rw", "cb", dialogue="b")])
    assert (metrics["conversations"], metrics["conversation_accuracy"]) == (2, 0.5)


def test_single_cases_and_single_turns_are_no_conversations() -> None:
    metrics = measure([outcome(R), *turns("r", "c")])
    assert (metrics["conversations"], metrics["conversation_accuracy"]) == (0, None)
    assert (metrics["spans"], metrics["span_accuracy"]) == (0, None)


def test_dialogues_of_other_files_or_routes_are_others() -> None:
    first = outcome(R, of=case(dialogue="d", file="a"))
    for other in (case(dialogue="d", file="b"), case(dialogue="d", routes=case().routes[1:])):
        assert whole_dialogues([first, outcome(R, of=other)]) == []


def test_other_and_many_routes_are_counted_apart() -> None:
    many = [CaseRoute(f"r{n}", "d") for n in range(20)]
    metrics = measure(
        [
            outcome(R, of=case(OTHER)),
            outcome(W, of=case(OTHER)),
            outcome(R, of=case("r3", routes=many)),
            outcome(W, of=case("r3", routes=many[:19])),
        ]
    )
    assert (metrics["other_cases"], metrics["other_accuracy"]) == (2, 0.5)
    assert (metrics["many_routes_cases"], metrics["many_routes_accuracy"]) == (1, 1.0)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(0, 0, None, None), (8, 10, 0.4902, 0.9433), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0)],
)
def test_interval_is_that_of_wilson(
    right: int, count: int, low: float | None, high: float | None
) -> None:
    assert interval(right, count) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], None),
        ([(None, R)], None),
        ([(1.0, R)], 0.0),
        ([(1.0, W)], 1.0),
        # One bin: mean confidence 0.95, half of it right.
        ([(0.94, R), (0.96, W)], 0.45),
        # Two bins of one each: |0.1 - 0| and |0.9 - 1|.
        ([(0.1, W), (0.9, R)], 0.1),
        # Without confidence: left out.
        ([(0.9, R), (None, W)], 0.1),
    ],
)
def test_ece(given: list[tuple[float | None, bool]], expected: float | None) -> None:
    outcomes = [outcome(right, confidence) for confidence, right in given]
    assert expected_calibration_error(outcomes) == (
        None if expected is None else pytest.approx(expected)
    )


@pytest.mark.parametrize(
    ("confidence", "index"),
    [(0.0, 0), (1 / 15, 0), (0.0667, 1), (3 / 15, 2), (0.5, 7), (1.0, 14)],
)
def test_a_bin_holds_its_upper_edge(confidence: float, index: int) -> None:
    (found,) = reliability([outcome(R, confidence)])
    assert found.low == pytest.approx(index / 15)


@pytest.mark.parametrize(
    ("given", "precision", "expected"),
    [
        ([(0.9, R), (0.8, R), (0.7, W), (0.6, R)], 1.0, 0.5),
        ([(0.9, R), (0.8, R), (0.7, W), (0.6, R)], 0.75, 1.0),
        ([(0.9, W), (0.8, R), (0.7, R), (0.6, R)], 0.75, 1.0),
        ([(0.9, W), (0.8, R)], 0.9, 0.0),
        # A threshold cannot part equals.
        ([(0.9, R), (0.9, W)], 0.9, 0.0),
        # What has no confidence is not covered, and counts.
        ([(0.9, R), (None, R)], 0.9, 0.5),
        ([(None, R)], 0.9, None),
    ],
)
def test_coverage(
    given: list[tuple[float | None, bool]], precision: float, expected: float | None
) -> None:
    assert coverage([outcome(right, c) for c, right in given], precision) == expected


def test_latency_is_by_nearest_rank() -> None:
    found = latency([outcome(R, latency_ms=float(ms)) for ms in range(100, 0, -1)])
    assert found == {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "mean": 50.5, "max": 100}
    assert latency([outcome(R)]) is None


def test_sources_and_reasons_are_shares() -> None:
    metrics = measure([outcome(R), outcome(W)])
    assert (metrics["sources"], metrics["reasons"]) == ({"model": 1.0}, {"matched": 1.0})


@pytest.mark.parametrize(
    ("label", "answer", "kind"),
    [
        ("code", "code", None),
        ("code", "billing", "wrong_route"),
        ("code", OTHER, "other_instead_of_route"),
        (OTHER, "code", "route_instead_of_other"),
        (OTHER, "", "undecided"),
    ],
)
def test_kinds_of_mistakes(label: str, answer: str, kind: str | None) -> None:
    assert mistake_kind(outcome(W, of=case(label), answer=answer)) == kind


def test_confusions_are_ranked() -> None:
    pairs = ["code weather", "code weather", "billing code", "code code"]
    outcomes = [
        outcome(W, of=case(label), answer=answer)
        for label, answer in (pair.split() for pair in pairs)
    ]
    assert confusions(outcomes) == [
        Confusion("code", "weather", 2, 3),
        Confusion("billing", "code", 1, 1),
    ]


def test_agreement_is_by_case_and_over_what_both_decided() -> None:
    one_route = case("code", id="4", routes=case().routes[1:2])
    first = [
        outcome(R, 0.9, of=case(id="1")),
        outcome(R, 0.8, of=case(id="2")),
        outcome(R, 0.5, of=case(id="3")),
        outcome(R, 0.9, of=one_route),
        outcome(W, of=case(id="5"), answer=""),
        outcome(R, 0.9, of=case(id="6")),
    ]
    second = [
        outcome(W, of=case(id="3")),
        outcome(W, of=case(id="2")),
        outcome(R, of=case(id="1")),
        outcome(R, of=one_route),
        outcome(R, of=case(id="5")),
    ]
    assert agreement(first, second) == Agreement(3, 1 / 3, 2, 0.5)


@pytest.mark.parametrize(
    ("count", "group"), [(1, "1-2"), (5, "3-5"), (20, "20-29"), (49, "30-49"), (150, "50+")]
)
def test_groups_of_route_counts(count: int, group: str) -> None:
    of = case("r0", routes=[CaseRoute(f"r{n}", "d") for n in range(count)])
    assert route_count_group(outcome(R, of=of)) == group


def test_turns_are_user_messages_so_far() -> None:
    assert turn_group(outcome(R)) == "1"
