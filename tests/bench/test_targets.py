"""What a run's rows say about the targets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.bench.kinds import (
    BY_RATE,
    CAPACITY,
    LIKE_EXAMPLES,
    ONE_CALLER,
    capacity_name,
    rate_name,
)
from sidecar.bench.others import ALONE, LLAMA
from sidecar.bench.rows import Row
from sidecar.bench.targets import targets

LARGE = "Known conversations while others send much"
SHARE = "The sidecar's own share"
CACHED = {"cache": 1.0}


def rows() -> list[Row]:
    return [
        Row(SHARE, "Route minus Triton", concurrency=1, p50_ms=0.9),
        Row(SHARE, "known conversation, TCP", concurrency=1, p50_ms=0.6, sources=CACHED),
        Row(SHARE, "known conversation, TCP", concurrency=32, per_second=4100, sources=CACHED),
        Row("Echoes", "bare grpc.aio", concurrency=32, per_second=8200),
        Row(ONE_CALLER, LIKE_EXAMPLES, concurrency=1, p50_ms=40, p99_ms=190),
        Row(ALONE, LIKE_EXAMPLES, concurrency=1, model_per_second=8),
        Row(ALONE, LIKE_EXAMPLES, concurrency=4, model_per_second=12.5),
        Row(CAPACITY, capacity_name(LIKE_EXAMPLES), model_per_second=10),
        Row(BY_RATE, rate_name(50, LIKE_EXAMPLES), p99_ms=400, by_model=0.995),
        Row(
            BY_RATE,
            rate_name(300, LIKE_EXAMPLES),
            max_ms=1006,
            per_second=30,
            model_per_second=7.5,
        ),
        Row("One caller", "20 routes, 40 words", concurrency=1, p50_ms=50),
        Row(LLAMA, "20 routes, 40 words, 1 out", concurrency=1, p50_ms=450),
        Row(LLAMA, "20 routes, 40 words, 8 out", concurrency=1, p50_ms=300),
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
        (f"a decision, {LIKE_EXAMPLES}, p50", "reached: 40.00 ms, at most 50"),
        (f"a decision, {LIKE_EXAMPLES}, p99", "NOT reached: 190.00 ms, at most 75"),
        (
            f"of what the model server does alone, {LIKE_EXAMPLES}",
            "NOT reached: 80.00 %, at least 85",
        ),
        (f"by the model at 50 % of capacity, {LIKE_EXAMPLES}", "reached: 99.50 %, at least 99"),
        (f"p99 at 50 % of capacity, {LIKE_EXAMPLES}", "NOT reached: 400.00 ms, at most 380"),
        (
            f"the slowest call at 300 % of capacity, {LIKE_EXAMPLES}",
            "NOT reached: 1,006.00 ms, at most 1,005",
        ),
        (
            f"of capacity by the model at 300 % of it, {LIKE_EXAMPLES}",
            "NOT reached: 75.00 %, at least 80",
        ),
        (
            "llama.cpp's server, 20 routes, 40 words, 1 out, takes",
            "reached: 9.00 times as long, at least 8",
        ),
        ("what messages of 8 MiB add to others' p99", "reached: 4.50 ms, at most 5"),
    ],
)
def test_every_target_is_told_reached_or_not(name: str, note: str) -> None:
    told = {each.name: each.note for each in targets(rows(), budget_ms=1000)}

    assert told[name] == note


@pytest.mark.parametrize(
    "sources", [{"fallback:no_match": 1.0}, {"cache": 0.98, "failed:UNAVAILABLE": 0.02}]
)
def test_calls_that_no_cache_answered_are_not_judged_as_known(sources: dict[str, float]) -> None:
    found = [replace(each, sources=sources) for each in rows()]

    told = {each.name: each.note for each in targets(found, budget_ms=1000)}

    known = ("a known conversation, p50", "known conversations")
    for name in (*known, "what messages of 8 MiB add to others' p99"):
        assert told[name].startswith("not measured: "), name
    assert told["the sidecar's own share, p50"] == "reached: 0.90 ms, at most 1"


def test_what_was_not_measured_is_not_judged() -> None:
    assert list(targets([], budget_ms=1000)) == []
