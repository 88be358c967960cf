"""What a run's rows say about the targets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.bench.rows import Row
from sidecar.bench.targets import targets

LARGE = "Known conversations while others send much"
RATE = "At random, by rate"
SHARE = "The sidecar's own share"
CACHED = {"cache": 1.0}


def rows() -> list[Row]:
    return [
        Row(SHARE, "Route minus Triton", concurrency=1, p50_ms=0.9),
        Row(SHARE, "known conversation, TCP", concurrency=1, p50_ms=0.6, sources=CACHED),
        Row(SHARE, "known conversation, TCP", concurrency=32, per_second=4100, sources=CACHED),
        Row("Echoes", "bare grpc.aio", concurrency=32, per_second=8200),
        Row(RATE, "300 % of capacity", max_ms=1006, per_second=30, model_per_second=7.5),
        Row(LARGE, "with nothing beside", concurrency=1, p99_ms=2, sources=CACHED),
        Row(LARGE, "beside messages of 8 MiB", concurrency=1, p99_ms=6.5, sources=CACHED),
    ]


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("the sidecar's own share, p50", "reached: 0.90 ms, at most 1"),
        ("a known conversation, p50", "NOT reached: 0.60 ms, at most 0.5"),
        (
            "known conversations",
            "reached: 4,100.00 /s, at least 4,000, 50% of the bare echo's",
        ),
        ("the slowest call at 300 % of capacity", "NOT reached: 1,006.00 ms, at most 1,005"),
        ("of capacity by the model at 300 % of it", "NOT reached: 75.00 %, at least 80"),
        ("what messages of 8 MiB add to others' p99", "reached: 4.50 ms, at most 5"),
    ],
)
def test_every_target_is_told_reached_or_not(name: str, note: str) -> None:
    told = {each.name: each.note for each in targets(rows(), capacity=10, budget_ms=1000)}

    assert told[name] == note


@pytest.mark.parametrize(
    "sources", [{"fallback:no_match": 1.0}, {"cache": 0.98, "failed:UNAVAILABLE": 0.02}]
)
def test_calls_that_no_cache_answered_are_not_judged_as_known(sources: dict[str, float]) -> None:
    found = [replace(each, sources=sources) for each in rows()]

    told = {each.name: each.note for each in targets(found, capacity=10, budget_ms=1000)}

    known = ("a known conversation, p50", "known conversations")
    for name in (*known, "what messages of 8 MiB add to others' p99"):
        assert told[name].startswith("not measured: "), name
    assert told["the sidecar's own share, p50"] == "reached: 0.90 ms, at most 1"


def test_what_was_not_measured_is_not_judged() -> None:
    assert list(targets([], capacity=0, budget_ms=1000)) == []
