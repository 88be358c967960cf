"""How fast models answer, as it was measured."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sidecar.core.policy import Model

_NEWEST = 0.1
"""Weight of the newest measurement: the mean follows about the last ten."""

_ENOUGH = 5
"""Measurements that outweigh what the catalog says. A first answer is often slow, of a connection
that is opened or of a prompt cache that is empty."""


@dataclass(slots=True)
class _Mean:
    """Exponentially weighted, and the plain mean of the first ones: without that the first would
    have the weight of ten. Seconds."""

    value: float
    count: int
    at: float

    def add(self, seconds: float, now: float) -> None:
        self.count += 1
        self.value += max(_NEWEST, 1 / self.count) * (seconds - self.value)
        self.at = now


class Latencies:
    """Seconds from a request to the beginning of its answer, of each model.

    An answer that is streamed begins with its first token, another one when all of it is there; the
    two say nothing about each other and are kept apart.

    What was measured is forgotten after a while without new measurements: a model that had a bad
    hour is then taken for as fast as the catalog says and tried again. It is lost with the process.

    Args:
        max_entries: most means that are kept; the least recently measured go first.
        forget_s: how long a mean is believed after its last measurement.
        clock: seconds, only ever rising.
    """

    def __init__(
        self, max_entries: int, forget_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_entries = max_entries
        self._forget_s = forget_s
        self._clock = clock
        self._means: OrderedDict[tuple[str, bool], _Mean] = OrderedDict()

    def answered(self, model: str, whole: bool, seconds: float) -> None:
        """`model` has begun to answer.

        Args:
            model: its id.
            whole: the answer is not streamed.
        """
        now = self._clock()
        key = (model, whole)
        mean = self._means.get(key)
        if mean is None or now - mean.at > self._forget_s:
            self._means[key] = _Mean(seconds, 1, now)
        else:
            mean.add(seconds, now)
        self._means.move_to_end(key)
        if len(self._means) > self._max_entries:
            self._means.popitem(last=False)

    def latency_ms(self, model: Model, whole: bool) -> float | None:
        """Measured, or else as the catalog says; None if neither is known."""
        mean = self._means.get((model.id, whole))
        if mean is None or self._clock() - mean.at > self._forget_s:
            return model.latency_ms
        if mean.count < _ENOUGH and model.latency_ms is not None:
            return model.latency_ms
        return mean.value * 1000

    def measured(self) -> Mapping[tuple[str, bool], float]:
        """Model id and whether its answers are whole -> seconds; what is still believed."""
        oldest = self._clock() - self._forget_s
        return {key: mean.value for key, mean in self._means.items() if mean.at >= oldest}
