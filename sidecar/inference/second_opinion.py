"""An engine for GPUs and the sentence encoder beside it, which are two models of one Triton.

The CPU model has both in one. Here they are asked at once, and the language model's answer never
depends on the encoder: where that is late or away, the language model decides alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog
from tritonclient.grpc import InferRequestedOutput

from sidecar.core.model import (
    AnswerForm,
    InferenceError,
    InferenceFailure,
    LabelAnswer,
    LabelLogits,
    ModelOutput,
    Prompt,
    RouteTexts,
    SecondOpinionIds,
)
from sidecar.inference.triton import (
    SECOND_OPINION,
    TritonModel,
    TritonTarget,
    read_second_opinion,
    route_inputs,
    second_opinion_inputs,
)

_log = structlog.get_logger(__name__)

_LOST_AFTER = 3
"""Failures in a row after which nobody waits for the encoder."""

_PAUSE_S = 1.0
"""How long it is then not asked; it is tried after that with what the next request asks."""

_TRIAL_S = 3.0
"""For such a trial, which nobody waits for. Triton takes a second to say that the encoder's process
is gone, longer than a decision may wait for it."""

_WARM_WAIT_S = 2.0
"""For the encoder to read a policy's routes; a language model that is ready is worth more."""

Opinion = tuple[float, ...]


class TritonOpinions(TritonModel):
    """Implements `RoutingModel`; answers by labels get the encoder's logits where it gives them.

    Args:
        encoder: name of its model in Triton.
        wait_s: seconds from the start of a call for which the encoder is waited for. An answer of
            the language model that takes longer waits for nothing.
    """

    encoder_apart = True

    def __init__(
        self,
        target: TritonTarget,
        encoder: str,
        wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(target)
        self._encoder = encoder
        self._wait_s = wait_s
        self._clock = clock
        self._failed = 0
        self._asked_from = 0.0
        self._why = ""
        self._trial: asyncio.Task[None] | None = None
        self._opinion_outputs = [InferRequestedOutput(SECOND_OPINION)]

    @property
    def encoder_lost(self) -> str:
        """Why the encoder is not waited for; empty if it is."""
        return self._why

    async def close(self) -> None:
        """See `TritonModel.close`."""
        if self._trial is not None:
            self._trial.cancel()
            await asyncio.wait({self._trial})
        await super().close()

    async def infer(self, prompt: Prompt, answer_form: AnswerForm, timeout_s: float) -> ModelOutput:
        """See `RoutingModel.infer`."""
        second = prompt.second_opinion
        if second is None or not isinstance(answer_form, LabelAnswer):
            return await super().infer(prompt, answer_form, timeout_s)
        if second.alone:
            # Without an answer, too: that it is away says nothing of the language model, which
            # would be given up for an error.
            return LabelLogits((), await self._opinion(second, answer_form))
        started = self._clock()
        opinion = asyncio.create_task(self._opinion(second, answer_form))
        try:
            alone = replace(prompt, second_opinion=None)
            output = await super().infer(alone, answer_form, timeout_s)
            left = max(0.0, started + self._wait_s - self._clock())
            await asyncio.wait({opinion}, timeout=left)
        finally:
            late = opinion.cancel()
        if late:
            self._fail(self._too_late)
        found = None if late else opinion.result()
        return replace(output, second_opinion=found) if isinstance(output, LabelLogits) else output

    async def warm(
        self, prefix_ids: Sequence[int], timeout_s: float, routes: RouteTexts = ()
    ) -> None:
        """See `RoutingModel.warm`; raises for the language model alone."""
        reading = asyncio.create_task(self._read_routes(routes))
        try:
            await super().warm(prefix_ids, timeout_s)
            await reading
        finally:
            reading.cancel()

    async def _opinion(self, second: SecondOpinionIds, form: LabelAnswer) -> Opinion | None:
        """None if it cannot be had."""
        if self._failed >= _LOST_AFTER:
            self._try_again(second, form)
            return None
        try:
            opinion = await self._ask(second, form, self._wait_s)
        except InferenceError as error:
            self._fail(str(error))
            return None
        self._succeed()
        return opinion

    def _try_again(self, second: SecondOpinionIds, form: LabelAnswer) -> None:
        under_way = self._trial is not None and not self._trial.done()
        if not under_way and self._clock() >= self._asked_from:
            self._asked_from = self._clock() + _PAUSE_S
            self._trial = asyncio.create_task(self._try(second, form), name="try-encoder")

    async def _try(self, second: SecondOpinionIds, form: LabelAnswer) -> None:
        started = self._clock()
        try:
            await self._ask(second, form, _TRIAL_S)
        except InferenceError as error:
            self._fail(str(error))
            return
        if self._clock() - started > self._wait_s:
            self._fail(self._too_late)
        else:
            self._succeed()

    async def _ask(self, second: SecondOpinionIds, form: LabelAnswer, timeout_s: float) -> Opinion:
        asked = replace(second, enough=None, alone=False)
        inputs = second_opinion_inputs(asked)
        result = await self._call(inputs, self._opinion_outputs, timeout_s, self._encoder)
        opinion = read_second_opinion(result, form)
        if opinion is None:
            raise InferenceError(
                InferenceFailure.ERROR, f"{self._encoder} sent no {SECOND_OPINION}"
            )
        return opinion

    async def _read_routes(self, routes: RouteTexts) -> None:
        if not routes or self._failed >= _LOST_AFTER:
            return
        try:
            inputs = route_inputs(routes)
            await self._call(inputs, self._opinion_outputs, _WARM_WAIT_S, self._encoder)
        except InferenceError as error:
            self._fail(str(error))

    @property
    def _too_late(self) -> str:
        return f"no answer within {self._wait_s:.3f} s"

    def _fail(self, why: str) -> None:
        self._failed += 1
        if self._failed == _LOST_AFTER:
            _log.warning("second opinion lost", target=self.address, why=why)
        if self._failed >= _LOST_AFTER:
            self._why = why
            self._asked_from = self._clock() + _PAUSE_S

    def _succeed(self) -> None:
        if self._why:
            _log.info("second opinion answers", target=self.address)
        self._failed, self._why = 0, ""
