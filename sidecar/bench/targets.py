"""What should be reached, and whether it was, by the rows of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from sidecar.bench.rows import Row

GROUP = "Targets"

_LATE_MS = 5.0
"""What a call may take beyond its budget."""


def targets(rows: Sequence[Row], capacity: float, budget_ms: float) -> Iterator[Row]:
    """A row for each target whose group was measured.

    Args:
        capacity: decisions by the model a second; 0 if it was not measured.
        budget_ms: of a decision.
    """
    found = {(each.group, each.name, each.concurrency): each for each in rows}
    share = found.get(("The sidecar's own share", "Route minus Triton", 1))
    if share is not None:
        yield _at_most("the sidecar's own share, p50", share.p50_ms, 1.0, "ms")
    yield from _cache(found)
    yield from _overload(found, capacity, budget_ms)
    beside = "Known conversations while others send much"
    alone = found.get((beside, "with nothing beside", 1))
    large = found.get((beside, "beside messages of 8 MiB", 1))
    if alone is not None and large is not None:
        more = large.p99_ms - alone.p99_ms
        yield _at_most("what messages of 8 MiB add to others' p99", more, 5.0, "ms")


def _cache(found: dict[tuple[str, str, int | None], Row]) -> Iterator[Row]:
    group, name = "The sidecar's own share", "known conversation, TCP"
    one, many = found.get((group, name, 1)), found.get((group, name, 32))
    if one is None or many is None:
        return
    yield _at_most("a known conversation, p50", one.p50_ms, 0.5, "ms")
    echo = found.get(("Echoes", "bare grpc.aio", 32))
    note = "" if echo is None else f", {many.per_second / echo.per_second:.0%} of the bare echo's"
    yield _at_least("known conversations", many.per_second, 4000, "/s", note)


def _overload(
    found: dict[tuple[str, str, int | None], Row], capacity: float, budget_ms: float
) -> Iterator[Row]:
    row = found.get(("At random, by rate", "300 % of capacity", None))
    if row is None or not capacity:
        return
    limit = budget_ms + _LATE_MS
    yield _at_most("the slowest call at 300 % of capacity", row.max_ms, limit, "ms")
    share = row.by_model * row.per_second / capacity * 100
    yield _at_least("of capacity by the model at 300 % of it", share, 80, "%")


def _at_most(name: str, value: float, limit: float, unit: str, note: str = "") -> Row:
    return _verdict(name, value, "at most", limit, unit, value <= limit, note)


def _at_least(name: str, value: float, limit: float, unit: str, note: str = "") -> Row:
    return _verdict(name, value, "at least", limit, unit, value >= limit, note)


def _verdict(
    name: str, value: float, bound: str, limit: float, unit: str, reached: bool, note: str
) -> Row:
    verdict = "reached" if reached and not math.isnan(value) else "NOT reached"
    text = f"{verdict}: {value:,.2f} {unit}, {bound} {limit:,g}{note}"
    return Row(GROUP, name, note=text)
