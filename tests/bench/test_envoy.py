"""What is made of the measurements of the way through Envoy. They themselves take minutes."""

from __future__ import annotations

from collections import Counter

import pytest

from sidecar.bench.envoy import ALONE, CACHE, MODEL, NOOP, PIN, Result, targets, ways, wrong_rows

WAYS = {each.name: each for each in ways([1, 2, 3], [4, 5], 1024)}


def result(name: str, callers: int = 1, ms: float = 1.0, **sources: int) -> Result:
    """Ten seconds of calls that all took `ms`."""
    way = WAYS[name]
    counted = Counter(sources or {way.source: 100})
    calls = counted.total()
    return Result(way, 1024, callers, [ms / 1000] * calls, 10.0, 1.0, counted)


@pytest.mark.parametrize("name", [ALONE, NOOP, PIN, CACHE, MODEL])
def test_row_of_what_it_says_is_right(name: str) -> None:
    assert wrong_rows([result(name)]) == []


def test_model_may_answer_less_than_all() -> None:
    assert wrong_rows([result(MODEL, model=60, fallback=40)]) == []


def test_row_with_other_decisions_is_wrong() -> None:
    (said,) = wrong_rows([result(PIN, pin=99, model=1)])

    assert said == f"{PIN}, 1024 bytes, 1 callers: {{'pin': 99, 'model': 1}}, 0 failed"


@pytest.mark.parametrize("name", [ALONE, NOOP, MODEL])
def test_row_with_requests_that_failed_is_wrong(name: str) -> None:
    failed = result(name)
    failed.failed = 3

    assert "3 failed" in wrong_rows([failed])[0]


@pytest.mark.parametrize(("percent", "ms"), [(50, 50.0), (99, 99.0), (100, 100.0)])
def test_percentiles_are_times_that_were_measured(percent: float, ms: float) -> None:
    measured = result(PIN)
    measured.times = [n / 1000 for n in range(100, 0, -1)]

    assert measured.ms(percent) == pytest.approx(ms)


def test_pins_are_held_against_the_processor_that_parses_nothing() -> None:
    results = [result(NOOP, callers, 1.0) for callers in (1, 16, 64)]
    results += [result(PIN, callers, 1.25, pin=calls) for callers, calls in ((1, 9), (16, 80))]
    results.append(result(PIN, 64, pin=60))

    told = [(round(each.value, 6), each.unit, each.reached) for each in targets(results)]

    assert told == [(0.25, "ms", True), (80, "%", True), (60, "%", False)]
