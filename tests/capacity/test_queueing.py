"""The simulation, where mathematics knows the answer, and what must hold of any load."""

from __future__ import annotations

import pytest

from sidecar.capacity.queueing import Load, replicas_needed, simulate


def test_one_server_without_batches_waits_as_the_formula_says() -> None:
    """Pollaczek-Khinchine for constant service (M/D/1) at half load: mean wait = half a service,
    and more than half of the arrivals find it busy or just free."""
    outcome = simulate(Load(50, 1, max_batch=1, decisions=40_000), lambda batch: 10.0)
    assert outcome.busy == pytest.approx(0.5, abs=0.02)
    assert outcome.mean_batch == 1.0
    assert 10.0 <= outcome.p50_ms < 12.0
    assert 30.0 < outcome.p99_ms < 50.0


def test_nobody_waits_where_almost_nothing_arrives() -> None:
    outcome = simulate(Load(0.1, 1, decisions=500), lambda batch: 10.0, request_ms=1.5)
    assert (outcome.p50_ms, outcome.p99_ms) == (11.5, 11.5)


def test_the_same_seed_gives_the_same_numbers() -> None:
    load = Load(100, 2, decisions=1000)
    assert simulate(load, lambda batch: 8.0) == simulate(load, lambda batch: 8.0)


def test_batches_carry_a_load_that_one_by_one_could_not_be_carried() -> None:
    outcome = simulate(Load(1000, 1, decisions=5000), lambda batch: 5.0 + 0.1 * batch)
    assert outcome.mean_batch > 4
    assert outcome.p99_ms < 20


def test_few_policies_on_many_replicas_leave_some_idle() -> None:
    spread = simulate(Load(400, 4, policies=0, decisions=5000), lambda batch: 8.0)
    kept = simulate(Load(400, 4, policies=1, decisions=5000), lambda batch: 8.0)
    assert kept.busy < spread.busy
    assert kept.p99_ms > spread.p99_ms


def test_the_fewest_replicas_that_hold_the_promise() -> None:
    found = replicas_needed(250, lambda batch: 10.0 * batch, 40.0, max_batch=1)
    assert found is not None
    replicas, outcome = found
    assert replicas == 4  # three would be busy 83 % and wait too long
    assert outcome.p99_ms <= 40.0


def test_a_promise_that_no_number_holds() -> None:
    assert replicas_needed(10, lambda batch: 50.0, 40.0, most=3) is None
