"""What counts as an answer of the server. The model is a stub."""

from __future__ import annotations

import contextlib
import time

import pytest
from structlog.testing import capture_logs

from sidecar.core.model import (
    Enough,
    InferenceError,
    InferenceFailure,
    LabelAnswer,
    Prompt,
    RoutingModel,
    SecondOpinionIds,
)
from sidecar.inference.breaker import BreakerState, CircuitBreaker
from sidecar.inference.guarded import GuardedModel, WatchTimes
from tests.doubles import StubModel
from tests.waiting import until

LABELS = LabelAnswer((1, 2, 3))


async def recover(model: RoutingModel, only_late: bool) -> None:
    pass


@pytest.mark.parametrize(
    ("alone", "apart", "state"),
    [
        (False, True, BreakerState.CLOSED),
        (True, False, BreakerState.CLOSED),
        (True, True, BreakerState.OPEN),
    ],
    ids=["language model", "encoder of the same model", "encoder apart"],
)
async def test_only_what_answers_for_the_language_model_keeps_the_breaker_closed(
    alone: bool, apart: bool, state: BreakerState
) -> None:
    model, breaker = StubModel(), CircuitBreaker(failures=3)
    model.encoder_apart, model.opinion = apart, (1.0, 2.0, 0.0)
    guard = GuardedModel(model, breaker, WatchTimes(), recover)
    breaker.close()
    second = SecondOpinionIds((1,), (0,), ((2,),), Enough(1.0, 0.0, 0.9), alone)
    for _ in range(2):
        breaker.failed(InferenceFailure.DEADLINE, "late")
    await guard.infer(Prompt((1,), (2,), second_opinion=second), LABELS, 1)
    breaker.failed(InferenceFailure.DEADLINE, "late")

    assert breaker.state is state
    for _ in range(2):
        # The server answered since they began, so it was busy.
        guard.late(InferenceError(InferenceFailure.DEADLINE, "late"), began=0.0, apart_s=0)
    assert breaker.state is state


async def test_a_server_that_never_answered_is_told_of_once() -> None:
    guard = GuardedModel(StubModel(), CircuitBreaker(failures=3), WatchTimes(), recover)
    gone = InferenceError(InferenceFailure.UNAVAILABLE, "gone")
    with capture_logs() as log:
        for _ in range(2):
            guard.record_failure(gone)
        guard.start()
        await until(lambda: guard.state is BreakerState.CLOSED)
        for _ in range(2):
            guard.record_failure(gone)
        await guard.close()

    assert [entry["event"] for entry in log] == [
        "routing model not reached yet",
        "routing model answers",
        "routing model lost",
    ]
    assert log[0]["why"] == "gone"


async def test_an_outage_that_a_call_noticed_is_looked_into_at_once() -> None:
    model, breaker = StubModel(), CircuitBreaker(failures=3)
    states: list[BreakerState] = []

    async def noting(model: RoutingModel, only_late: bool) -> None:
        states.append(breaker.state)

    # The watch itself would look again in an hour.
    guard = GuardedModel(model, breaker, WatchTimes(closed_s=3600, open_s=0.005), noting)
    guard.start()
    await until(lambda: guard.state is BreakerState.CLOSED)
    guard.record_failure(InferenceError(InferenceFailure.UNAVAILABLE, "gone"))
    assert guard.degraded == "gone"

    await until(lambda: guard.state is BreakerState.CLOSED)
    await guard.close()

    assert states == [BreakerState.RECOVERING] * 2


async def test_an_outage_that_the_watch_notices_is_made_sure_of_at_once() -> None:
    model, breaker = StubModel(), CircuitBreaker(failures=3)
    model.frozen = True
    breaker.close()
    guard = GuardedModel(model, breaker, WatchTimes(3600, open_s=0.005, check_s=0.01), recover)
    guard.start()
    await until(lambda: guard.state is BreakerState.OPEN)
    await guard.close()


async def test_what_is_late_from_before_an_outage_says_nothing_of_a_server_that_is_back() -> None:
    breaker = CircuitBreaker(failures=3)
    guard = GuardedModel(StubModel(), breaker, WatchTimes(), recover)
    began = time.perf_counter()
    guard.start()
    await until(lambda: guard.state is BreakerState.CLOSED)
    for number in range(3):
        guard.late(InferenceError(InferenceFailure.DEADLINE, "late"), began, apart_s=0)
        assert guard.state is BreakerState.CLOSED, number
    await guard.close()


@pytest.mark.parametrize(
    ("failure", "state"),
    [
        (InferenceFailure.ERROR, BreakerState.CLOSED),
        (InferenceFailure.DEADLINE, BreakerState.OPEN),
        (InferenceFailure.UNAVAILABLE, BreakerState.OPEN),
    ],
)
async def test_an_error_about_one_prefix_does_not_open_the_breaker(
    failure: InferenceFailure, state: BreakerState
) -> None:
    model, breaker = StubModel(), CircuitBreaker(failures=3)
    guard = GuardedModel(model, breaker, WatchTimes(), recover)
    breaker.close()
    model.break_with(failure)
    for _ in range(3):
        with contextlib.suppress(InferenceError):
            await guard.warm((1, 2), 1)

    assert breaker.state is state
