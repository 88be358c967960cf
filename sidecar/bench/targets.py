"""What should be reached, and whether it was, by the rows of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sidecar.bench.rows import Row

GROUP = "Targets"

_LATE_MS = 5.0
"""What a call may take beyond its budget."""

_KNOWN = 0.99
"""Share of calls from the cache from which a row is one of known conversations."""


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
        name = "what messages of 8 MiB add to others' p99"
        more = large.p99_ms - alone.p99_ms
        yield _not_known(name, alone, large) or _at_most(name, more, 5.0, "ms")


def _cache(found: dict[tuple[str, str, int | None], Row]) -> Iterator[Row]:
    group, name = "The sidecar's own share", "known conversation, TCP"
    one, many = found.get((group, name, 1)), found.get((group, name, 32))
    if one is None or many is None:
        return
    latency, rate = "a known conversation, p50", "known conversations"
    yield _not_known(latency, one) or _at_most(latency, one.p50_ms, 0.5, "ms")
    echo = found.get(("Echoes", "bare grpc.aio", 32))
    note = "" if echo is None else f", {many.per_second / echo.per_second:.0%} of the bare echo's"
    at_least = _at_least(rate, many.per_second, 4000, "/s", note)
    yield _not_known(rate, many) or at_least


def _overload(
    found: dict[tuple[str, str, int | None], Row], capacity: float, budget_ms: float
) -> Iterator[Row]:
    row = found.get(("At random, by rate", "300 % of capacity", None))
    if row is None or not capacity:
        return
    limit = budget_ms + _LATE_MS
    yield _at_most("the slowest call at 300 % of capacity", row.max_ms, limit, "ms")
    share = row.model_per_second / capacity * 100
    yield _at_least("of capacity by the model at 300 % of it", share, 80, "%")


def _not_known(name: str, *rows: Row) -> Row | None:
    """Says that nothing can be said, where the rows are not of known conversations."""
    for row in rows:
        known = row.sources.get("cache", 0.0)
        if known < _KNOWN:
            return Row(
                GROUP, name, note=f"not measured: {known:.0%} of its calls came from the cache"
            )
    return None


def _at_most(name: str, value: float, limit: float, unit: str) -> Row:
    return _verdict(name, value <= limit, f"{value:,.2f} {unit}, at most {limit:,g}")


def _at_least(name: str, value: float, limit: float, unit: str, note: str = "") -> Row:
    return _verdict(name, value >= limit, f"{value:,.2f} {unit}, at least {limit:,g}{note}")


def _verdict(name: str, reached: bool, told: str) -> Row:
    return Row(GROUP, name, note=f"{'reached' if reached else 'NOT reached'}: {told}")
