"""A routing model that is watched, and not asked while it does not answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from sidecar.core.model import (
    AnswerForm,
    InferenceError,
    InferenceFailure,
    ModelOutput,
    Prompt,
    RouteTexts,
    RoutingModel,
    by_language_model,
)
from sidecar.inference.breaker import BreakerState, CircuitBreaker

_log = structlog.get_logger(__name__)


class ServedModel(RoutingModel, Protocol):
    """A routing model in another process."""

    @property
    def encoder_apart(self) -> bool:
        """True if its sentence encoder is served beside it: what that answers, or does not, says
        nothing of the language model."""
        ...

    async def check_ready(self, timeout_s: float) -> None:
        """Raises InferenceError unless the model can be asked."""
        ...

    async def close(self) -> None: ...


Recover = Callable[[RoutingModel, bool], Awaitable[None]]
"""Runs after an outage, before calls go through again; raises InferenceError to stay out. The
second argument is True if the server was only late, so that its caches can be trusted."""


@dataclass(frozen=True, slots=True)
class WatchTimes:
    """Seconds between checks of readiness while the model answers and while it, or the last check,
    does not, and how long one check may take."""

    closed_s: float = 1.0
    open_s: float = 0.1
    check_s: float = 1.0


class GuardedModel:
    """Adds a circuit breaker and a watch to a served model.

    The watch also notices an outage while nobody asks, so that the first caller after it neither
    waits nor meets a restarted server whose caches are empty.
    """

    def __init__(
        self, model: ServedModel, breaker: CircuitBreaker, times: WatchTimes, recover: Recover
    ) -> None:
        self._model = model
        self._breaker = breaker
        self._times = times
        self._recover = recover
        self._watch: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._in_flight = 0
        self._answered = 0.0
        self._late_from = -math.inf
        self._told = False

    @property
    def degraded(self) -> str:
        """Why the model is not being asked now; empty if it is."""
        return self._breaker.why

    @property
    def state(self) -> BreakerState:
        return self._breaker.state

    @property
    def encoder_apart(self) -> bool:
        """See `ServedModel`."""
        return self._model.encoder_apart

    @property
    def in_flight(self) -> int:
        """Inferences that the model server is working on."""
        return self._in_flight

    def start(self) -> None:
        """Begin to watch; needs a running event loop."""
        self._watch = asyncio.create_task(self._keep_watch(), name="model-watch")

    async def close(self) -> None:
        """Stop watching and close the model."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._model.close()

    async def infer(self, prompt: Prompt, answer_form: AnswerForm, timeout_s: float) -> ModelOutput:
        """See `RoutingModel.infer`; fails at once with BREAKER_OPEN during an outage. The encoder
        alone, which needs no prefix, is asked as soon as the server is ready again."""
        second = prompt.second_opinion
        if second is None or not second.alone or self.state is not BreakerState.RECOVERING:
            self._check_closed()
        self._in_flight += 1
        try:
            output = await self._model.infer(prompt, answer_form, timeout_s)
        except InferenceError as error:
            self.record_failure(error)
            raise
        finally:
            self._in_flight -= 1
        if by_language_model(output) or not self._model.encoder_apart:
            self._answered = time.perf_counter()
            self._breaker.succeeded()
        return output

    async def warm(
        self, prefix_ids: Sequence[int], timeout_s: float, routes: RouteTexts = ()
    ) -> None:
        """See `RoutingModel.warm`."""
        self._check_closed()
        try:
            await self._model.warm(prefix_ids, timeout_s, routes)
        except InferenceError as error:
            if error.failure is not InferenceFailure.ERROR:
                # An error may be that of one prefix; whether the server is broken, decisions tell.
                self.record_failure(error)
            raise
        self._answered = time.perf_counter()

    def late(self, error: InferenceError, began: float, apart_s: float) -> None:
        """Count a decision whose caller gave up on it, unless the server answered another
        meanwhile: then it is busy, not broken.

        Args:
            began: `time.perf_counter()` when the decision did.
            apart_s: how much later than the last one that counted it must have begun.
        """
        if self._answered > began or began < self._late_from:
            return
        self._late_from = began + apart_s
        self.record_failure(error)

    def record_failure(self, error: InferenceError) -> None:
        """Count a call that failed."""
        before = self._breaker.state
        self._breaker.failed(error.failure, str(error))
        if before is not self._breaker.state:
            _log.warning("routing model lost", failure=error.failure.name, why=str(error))
            self._told = True
            self._wake.set()
        elif before is BreakerState.OPEN and not self._told:
            # A wrong address would stand in no log otherwise: what was never there is not lost.
            self._told = True
            _log.warning("routing model not reached yet", why=str(error))

    def _check_closed(self) -> None:
        if self._breaker.state is not BreakerState.CLOSED:
            raise InferenceError(InferenceFailure.BREAKER_OPEN, self._breaker.why)

    async def _keep_watch(self) -> None:
        while True:
            failed = False
            try:
                await self._look()
            except InferenceError as error:
                failed = True
                self.record_failure(error)
            except Exception:
                # The watch is what ends an outage: it must outlive any defect.
                _log.exception("model watch failed")
            await self._sleep(failed)

    async def _look(self) -> None:
        await self._model.check_ready(self._times.check_s)
        if self._breaker.state is BreakerState.CLOSED:
            return
        self._breaker.recovering()
        await self._recover(self._model, self._breaker.only_late)
        self._answered = time.perf_counter()
        self._breaker.close()
        self._told = True
        _log.info("routing model answers")

    async def _sleep(self, failed: bool) -> None:
        calm = self._breaker.state is BreakerState.CLOSED and not failed
        self._wake.clear()
        try:
            async with asyncio.timeout(self._times.closed_s if calm else self._times.open_s):
                await self._wake.wait()
        except TimeoutError:
            pass
