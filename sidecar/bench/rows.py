"""What was measured, as rows of a table and as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from rich.table import Table

from sidecar.bench.measuring import Measured, Sample

ENCODER_ALONE = "the encoder alone"
BOTH = "the language model"


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement.

    Args:
        group: rows of a group stand together.
        offered: calls a second that were sent; None for callers that wait for each answer.
        concurrency: callers; None where calls came by `offered`.
        message_bytes: of a request.
        p50_ms, p95_ms, p99_ms, max_ms: of the calls; nan if none was made.
        per_second: calls that were answered; nan where the time they took is none of its own.
        model_per_second: decisions of the routing model, as far as they came within the budget.
        by_model: share that the routing model answered within the budget; nan of no calls.
        by_encoder: share that the routing model's encoder answered alone; nan of no calls.
        sources: share of the calls by source of the decision.
        note: what else the row says, or why there is nothing in it.
    """

    group: str
    name: str
    calls: int = 0
    offered: float | None = None
    concurrency: int | None = None
    message_bytes: int = 0
    p50_ms: float = math.nan
    p95_ms: float = math.nan
    p99_ms: float = math.nan
    max_ms: float = math.nan
    per_second: float = math.nan
    model_per_second: float = math.nan
    by_model: float = math.nan
    by_encoder: float = math.nan
    sources: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def as_json(self) -> dict[str, object]:
        """Without numbers that are none: JSON has no nan."""
        return {
            key: value
            for key, value in asdict(self).items()
            if not (isinstance(value, float) and math.isnan(value))
        }


def row(
    group: str,
    name: str,
    measured: Measured,
    *,
    message_bytes: int,
    offered: float | None = None,
    concurrency: int | None = None,
    note: str = "",
) -> Row:
    """The row of what was measured."""
    samples = measured.samples
    times = sorted(sample.seconds * 1000 for sample in samples)
    return Row(
        group,
        name,
        calls=len(samples),
        offered=offered,
        concurrency=concurrency,
        message_bytes=message_bytes,
        p50_ms=percentile(times, 50),
        p95_ms=percentile(times, 95),
        p99_ms=percentile(times, 99),
        max_ms=times[-1] if times else math.nan,
        per_second=measured.per_second,
        model_per_second=measured.model_per_second,
        by_model=sum(each.by_model for each in samples) / len(samples) if samples else math.nan,
        by_encoder=sum(each.by_encoder for each in samples) / len(samples) if samples else math.nan,
        sources=shares(samples),
        note=note,
    )


def rows_by_part(
    group: str,
    name: str,
    measured: Measured,
    *,
    message_bytes: int,
    concurrency: int | None = None,
    note: str = "",
) -> Iterator[Row]:
    """The row of all calls, and one of those that the encoder answered alone and of those that the
    language model answered, too; of neither where there was no such call."""
    yield row(
        group, name, measured, message_bytes=message_bytes, concurrency=concurrency, note=note
    )
    answered = [each for each in measured.samples if each.by_model]
    for part, by_encoder in ((ENCODER_ALONE, True), (BOTH, False)):
        # The time they took is none of their own: calls of the other part lie in between.
        some = Measured([each for each in answered if each.by_encoder is by_encoder])
        if some.samples:
            yield row(
                group,
                f"{name}: {part}",
                some,
                message_bytes=message_bytes,
                concurrency=concurrency,
                note=f"{len(some.samples) / len(measured.samples):.0%} of the calls",
            )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of all do not exceed; nan of none."""
    if not ordered:
        return math.nan
    return ordered[max(math.ceil(percent / 100 * len(ordered)) - 1, 0)]


def shares(samples: Sequence[Sample]) -> dict[str, float]:
    """Share of each source, the most frequent first."""
    counted = Counter(sample.source for sample in samples)
    return {source: number / len(samples) for source, number in counted.most_common()}


def table(group: str, rows: Sequence[Row]) -> Table:
    """The rows of one group."""
    made = Table(title=group, title_justify="left", header_style="bold", box=None)
    made.add_column("what", overflow="fold")
    for name in ("load", "bytes", "calls", "p50 ms", "p95", "p99", "per s", "model", "encoder"):
        made.add_column(name, justify="right")
    made.add_column("by source", overflow="fold")
    for each in rows:
        load = f"{each.offered:.1f}/s" if each.offered is not None else ""
        if each.concurrency is not None:
            load = f"{each.concurrency} at once"
        sources = ", ".join(f"{name} {share:.0%}" for name, share in each.sources.items())
        made.add_row(
            each.name,
            load,
            str(each.message_bytes or ""),
            str(each.calls or ""),
            *(_number(value) for value in (each.p50_ms, each.p95_ms, each.p99_ms)),
            _number(each.per_second),
            *(_percent(share) for share in (each.by_model, each.by_encoder)),
            "; ".join(part for part in (sources, each.note) if part),
        )
    return made


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.0%}"


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"
