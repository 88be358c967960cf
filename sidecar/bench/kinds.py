"""What the encoder saves: requests as people make them, and what they cost where the language model
has to decide each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar.bench import own
from sidecar.bench.measuring import Call, Sample, closed_loop, numbers, open_loop
from sidecar.bench.rows import Row, row, rows_by_part
from sidecar.bench.scale import Scale

ONE_CALLER = "One caller, by kind of request"
CAPACITY = "Capacity"
BY_RATE = "At random, by rate"

LIKE_EXAMPLES = "like the examples"
NEVER_ALONE = "like the examples, the encoder never alone"

_SAMPLES = 3
"""Of a row here for each of a row of the matrix: its parts should have enough, too."""

_PATIENCE_S = 0.02

_NEARLY_ALL = 0.95
"""Share of the calls that the model has to decide where it is to have the capacity for them: beyond
that it decides more in all, by leaving out what takes long."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests of one kind to one sidecar.

    Args:
        request: conversation `number`; no two are equal.
    """

    name: str
    routes: own.Routes
    policy: str
    request: Callable[[int], routing_pb2.RouteRequest]

    @property
    def message_bytes(self) -> int:
        """Of a request, the mean of some."""
        some = [self.request(number).ByteSize() for number in range(100)]
        return round(sum(some) / len(some))

    async def call(self, number: int) -> Sample:
        return await self.routes.route(self.request(number))

    async def warm(self) -> None:
        """As `own.warm`; by this kind of request, with which the first ones also take longer."""
        await own.warm(self.routes, self.policy)
        await self.call(next(numbers))


async def one_caller(kind: Kind, scale: Scale) -> AsyncIterator[Row]:
    """All requests, and those that each part of the routing model decided."""
    await kind.warm()
    measured = await closed_loop(kind.call, 1, scale.samples * _SAMPLES)
    size = kind.message_bytes
    for each in rows_by_part(ONE_CALLER, kind.name, measured, message_bytes=size, concurrency=1):
        yield each


async def capacity(
    kind: Kind, scale: Scale, found: Callable[[float], None], alone: float | None
) -> AsyncIterator[Row]:
    """Decisions by the model per second.

    Args:
        found: gets the capacity.
        alone: what the model server does with such requests without the sidecar; None if that was
            not measured.
    """
    await kind.warm()
    best, size = 0.0, kind.message_bytes
    for concurrency in (1, 2, 4, 8):
        measured = await closed_loop(_patient(kind.call), concurrency, seconds=scale.seconds)
        by_model = measured.model_per_second
        if concurrency == 1 or by_model >= _NEARLY_ALL * measured.per_second:
            best = max(best, by_model)
        yield row(
            CAPACITY,
            kind.name,
            measured,
            message_bytes=size,
            concurrency=concurrency,
            note=f"{by_model:.1f}/s by the model",
        )
    found(best)
    share = f", {best / alone:.0%} of the model server alone" if alone else ""
    yield Row(
        CAPACITY,
        capacity_name(kind.name),
        model_per_second=best,
        note=f"{best:.1f} decisions/s by the model{share}",
    )


async def load(kind: Kind, scale: Scale, rate: float) -> AsyncIterator[Row]:
    """Shares of the capacity `rate`, and three times as much as there is."""
    size = kind.message_bytes
    for percent in (25, 50, 75, 100, 300):
        offered = rate * percent / 100
        measured = await open_loop(kind.call, offered, scale.seconds)
        yield row(
            BY_RATE,
            rate_name(percent, kind.name),
            measured,
            message_bytes=size,
            offered=offered,
            note=f"{measured.model_per_second / rate:.0%} of capacity by the model",
        )


def capacity_name(kind: str) -> str:
    """The name of the row of `capacity` that has the capacity."""
    return f"capacity, {kind}"


def rate_name(percent: int, kind: str) -> str:
    """The name of a row of `load`."""
    return f"{percent} % of capacity, {kind}"


def _patient(call: Call) -> Call:
    """A caller who was refused comes again a moment later, not at once."""

    async def patient(number: int) -> Sample:
        sample = await call(number)
        if not sample.by_model:
            await asyncio.sleep(_PATIENCE_S)
        return sample

    return patient
