"""What is counted of decisions, and that it stays within bounds."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from sidecar.observability.logged import LoggedDecision
from sidecar.observability.report import DecisionReport, Document, Times
from sidecar.observability.worth import Prices
from tests.observability.log_lines import SUPPORT, line
from tests.observability.test_worth import MODELS

UNSURE: Mapping[str, Any] = {
    "source": "fallback",
    "reason": "low_confidence",
    "route": "",
    "confidence": 0.2,
}
GONE: Mapping[str, Any] = {"source": "fallback", "reason": "cancelled", "route": ""}
NAMED: Mapping[str, Any] = {"source": "override", "reason": "model_requested", "route": ""}


def counted(*entries: Mapping[str, Any], report: DecisionReport | None = None) -> Document:
    report = report or DecisionReport()
    for changed in entries:
        report.add(msgspec.json.decode(line(**changed), type=LoggedDecision))
    return report.document()


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([{}] * 3, {"decisions": 3, "sources": {"model": 3}}),
        (
            [{}, UNSURE, UNSURE, {"source": "cache"}],
            {
                "sources": {"fallback": 2, "model": 1, "cache": 1},
                "reasons": {
                    "fallback": {"low_confidence": 2},
                    "model": {"matched": 1},
                    "cache": {"matched": 1},
                },
            },
        ),
        (
            [{"source": "oracle", "reason": "mood"}],
            {"sources": {"_other": 1}, "reasons": {"_other": {"_other": 1}}},
        ),
        (
            [
                {"timestamp": f"2026-08-0{day}T10:00:00{zone}"}
                for day, zone in ((2, "Z"), (1, "Z"), (2, "-01:00"))
            ],
            {"first": "2026-08-01T10:00:00+00:00", "last": "2026-08-02T10:00:00-01:00"},
        ),
        (
            [{"confidence": 0.5}, {"confidence": 1}, {"confidence": None}, UNSURE],
            {"confidence": {"decisions": 2, "mean": 0.75}},
        ),
        ([UNSURE], {"confidence": {"decisions": 0, "mean": None}}),
        ([{}, {"source": "cache"}], {"by_routing_model": None}),
        (
            [
                *({"asked": asked} for asked in ("encoder", "model", "model", None)),
                {**UNSURE, "asked": "encoder"},
            ],
            {"by_routing_model": {"decisions": 3, "encoder_alone": 1}},
        ),
        ([NAMED, {**NAMED, "model": "acme/large"}], {"routes": {}}),
        (
            [NAMED, {**NAMED, "model": "acme/large"}],
            {"overridden": {"acme/small": 1, "acme/large": 1}},
        ),
    ],
)
def test_a_policy_is_summed_up(
    entries: list[Mapping[str, Any]], expected: Mapping[str, Any]
) -> None:
    found = counted(*entries)["policies"][SUPPORT]
    assert {key: found[key] for key in expected} == expected


def test_routes_have_their_models_confidence_and_how_often_they_were_too_unsure() -> None:
    travel = {"route": "travel", "model": "acme/large", "confidence": 0.9}
    found = counted({}, travel, travel, {**travel, "model": "acme/small"}, UNSURE)
    assert found["policies"][SUPPORT]["routes"] == {
        "travel": {
            "decisions": 3,
            "confidence": 0.9,
            "below_minimum": 0,
            "models": {"acme/large": 2, "acme/small": 1},
        },
        "billing": {
            "decisions": 1,
            "confidence": 0.75,
            "below_minimum": 1,
            "models": {"acme/small": 1},
        },
        "": {
            "decisions": 1,
            "confidence": None,
            "below_minimum": 0,
            "models": {"acme/small": 1},
        },
    }


def test_the_policy_with_the_most_decisions_is_first() -> None:
    found = counted({"policy": "inline"}, {}, {})
    assert [*found["policies"]] == [SUPPORT, "inline"]


def test_names_beyond_the_bounds_are_told_apart_no_more_and_counted() -> None:
    report = DecisionReport(max_pairs=3, max_cells=4)
    entries = [
        {"policy": f"namespaces/{policy}/policies/p", "route": f"r{route}", "model": f"m{model}"}
        for policy in range(4)
        for route in range(3)
        for model in range(5)
    ]
    found = counted(*entries, report=report)["policies"]
    assert {name: policy["decisions"] for name, policy in found.items()} == {
        "_other": 45,
        "namespaces/0/policies/p": 15,
    }
    routes = found["namespaces/0/policies/p"]["routes"]
    assert {name: [*route["models"].items()] for name, route in routes.items()} == {
        "r0": [("m0", 1), ("m1", 1), ("m2", 1), ("m3", 1), ("_other", 1)],
        "r1": [("_other", 5)],
        "r2": [("_other", 5)],
    }


def test_inline_policies_leave_the_room_of_others() -> None:
    report = DecisionReport(max_pairs=1)
    inline = [{"policy": "inline", "route": f"r{number}"} for number in range(3)]
    found = counted(*inline, {}, report=report)["policies"]
    assert [*found["inline"]["routes"]] == ["_other", "r0"]
    assert [*found[SUPPORT]["routes"]] == ["billing"]


@pytest.mark.parametrize("percent", [50, 95, 99, 100])
@pytest.mark.parametrize("spread", [0.1, 1, 3])
def test_percentiles_are_within_a_hundredth(percent: int, spread: float) -> None:
    draw = random.Random(1)
    values = sorted(draw.lognormvariate(2, spread) for _ in range(5000))
    times = Times()
    for value in values:
        times.add(value)
    exact = values[len(values) * percent // 100 - 1]
    assert times.percentile(percent) == pytest.approx(exact, rel=0.0101)


@pytest.mark.parametrize("values", [[0.0], [0.001, 0.002], [5.0], [9e6], [1e300, 1e300]])
def test_percentiles_are_never_beyond_what_was_measured(values: list[float]) -> None:
    times = Times()
    for value in values:
        times.add(value)
    assert min(values) <= times.percentile(50) <= max(values)
    assert times.percentile(50) <= times.percentile(99)


def test_what_was_not_routed_is_left_out_of_the_price_and_counted() -> None:
    report = DecisionReport()
    counted({}, NAMED, NAMED, GONE, {"source": "pin", "reason": "pinned_task"}, report=report)
    found = report.document(Prices({}))["policies"][SUPPORT]["price"]
    assert found["left_out"] == {
        "override": 2,
        "cancelled": 1,
        "unpriced": {"acme/small": 2},
    }


def test_prices_of_several_policies_are_summed_by_their_decisions() -> None:
    report = DecisionReport()
    other = {"policy": "inline", "model": "acme/large"}
    counted({}, {}, {}, {"model": "acme/large"}, other, report=report)
    found = report.document(Prices(MODELS))["price"]
    assert found["decisions"] == 5
    mean = statistics.mean([1, 1, 1, 10, 10])
    assert found["per_million_tokens"]["routed"]["input"] == pytest.approx(mean)
    assert found["per_million_tokens"]["baseline"]["input"] == pytest.approx(10)
