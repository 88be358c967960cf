"""Calls a server for a while and keeps what each call took."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from sidecar._generated.llmrouter.v1 import decision_pb2

_ANSWERS = {
    decision_pb2.DECISION_REASON_NO_MATCH,
    decision_pb2.DECISION_REASON_LOW_CONFIDENCE,
    decision_pb2.DECISION_REASON_UNPARSABLE_ANSWER,
    decision_pb2.DECISION_REASON_UNKNOWN_ROUTE,
    decision_pb2.DECISION_REASON_NO_CAPABLE_MODEL,
}
"""Fallbacks that the routing model's answer led to: it did its work within the budget."""

_ENCODER_ALONE = "encoder"
_MODEL_STEPS = ("model", _ENCODER_ALONE)
"""Steps of a decision in which the sidecar waits for the model server."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One call.

    Args:
        seconds: from when it should have begun to its answer.
        source: of the decision, `fallback:reason` for fallbacks, `failed:why` for none.
        by_model: the routing model answered within the budget.
        model_s: of which the sidecar waited for the model server.
        by_encoder: its encoder was sure and answered alone; the language model was not computed.
    """

    seconds: float
    source: str
    by_model: bool = False
    model_s: float = 0.0
    by_encoder: bool = False

    @property
    def failed(self) -> bool:
        return self.source.startswith("failed")


@dataclass(slots=True)
class Measured:
    """Samples, and the seconds in which they were taken; 0 where there is no such time."""

    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Calls that were answered; nan without a time."""
        return self._per_second(sum(not each.failed for each in self.samples))

    @property
    def model_per_second(self) -> float:
        """Decisions of the routing model within the budget; nan without a time."""
        return self._per_second(sum(each.by_model for each in self.samples))

    def _per_second(self, count: int) -> float:
        return count / self.seconds if self.seconds else math.nan

    def add(self, more: Measured) -> None:
        """What was measured later, of the same."""
        self.samples += more.samples
        self.seconds += more.seconds


Call = Callable[[int], Awaitable[Sample]]
"""Makes call `number`; the sample's seconds are from its beginning."""

numbers = count(1)
"""Of all calls in this process, so that no two conversations are equal."""


async def closed_loop(
    call: Call, concurrency: int, calls: int | None = None, *, seconds: float | None = None
) -> Measured:
    """`concurrency` callers, each with one call at a time, until `calls` were begun or `seconds`
    are over."""
    measured = Measured()
    left = iter(range(calls)) if calls is not None else count()
    started = time.perf_counter()
    end = started + seconds if seconds is not None else math.inf

    async def caller() -> None:
        for _ in left:
            measured.samples.append(await call(next(numbers)))
            if time.perf_counter() > end:
                return

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    measured.seconds = time.perf_counter() - started
    return measured


async def open_loop(call: Call, rate: float, seconds: float, seed: int = 0) -> Measured:
    """Calls that come at random, `rate` a second, however many are still waiting.

    What a call takes counts from when it was due: a server that is late makes no caller wait with
    the next call, nor does a busy client hide it. Raises ExceptionGroup if a call raises.
    """
    measured = Measured()
    drawn = random.Random(seed)  # noqa: S311 -- not a secret
    started = time.perf_counter()
    due = started

    async def one(due: float) -> None:
        sample = await call(next(numbers))
        took = time.perf_counter() - due
        measured.samples.append(replace(sample, seconds=took))

    async with asyncio.TaskGroup() as running:
        while (due := due + drawn.expovariate(rate)) < started + seconds:
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            running.create_task(one(due))
    measured.seconds = time.perf_counter() - started
    return measured


def sample_of(decision: decision_pb2.Decision, seconds: float) -> Sample:
    """The sample of a call that got `decision`."""
    source = decision_pb2.DecisionSource.Name(decision.source)
    label = source.removeprefix("DECISION_SOURCE_").lower()
    by_model = label == "model"
    if label == "fallback":
        reason = decision_pb2.DecisionReason.Name(decision.reason)
        label += ":" + reason.removeprefix("DECISION_REASON_").lower()
        by_model = decision.reason in _ANSWERS
    waited = {
        step.step: step.duration.ToNanoseconds() / 1e9
        for step in decision.steps
        if step.step in _MODEL_STEPS
    }
    by_encoder = by_model and _ENCODER_ALONE in waited
    return Sample(seconds, label, by_model, sum(waited.values()), by_encoder)


def without_model(samples: Sequence[Sample]) -> list[Sample]:
    """Of the calls that the routing model decided: what they took beside the model server."""
    return [
        replace(each, seconds=each.seconds - each.model_s, model_s=0.0)
        for each in samples
        if each.by_model
    ]
