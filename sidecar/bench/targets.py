"""What should be reached, and whether it was, by the rows of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sidecar.bench.kinds import (
    BY_RATE,
    CAPACITY,
    LIKE_EXAMPLES,
    NEVER_ALONE,
    ONE_CALLER,
    capacity_name,
    rate_name,
)
from sidecar.bench.others import ALONE, LLAMA, ONE_OUT
from sidecar.bench.rows import Row

GROUP = "Targets"

_LATE_MS = 5.0
"""What a call may take beyond its budget."""

_KNOWN = 0.99
"""Share of calls from the cache from which a row is one of known conversations."""


Found = Mapping[tuple[str, str, int | None], Row]
"""Rows by group, name and concurrency."""


def targets(rows: Sequence[Row], budget_ms: float) -> Iterator[Row]:
    """A row for each target whose group was measured.

    Args:
        budget_ms: of a decision.
    """
    found = {(each.group, each.name, each.concurrency): each for each in rows}
    for kind in (LIKE_EXAMPLES, NEVER_ALONE):
        yield from _decisions(found, kind)
    yield from _llama(found)
    share = found.get(("The sidecar's own share", "Route minus Triton", 1))
    if share is not None:
        yield _at_most("the sidecar's own share, p50", share.p50_ms, 1.0, "ms")
    yield from _cache(found)
    for kind in (LIKE_EXAMPLES, NEVER_ALONE):
        yield from _under_load(found, kind, budget_ms)
    beside = "Known conversations while others send much"
    alone = found.get((beside, "with nothing beside", 1))
    large = found.get((beside, "beside messages of 8 MiB", 1))
    if alone is not None and large is not None:
        name = "what messages of 8 MiB add to others' p99"
        more = large.p99_ms - alone.p99_ms
        yield _not_known(name, alone, large) or _at_most(name, more, 5.0, "ms")


def _decisions(found: Found, kind: str) -> Iterator[Row]:
    one = found.get((ONE_CALLER, kind, 1))
    if one is not None:
        yield _at_most(f"a decision, {kind}, p50", one.p50_ms, 50, "ms")
        yield _at_most(f"a decision, {kind}, p99", one.p99_ms, 75, "ms")


def _llama(found: Found) -> Iterator[Row]:
    for (group, name, _), theirs in found.items():
        if group != LLAMA or not name.endswith(ONE_OUT):
            continue
        ours = found.get(("One caller", name.removesuffix(ONE_OUT), 1))
        if ours is not None and ours.p50_ms > 0:
            times = theirs.p50_ms / ours.p50_ms
            yield _at_least(f"{LLAMA}, {name}, takes", times, 8, "times as long")


def _cache(found: Found) -> Iterator[Row]:
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


def _under_load(found: Found, kind: str, budget_ms: float) -> Iterator[Row]:
    capacity = found.get((CAPACITY, capacity_name(kind), None))
    if capacity is None:
        return
    most = capacity.model_per_second
    alone = [
        each.model_per_second
        for (group, name, _), each in found.items()
        if (group, name) == (ALONE, kind)
    ]
    if alone:
        share = most / max(alone) * 100
        yield _at_least(f"of what the model server does alone, {kind}", share, 85, "%")
    half, over = (found.get((BY_RATE, rate_name(rate, kind), None)) for rate in (50, 300))
    if half is not None:
        by_model = half.by_model * 100
        yield _at_least(f"by the model at 50 % of capacity, {kind}", by_model, 99, "%")
        unloaded = found.get((ONE_CALLER, kind, 1))
        if unloaded is not None:
            limit = 2 * unloaded.p99_ms
            yield _at_most(f"p99 at 50 % of capacity, {kind}", half.p99_ms, limit, "ms")
    if over is not None:
        limit = budget_ms + _LATE_MS
        yield _at_most(f"the slowest call at 300 % of capacity, {kind}", over.max_ms, limit, "ms")
        share = over.model_per_second / most * 100
        yield _at_least(f"of capacity by the model at 300 % of it, {kind}", share, 80, "%")


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
    return _verdict(name, value <= limit, f"{value:,.2f} {unit}, at most {limit:,.5g}")


def _at_least(name: str, value: float, limit: float, unit: str, note: str = "") -> Row:
    return _verdict(name, value >= limit, f"{value:,.2f} {unit}, at least {limit:,g}{note}")


def _verdict(name: str, reached: bool, told: str) -> Row:
    return Row(GROUP, name, note=f"{'reached' if reached else 'NOT reached'}: {told}")
