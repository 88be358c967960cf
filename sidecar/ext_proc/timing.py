"""How long the model of a decision takes to begin its answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sidecar._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from sidecar.ext_proc.effect import Effect
from sidecar.ext_proc.messages import header_of

_ATTEMPTS = "x-envoy-attempt-count"
"""Envoy sets it where its virtual host has `include_attempt_count_in_response`."""


class LatencyObserver(Protocol):
    """Remembers how fast models answer."""

    def answered(self, model: str, whole: bool, seconds: float) -> None:
        """The model of that id has begun to answer; `whole`: not as a stream."""
        ...


@dataclass(slots=True)
class ResponseTimer:
    """Times one exchange: from the answer to Envoy, with which the request goes on to the model, to
    the headers of the model's response. The decision itself is not part of it.

    Only a success counts: an error comes sooner than an answer would. Nor does the answer of a
    fallback count, where Envoy says that it has tried more than once.
    """

    observer: LatencyObserver | None
    clock: Callable[[], float] = time.perf_counter
    _effect: Effect | None = None
    _sent: float = 0.0

    def sent(self, effect: Effect) -> None:
        """`effect` has been carried out on the request."""
        self._effect = effect if effect.model else None
        self._sent = self.clock()

    def heard(self, message: pb.ProcessingRequest) -> None:
        """Envoy's next message."""
        effect = self._effect
        if self.observer is None or effect is None or not message.HasField("response_headers"):
            return
        headers = message.response_headers.headers
        if not header_of(headers, ":status").startswith("2"):
            return
        if header_of(headers, _ATTEMPTS) not in ("", "1"):
            return
        self.observer.answered(effect.model, effect.whole_answer, self.clock() - self._sent)
        self._effect = None
