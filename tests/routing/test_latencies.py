"""What is remembered of how fast models answer."""

from __future__ import annotations

import pytest

from sidecar.core.decision import Needs
from sidecar.core.policy import Model, ModelList, Preference, WeightedModel
from sidecar.routing import Latencies
from sidecar.routing.selection import select
from tests.doubles import Clock

BIG, SMALL = Model("big", "big-1", latency_ms=900), Model("small", "small-1", latency_ms=300)
UNKNOWN = Model("unknown", "u-1")
CATALOG = {model.id: model for model in (BIG, SMALL, UNKNOWN)}
FASTEST = ModelList(tuple(WeightedModel(id) for id in CATALOG), Preference.FASTEST)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def latencies(clock: Clock) -> Latencies:
    return Latencies(max_entries=4, forget_s=60, clock=clock)


def answer(latencies: Latencies, model: Model, *seconds: float, whole: bool = False) -> None:
    for each in seconds:
        latencies.answered(model.id, whole, each)


def order(latencies: Latencies, whole: bool = False) -> list[str]:
    def latency_ms(model: Model) -> float | None:
        return latencies.latency_ms(model, whole)

    chosen = select(FASTEST, CATALOG, Needs(), None, "", latency_ms)
    return [model.id for model in chosen.models]


def test_without_measurements_the_catalog_counts(latencies: Latencies) -> None:
    assert order(latencies) == ["small", "big", "unknown"]


def test_measured_model_is_where_its_measurements_put_it(latencies: Latencies) -> None:
    answer(latencies, SMALL, *[2.0] * 5)
    answer(latencies, UNKNOWN, 0.1)

    assert order(latencies) == ["unknown", "big", "small"]


def test_few_measurements_do_not_outweigh_the_catalog(latencies: Latencies) -> None:
    answer(latencies, SMALL, *[2.0] * 4)

    assert latencies.latency_ms(SMALL, whole=False) == 300


def test_newest_measurements_weigh_most(latencies: Latencies) -> None:
    answer(latencies, BIG, *[1.0] * 10, *[2.0] * 10)

    measured = latencies.latency_ms(BIG, whole=False)

    # 2 - 0.9^10, where the plain mean were 1.5.
    assert measured == pytest.approx(1651, abs=1)


def test_first_measurements_have_equal_weight(latencies: Latencies) -> None:
    answer(latencies, BIG, 5.0, 1.0, 1.0, 1.0, 1.0)

    assert latencies.latency_ms(BIG, whole=False) == pytest.approx(1800)


def test_streamed_and_whole_answers_are_kept_apart(latencies: Latencies) -> None:
    answer(latencies, SMALL, *[9.0] * 5, whole=True)

    assert order(latencies) == ["small", "big", "unknown"]
    assert order(latencies, whole=True) == ["big", "small", "unknown"]


def test_old_measurements_are_forgotten(latencies: Latencies, clock: Clock) -> None:
    answer(latencies, SMALL, *[9.0] * 5)
    clock.now += 61

    assert order(latencies) == ["small", "big", "unknown"]
    assert latencies.measured() == {}

    answer(latencies, SMALL, 0.5)
    assert latencies.measured() == {("small", False): 0.5}


def test_only_so_many_are_kept(latencies: Latencies) -> None:
    for number in range(10):
        latencies.answered(f"model {number}", False, 1.0)

    assert [id for id, _ in latencies.measured()] == [f"model {number}" for number in range(6, 10)]
