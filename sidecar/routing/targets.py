"""The model servers that a router may ask, and which of them is asked next."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from sidecar.core.decision import Reason
from sidecar.core.model import (
    AnswerForm,
    InferenceError,
    InferenceFailure,
    ModelOutput,
    Prompt,
    by_language_model,
)
from sidecar.inference.breaker import BreakerState
from sidecar.inference.guarded import GuardedModel
from sidecar.inference.load import Load
from sidecar.routing.registry import CompiledPolicy
from sidecar.routing.warmth import Warmth

_MARGIN = 1.25
"""Of the predicted wait: a mean is exceeded half of the time."""

ENCODER_SHARE = 0.25
"""Of the time that is left, in which the encoder alone has to answer: where that takes longer there
is too much work for it as well, and whoever waits keeps the others waiting."""

_ELSEWHERE = frozenset(
    {InferenceFailure.UNAVAILABLE, InferenceFailure.ERROR, InferenceFailure.BREAKER_OPEN}
)
"""Failures after which another server is asked. A late one has used the time up, and a full queue
says that there is too much work for all."""

_COMPUTING = "The model server is computing the policy's prefix."


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """One model server: a breaker, warm prefixes and a load of its own.

    Args:
        name: its address.
        load: of its language model, in tokens.
        encoder_load: of its encoder where that is asked alone, in calls.
        encoder_lost: why decisions are made without its sentence encoder; empty if they are made
            with it; None where it has none of its own.
        other_engine: build id of the engine that it serves where the sidecar has read another;
            empty where it is the same; None where it does not say.
    """

    name: str
    model: GuardedModel
    warmth: Warmth
    load: Load = field(default_factory=Load)
    encoder_load: Load = field(default_factory=Load)
    encoder_lost: Callable[[], str | None] = lambda: None
    other_engine: Callable[[], str | None] = lambda: None

    def predicted_s(self, compiled: CompiledPolicy, tokens: float) -> float:
        """Seconds until further `tokens` of `compiled` are computed; what was never measured
        counts as none."""
        return self.load.wait_s(tokens + self.warmth.cold_tokens(compiled)) or 0.0

    async def infer(
        self, prompt: Prompt, answer_form: AnswerForm, tokens: float, timeout_s: float
    ) -> ModelOutput:
        """As `RoutingModel.infer`; `tokens` is what it costs."""
        with self.load.working(tokens) as work:
            output = await self.model.infer(prompt, answer_form, timeout_s)
            work.by_language_model = by_language_model(output)
            return output

    async def ask_encoder(
        self, prompt: Prompt, answer_form: AnswerForm, timeout_s: float
    ) -> ModelOutput:
        """As `infer`, of the encoder alone, which waits for nothing that the language model
        does."""
        with self.encoder_load.working(1):
            return await self.model.infer(prompt, answer_form, timeout_s)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no server is asked.

    Args:
        encoder: where the encoder can be asked alone, in time, which needs no prefix.
    """

    reason: Reason
    detail: str
    encoder: Target | None = None


class Targets:
    """At least one target, in the order they were configured.

    Args:
        affinity: ask the same target for the same policy as long as it can answer in time, so that
            many policies share the targets' memory for prefixes; else the least loaded.
    """

    def __init__(self, targets: Sequence[Target], affinity: bool = False) -> None:
        assert targets, "a router needs a model server"
        self._targets = tuple(targets)
        self._affinity = affinity

    def __iter__(self) -> Iterator[Target]:
        return iter(self._targets)

    @property
    def degraded(self) -> str:
        """Why no target is being asked now; empty if one is."""
        if self._in(BreakerState.CLOSED):
            return ""
        if len(self._targets) == 1:
            return self._targets[0].model.degraded
        return "; ".join(f"{each.name}: {each.model.degraded}" for each in self._targets)

    def place(self, compiled: CompiledPolicy, tokens: float, within_s: float) -> Target | Refusal:
        """The target to ask for a decision under `compiled`.

        Policies that a target does not hold are warmed there.

        Args:
            tokens: what the decision costs, a cold prefix not included.
            within_s: seconds in which the answer is of use.
        """
        closed = self._in(BreakerState.CLOSED)
        if not closed:
            return self._outage(within_s)
        if self._affinity:
            # By the name, where it has one: the next revision mostly begins as the present one.
            policy = compiled.ref.digest if compiled.inline else compiled.ref.name
            closed.sort(key=lambda each: _rendezvous(policy, each.name))
        warm = [each for each in closed if each.warmth.is_warm(compiled)]
        if compiled.inline:
            # Asked cold where nobody holds it: it may never come again, so waiting for the second
            # time would mean that it is never used.
            placed = self._soonest(warm or closed, compiled, tokens, within_s)
            computed = not warm and any(each.warmth.computes(compiled) for each in closed)
            if isinstance(placed, Refusal) and computed:
                # What has to be waited for is its own prefix.
                return self.warming(_COMPUTING, within_s)
            return placed
        for each in self._holders(closed, compiled):
            if each not in warm:
                each.warmth.request(compiled, each.model)
        if not warm:
            refused = [each.warmth.refused(compiled) for each in closed]
            if all(refused):
                return self.refused(refused[0], within_s)
            return self.warming(_COMPUTING, within_s)
        placed = self._soonest(warm, compiled, tokens, within_s)
        if isinstance(placed, Refusal) and self._affinity:
            self._spread(closed, compiled, tokens, within_s)
        return placed

    def _holders(self, closed: Sequence[Target], compiled: CompiledPolicy) -> Sequence[Target]:
        """Those that are to hold the policy: with affinity the first that does not refuse it."""
        if not self._affinity:
            return closed
        able = (each for each in closed if not each.warmth.refused(compiled))
        return [next(able, closed[0])]

    def _spread(
        self, closed: Sequence[Target], compiled: CompiledPolicy, tokens: float, within_s: float
    ) -> None:
        """A policy that is asked for more than its target can answer is held by another as well, if
        one has time for it."""
        for each in closed:
            if each.warmth.holds(compiled.ref.digest) or each.warmth.refused(compiled):
                continue
            if _in_time(each, each.predicted_s(compiled, tokens), within_s):
                each.warmth.request(compiled, each.model)
                return

    def other(self, failed: Target, compiled: CompiledPolicy) -> Target | None:
        """A target that can take over at once."""
        able = (
            each
            for each in self._targets
            if each is not failed
            and each.model.state is BreakerState.CLOSED
            and (compiled.inline or each.warmth.is_warm(compiled))
        )
        return min(able, key=lambda each: each.load.in_flight, default=None)

    def warming(self, detail: str, within_s: float) -> Refusal:
        """Of a policy whose prefix no target has computed yet."""
        closed = self._in(BreakerState.CLOSED)
        return Refusal(Reason.WARMING, detail, _encoder_in_time(closed, within_s))

    def refused(self, why: str, within_s: float) -> Refusal:
        """Of a policy whose prefix no target computes."""
        detail = f"The model server did not compute the policy's prefix: {why}"
        return replace(self.warming(detail, within_s), reason=Reason.MODEL_ERROR)

    async def close(self) -> None:
        """Stop what is under way and close the connections."""
        for target in self._targets:
            await target.warmth.close()
            await target.model.close()

    def _in(self, state: BreakerState) -> list[Target]:
        return [each for each in self._targets if each.model.state is state]

    def _outage(self, within_s: float) -> Refusal:
        if ready := self._in(BreakerState.RECOVERING):
            return Refusal(Reason.WARMING, self.degraded, _encoder_in_time(ready, within_s))
        return Refusal(Reason.BREAKER_OPEN, f"Not asked: {self.degraded}")

    def _soonest(
        self, able: Sequence[Target], compiled: CompiledPolicy, tokens: float, within_s: float
    ) -> Target | Refusal:
        waits = [each.predicted_s(compiled, tokens) for each in able]
        if self._affinity and _in_time(able[0], waits[0], within_s):
            return able[0]
        best, wait_s = min(
            zip(able, waits, strict=True), key=lambda pair: (pair[1], pair[0].load.in_flight)
        )
        if _in_time(best, wait_s, within_s):
            return best
        before = best.load.in_flight
        return Refusal(
            Reason.OVERLOADED,
            f"{before} call{' is' if before == 1 else 's are'} before this one, which would be "
            "answered in about "
            f"{wait_s * 1000:.0f} ms; {within_s * 1000:.0f} ms are left.",
            _encoder_in_time((best, *able), within_s),
        )


def takes_over(error: InferenceError) -> bool:
    """True if another target may answer what one failed to."""
    return error.failure in _ELSEWHERE


def _in_time(target: Target, wait_s: float, within_s: float) -> bool:
    # An idle server is asked whatever was measured: else one bad measurement would keep it idle.
    return target.load.in_flight == 0 or wait_s * _MARGIN <= within_s


def _encoder_in_time(able: Sequence[Target], within_s: float) -> Target | None:
    """The first of `able` whose encoder has time."""
    for target in able:
        load = target.encoder_load
        if load.in_flight == 0 or (load.wait_s(1) or 0.0) <= within_s * ENCODER_SHARE:
            return target
    return None


def _rendezvous(policy: str, name: str) -> float:
    """Rank of a target for a policy (Thaler and Ravishankar, 1998): a target that goes moves only
    the policies it had."""
    hashed = hashlib.sha256(f"{policy}\0{name}".encode()).digest()
    return -math.log((int.from_bytes(hashed[:8], "big") + 0.5) / 2**64)
