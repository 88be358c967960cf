"""The breaker's states."""

from __future__ import annotations

import pytest

from sidecar.core.model import InferenceFailure
from sidecar.inference.breaker import BreakerState, CircuitBreaker

D, U, FULL, E = (
    InferenceFailure.DEADLINE,
    InferenceFailure.UNAVAILABLE,
    InferenceFailure.OVERLOADED,
    InferenceFailure.ERROR,
)
OK = "ok"

CASES: dict[str, tuple[list[InferenceFailure | str], BreakerState]] = {
    "two late calls of three": ([D, D], BreakerState.CLOSED),
    "three late calls in a row": ([D, D, D], BreakerState.OPEN),
    "an answer in between starts anew": ([D, D, OK, D, D], BreakerState.CLOSED),
    "late calls and errors count together": ([D, E, D], BreakerState.OPEN),
    "an unreachable server opens it at once": ([U], BreakerState.OPEN),
    "a full queue is an answer": ([FULL] * 10, BreakerState.CLOSED),
}


@pytest.mark.parametrize(("events", "state"), CASES.values(), ids=CASES.keys())
def test_breaker(events: list[InferenceFailure | str], state: BreakerState) -> None:
    breaker = CircuitBreaker(failures=3)
    breaker.close()
    happen(breaker, events)

    assert breaker.state is state
    assert breaker.why == ("" if state is BreakerState.CLOSED else "why")


def happen(breaker: CircuitBreaker, events: list[InferenceFailure | str]) -> None:
    for event in events:
        if isinstance(event, InferenceFailure):
            breaker.failed(event, "why")
        else:
            breaker.succeeded()


ONLY_LATE: dict[str, tuple[list[InferenceFailure | str], bool]] = {
    "late, late, late": ([D, D, D], True),
    "late, then an error": ([D, D, E], False),
    "unreachable": ([U], False),
    "unreachable, then late": ([U, D], False),
    "an error before the last answer": ([E, OK, D, D, D], True),
    "unreachable, then an answer that was under way": ([U, OK], False),
}


@pytest.mark.parametrize(("events", "only_late"), ONLY_LATE.values(), ids=ONLY_LATE.keys())
def test_knows_whether_the_server_was_only_late(
    events: list[InferenceFailure | str], only_late: bool
) -> None:
    breaker = CircuitBreaker(failures=3)
    breaker.close()
    happen(breaker, events)

    assert breaker.only_late is only_late


def test_nothing_is_trusted_at_the_start() -> None:
    assert CircuitBreaker(failures=3).only_late is False


def test_starts_open_because_nothing_is_known() -> None:
    assert CircuitBreaker(failures=3).state is BreakerState.OPEN


def test_a_failure_while_recovering_opens_it_again() -> None:
    breaker = CircuitBreaker(failures=3)
    breaker.recovering()
    breaker.failed(D, "late")

    assert (breaker.state, breaker.why) == (BreakerState.OPEN, "late")


def test_closing_forgets_old_failures() -> None:
    breaker = CircuitBreaker(failures=3)
    breaker.close()
    for _ in range(3):
        breaker.failed(D, "late")
    breaker.close()
    breaker.failed(D, "late")

    assert breaker.state is BreakerState.CLOSED
