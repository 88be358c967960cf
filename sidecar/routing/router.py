"""The walk of one routing request: override, pin, cache, model, fallback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import structlog

from sidecar.core.decision import (
    ENCODER_STEP,
    MODEL_STEP,
    Decision,
    DecisionSink,
    PolicyName,
    Reason,
    RoutingRequest,
    Source,
)
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import (
    Answer,
    CompiledPrompt,
    InferenceError,
    InferenceFailure,
    ModelOutput,
    Prompt,
    by_language_model,
    encoder_alone,
    is_sure,
    stands_in,
)
from sidecar.core.policy import PinMode
from sidecar.inference.breaker import BreakerState
from sidecar.inference.calls import DecisionTrace, decision_trace
from sidecar.inference.load import work_of
from sidecar.routing.cache import CacheKey, DecisionCache, cache_key, said_key
from sidecar.routing.choice import choose
from sidecar.routing.coalescing import Coalescer
from sidecar.routing.latencies import Latencies
from sidecar.routing.pins import (
    Pin,
    Pinning,
    Pins,
    Subject,
    issued_key,
    pin_mode,
    size_of,
    subject,
)
from sidecar.routing.registry import CompiledPolicy, PolicyRegistry
from sidecar.routing.targets import ENCODER_SHARE, Refusal, Target, Targets, takes_over
from sidecar.routing.walk import (
    Outcome,
    RoutingModelRef,
    Walk,
    decide,
    fallback,
)

_log = structlog.get_logger(__name__)

_SHARED_CALL_BUDGETS = 4
"""Life of a call that several requests wait for, in budgets: each waiter leaves by its own
deadline, so this only ends a call that ever new waiters would keep alive."""

_TELLING_SHARE = 0.75
"""Of the budget, that must have been left when the model was asked, where a late answer is to say
something about the model server. Callers with a deadline a little below the budget are to count:
they may be all there are."""

_APART_SHARE = 0.25
"""Of the budget, that must lie between the beginnings of two decisions if both are to count as
late: what held up one has held up all that began with it."""

_ISSUED_TRIES, _ISSUED_PAUSE_S = 10, 0.005
"""For an id that is not known, and may be on its way."""

_HASHED_AT_ONCE = 256 * 1024
"""Characters of a conversation that are hashed in the event loop; more would hold it up for
milliseconds."""


_GONE = fallback(Reason.CANCELLED, "The caller went away before the decision.")


@dataclass(frozen=True, slots=True)
class RouterLimits:
    """Bounds of a decision.

    Args:
        budget_s: seconds for the whole decision.
        reserve_s: seconds of the budget, or of the caller's own deadline, kept for the way back.
        max_waiting: decisions that may wait for the routing model at once; more are answered at
            once by fallback.
    """

    budget_s: float
    reserve_s: float
    max_waiting: int


class Router:
    """Decides requests. Never fails for a reason other than wrong input.

    Args:
        cache: None: every decision asks the model.
        pins: None: nothing keeps its route, whatever policies say.
        latencies: None: the fastest model is the one that is so in the catalog.
        begin_trace: of a decision; None: the model server is told of none.
    """

    def __init__(
        self,
        registry: PolicyRegistry,
        targets: Targets,
        sink: DecisionSink,
        limits: RouterLimits,
        routing_model: RoutingModelRef,
        spell: Callable[[Sequence[int]], str],
        *,
        cache: DecisionCache | None = None,
        pins: Pins | None = None,
        latencies: Latencies | None = None,
        begin_trace: Callable[[], DecisionTrace] | None = None,
    ) -> None:
        self._registry = registry
        self._targets = targets
        self._cache = cache
        self._pins = pins
        self._latencies = latencies
        self._begin_trace = begin_trace
        self._sink = sink
        self._limits = limits
        self._routing_model = routing_model
        self._spell = spell
        self._coalescer: Coalescer[Target] = Coalescer()
        # One, and not asyncio's own: policies are compiled there.
        self._hashing = ThreadPoolExecutor(1, "hash-conversation")
        self._waiting = 0
        self._watching = False

    @property
    def degraded(self) -> str:
        """Why the routing model is not being asked now; empty if it is."""
        return self._targets.degraded

    @property
    def waiting(self) -> int:
        """Decisions that wait for the routing model."""
        return self._waiting

    async def decide(self, request: RoutingRequest) -> Decision:
        """The decision for `request`, within its budget; recorded once, also when its caller goes
        away while the model is asked.

        Raises:
            SidecarError: POLICY_NOT_FOUND, POLICY_TOO_LARGE (inline), MODEL_NOT_FOUND.
        """
        started = time.perf_counter() if request.arrived is None else request.arrived
        if self._begin_trace is not None:
            decision_trace.set(self._begin_trace())
        shortened = request.budget_s is not None and request.budget_s < self._limits.budget_s
        budget_s = request.budget_s if shortened else self._limits.budget_s
        assert budget_s is not None, "shortened only where the request has a budget"
        budget_s -= self._limits.reserve_s
        waited_s = 0.0 if request.arrived is None else time.perf_counter() - started
        compiled = await self._compiled(request, budget_s - waited_s)
        walk = Walk(request, compiled, budget_s, started, self._latencies)
        # What is recorded if the caller goes away before there is an outcome.
        outcome = _GONE
        decision: Decision | None = None
        try:
            outcome = await self._outcome(walk)
            decision = self._decision(walk, outcome)
            if walk.pinning is not None:
                walk.pinning.remember(decision, request.dialect)
        finally:
            self._sink.record(request, decision or self._decision(walk, outcome))
        return decision

    def watching(self) -> None:
        """From now on ids are told by `issued` as soon as they are issued."""
        self._watching = True

    def issued(self, response_id: str, caller: str, model: str, route: str) -> None:
        """Remembers that the provider of `model` (id) keeps what it calls `response_id`; `route`:
        that of the decision, empty if there was none."""
        if self._pins is not None:
            self._pins.put(issued_key(caller, response_id), Pin(route, model))

    async def _compiled(self, request: RoutingRequest, within_s: float) -> CompiledPolicy:
        if isinstance(request.policy, PolicyName):
            compiled = self._registry.get(request.policy)
        elif request.unchecked:
            compiled = self._registry.unchecked_inline(request.policy)
        else:
            compiled = await self._registry.compile_inline(request.policy, max(within_s, 0))
        if request.model and request.model not in self._registry.catalog:
            raise SidecarError(
                ErrorCode.MODEL_NOT_FOUND,
                f"model: {request.model!r} is not in the model catalog; "
                "leave it empty to have the policy choose",
            )
        return compiled

    async def _outcome(self, walk: Walk) -> Outcome:
        try:
            ended = self._override(walk) or _unchecked(walk) or await self._by_pin(walk)
            if ended is not None:
                return ended
            outcome = await self._answered(walk)
            return walk.pinning.settled(outcome) if walk.pinning is not None else outcome
        except Exception:
            return _defect(walk)

    async def _answered(self, walk: Walk) -> Outcome:
        try:
            return (
                self._unroutable(walk)
                or self._unknown_issuer(walk)
                or await self._uncompiled(walk)
                or self._from_cache(walk)
                or await self._by_model(walk)
            )
        except InferenceError as error:
            return fallback(error.failure.value, f"The routing model gave no answer: {error}")
        except Exception:
            # As any other request without an answer, it keeps its conversation's route.
            return _defect(walk)

    def _override(self, walk: Walk) -> Outcome | None:
        if not walk.request.model:
            return None
        model = self._registry.catalog[walk.request.model]
        detail = f"The caller asked for {model.id}."
        return Outcome(Source.OVERRIDE, Reason.MODEL_REQUESTED, detail, model=model)

    async def _find_issuer(self, walk: Walk) -> None:
        if self._pins is None:
            return
        request, catalog = walk.request, walk.compiled.catalog
        if request.continues:
            key = issued_key(request.caller, request.continues)
            walk.issuer = self._pins.issuer(key, catalog)
            for _ in range(_ISSUED_TRIES if self._watching else 0):
                if walk.issuer is not None or walk.remaining_s <= _ISSUED_PAUSE_S:
                    break
                # A client sees an id when we do, and can be quicker with it.
                await asyncio.sleep(_ISSUED_PAUSE_S)
                walk.issuer = self._pins.issuer(key, catalog)
        if request.refers_to and walk.issuer is None:
            # Not waited for: most are from before, and many are never seen.
            key = issued_key(request.caller, request.refers_to)
            walk.issuer = self._pins.issuer(key, catalog)

    def _unknown_issuer(self, walk: Walk) -> Outcome | None:
        """What is said does not tell who keeps the rest, so it must not decide."""
        if not walk.lacks_issuer:
            return None
        return fallback(
            Reason.UNKNOWN_ISSUER,
            "A provider keeps a part of the request, and which one is not known here.",
        )

    async def _by_pin(self, walk: Walk) -> Outcome | None:
        if walk.held:
            await self._find_issuer(walk)
        mode = pin_mode(walk.request, walk.compiled.policy, walk.lacks_issuer)
        if self._pins is None or mode is PinMode.OFF:
            return None
        try:
            of = await self._subject(walk, mode)
        except TimeoutError:
            return fallback(Reason.DEADLINE_EXCEEDED, "The conversation was not read in time.")
        walk.asked = of.asked
        if walk.request.trial:
            return None
        walk.pinning = Pinning(self._pins, walk.compiled.policy, of, walk.issuer)
        kept = walk.pinning.kept()
        walk.finish_step("pin")
        return kept

    async def _subject(self, walk: Walk, mode: PinMode) -> Subject:
        """Raises TimeoutError."""
        if size_of(walk.request.conversation) <= _HASHED_AT_ONCE:
            return subject(walk.request, walk.compiled, mode)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(walk.remaining_s):
            return await loop.run_in_executor(
                self._hashing, subject, walk.request, walk.compiled, mode
            )

    def _unroutable(self, walk: Walk) -> Outcome | None:
        if not walk.compiled.policy.routes:
            return fallback(Reason.NOTHING_TO_ROUTE, "The policy has no routes.")
        if not walk.asked.shown_to_router():
            detail = "The conversation has no user or assistant text."
            return fallback(Reason.NOTHING_TO_ROUTE, detail)
        return None

    async def _uncompiled(self, walk: Walk) -> Outcome | None:
        """Has the policy compiled, where that was not needed before."""
        if walk.compiled.prompt is not None:
            return None
        compiled = None
        if not walk.compiled.inline:
            compiled = await self._registry.ready(walk.compiled, walk.remaining_s)
        walk.finish_step("compile")
        if compiled is None:
            return fallback(Reason.WARMING, "The policy is being compiled.")
        walk.compiled = compiled
        return None

    def _from_cache(self, walk: Walk) -> Outcome | None:
        if self._cache is None:
            return None
        # Who wants an explanation wants the prompt.
        said = None if walk.request.explain else self._said_key(walk)
        answer = self._cache.get(said) if said is not None else None
        if answer is None:
            key = self._key(walk)
            answer = self._cache.get(key)
            if answer is not None and said is not None:
                self._cache.link(said, key)
        walk.finish_step("cache")
        return None if answer is None else self._chosen(walk, answer, Source.CACHE)

    def _keep(self, walk: Walk, answer: Answer) -> None:
        if self._cache is None:
            return
        key, said = self._key(walk), self._said_key(walk)
        self._cache.put(key, answer)
        if said is not None:
            self._cache.link(said, key)

    async def _by_model(self, walk: Walk) -> Outcome:
        if self._waiting >= self._limits.max_waiting:
            detail = f"{self._waiting} decisions are waiting for the routing model already."
            return fallback(Reason.OVERLOADED, detail)
        prompt = self._render(walk)
        target = self._place(walk, prompt)
        if isinstance(target, Refusal):
            return await self._refused(walk, target, prompt)
        self._waiting += 1
        step = MODEL_STEP
        try:
            prepared: Target | Refusal = target
            if walk.compiled.inline:
                prepared = await self._prepared(walk, target, prompt)
            if isinstance(prepared, Target):
                output = await self._ask(walk, prepared, prompt)
                if not by_language_model(output):
                    step = ENCODER_STEP
        finally:
            self._waiting -= 1
            walk.finish_step(step)
        if isinstance(prepared, Refusal):
            return await self._refused(walk, prepared, prompt)
        return self._by_answer(walk, _prompt_of(walk).read(output))

    async def _refused(self, walk: Walk, refusal: Refusal, prompt: Prompt) -> Outcome:
        alone = encoder_alone(prompt)
        if refusal.encoder is None or alone is None:
            return fallback(refusal.reason, refusal.detail)
        outcome = await self._by_encoder(walk, refusal.encoder, alone)
        if outcome is None:
            return fallback(refusal.reason, refusal.detail)
        why = f"{outcome.detail} By the encoder alone: {refusal.detail}"
        return replace(outcome, detail=why)

    async def _by_encoder(self, walk: Walk, target: Target, prompt: Prompt) -> Outcome | None:
        """What the encoder alone decides, which needs no prefix; None if that is not good enough,
        or it gave no answer."""
        timeout = max(walk.remaining_s, 0)

        def late(asked: Target, error: InferenceError) -> None:
            if not self._is_telling(timeout):
                return
            asked.encoder_load.late(walk.started)
            # Of one that is apart, `TritonOpinions` finds out itself.
            if not asked.model.encoder_apart:
                asked.model.late(error, walk.started, self._limits.budget_s * _APART_SHARE)

        self._waiting += 1
        try:
            output = await self._coalescer.join(
                (*_flight_key(walk.compiled, prompt), ENCODER_STEP),
                target,
                lambda: target.ask_encoder(
                    prompt,
                    _prompt_of(walk).answer_form,
                    self._limits.budget_s * _SHARED_CALL_BUDGETS,
                ),
                timeout,
                late,
            )
        except InferenceError:
            return None
        finally:
            self._waiting -= 1
            walk.finish_step(ENCODER_STEP)
        answer = _prompt_of(walk).read(output)
        if not stands_in(answer, prompt):
            return None
        # Later, both would be asked: about this, or about everything where the encoder is apart.
        lasting = is_sure(answer, prompt) and not target.model.encoder_apart
        return self._by_answer(walk, answer, lasting)

    def _by_answer(self, walk: Walk, answer: Answer, lasting: bool = True) -> Outcome:
        """`lasting`: the same would be answered at any other time."""
        outcome = self._chosen(walk, answer, Source.MODEL)
        if outcome.route is not None and lasting and not answer.missing:
            self._keep(walk, answer)
        return outcome

    def _render(self, walk: Walk) -> Prompt:
        if walk.prompt is None:
            walk.prompt = _prompt_of(walk).render(walk.asked)
            walk.finish_step("prompt")
        return walk.prompt

    def _key(self, walk: Walk) -> CacheKey:
        ref = self._routing_model
        digest = walk.compiled.ref.digest
        return cache_key(digest, ref.prompt_format, ref.id, self._render(walk).asked)

    def _said_key(self, walk: Walk) -> CacheKey | None:
        ref = self._routing_model
        return said_key(walk.compiled.ref.digest, ref.prompt_format, ref.id, walk.asked)

    def _chosen(self, walk: Walk, answer: Answer, source: Source) -> Outcome:
        """What the answer means for this request, whose minimum confidence is its own."""
        walk.answer_text = answer.text
        choice = choose(answer, walk.compiled.policy, walk.request.min_confidence)
        if answer.missing:
            detail = f"{choice.detail} Without {answer.missing}, which did not come."
            choice = replace(choice, detail=detail)
        walk.finish_step("answer")
        return Outcome(
            Source.FALLBACK if choice.route is None else source,
            choice.reason,
            f"Decided before: {choice.detail}" if source is Source.CACHE else choice.detail,
            choice.route,
            confidence=choice.confidence,
            candidates=choice.candidates,
        )

    def _place(self, walk: Walk, prompt: Prompt) -> Target | Refusal:
        """Where the same question is in flight, or else where it is answered soonest."""
        in_flight = self._coalescer.place(_flight_key(walk.compiled, prompt))
        if in_flight is not None:
            return in_flight
        work = work_of(prompt, _prompt_of(walk).answer_form)
        return self._targets.place(walk.compiled, work, walk.remaining_s)

    async def _prepared(self, walk: Walk, target: Target, prompt: Prompt) -> Target | Refusal:
        """Where the prefix of an inline policy is computed. Raises InferenceError."""
        # The encoder has the rest of the time, if the prefix takes too long.
        share = 1.0 if encoder_alone(prompt) is None else 1 - ENCODER_SHARE
        try:
            place = await self._prepared_at(walk, target, share)
        except InferenceError as error:
            if error.failure is not InferenceFailure.ERROR:
                raise
            return self._targets.refused(str(error), walk.remaining_s)
        if place is None:
            detail = "The model server is computing the policy's prefix, which is long."
            return self._targets.warming(detail, walk.remaining_s)
        return place

    async def _prepared_at(self, walk: Walk, target: Target, share: float) -> Target | None:
        """`target`, or another where this one fails; None if not within that share of the time.

        Raises InferenceError."""

        async def at(place: Target) -> Target | None:
            within_s = max(walk.remaining_s, 0) * share
            done = await place.warmth.prepare(walk.compiled, place.model, within_s)
            return place if done else None

        try:
            return await at(target)
        except InferenceError as error:
            other = self._targets.other(target, walk.compiled) if takes_over(error) else None
            if other is None:
                raise
            return await at(other)

    async def _ask(self, walk: Walk, target: Target, prompt: Prompt) -> ModelOutput:
        timeout = walk.remaining_s
        if timeout <= 0:
            raise InferenceError(InferenceFailure.DEADLINE, "no time is left to ask the model")

        def late(asked: Target, error: InferenceError) -> None:
            if self._is_telling(timeout):
                self._after_late(walk, asked, error)

        return await self._coalescer.join(
            _flight_key(walk.compiled, prompt),
            target,
            lambda: self._infer(walk.compiled, target, prompt),
            timeout,
            late,
        )

    async def _infer(self, compiled: CompiledPolicy, target: Target, prompt: Prompt) -> ModelOutput:
        """Asks another target where this one fails."""
        assert compiled.prompt is not None, "only policies with routes are asked"
        form = compiled.prompt.answer_form
        timeout_s = self._limits.budget_s * _SHARED_CALL_BUDGETS
        work = work_of(prompt, form, target.warmth.cold_tokens(compiled))
        try:
            output = await target.infer(prompt, form, work, timeout_s)
        except InferenceError as error:
            other = self._targets.other(target, compiled) if takes_over(error) else None
            if other is None:
                raise
            target = other
            self._coalescer.moved(_flight_key(compiled, prompt), target)
            output = await target.infer(prompt, form, work, timeout_s)
        if by_language_model(output):
            target.warmth.in_time(compiled)
        return output

    def _is_telling(self, timeout: float) -> bool:
        """True if to be late after `timeout` says something about the model server."""
        whole = self._limits.budget_s - self._limits.reserve_s
        return timeout >= whole * _TELLING_SHARE

    def _after_late(self, walk: Walk, target: Target, error: InferenceError) -> None:
        """What a missed deadline says about the model server and about its memory of the policy."""
        if walk.compiled.inline:
            # Asked cold, so late is no surprise; the next request finds it warm.
            target.warmth.request(walk.compiled, target.model)
            return
        apart_s = self._limits.budget_s * _APART_SHARE
        target.model.late(error, walk.started, apart_s)
        target.load.late(walk.started)
        evicted = target.warmth.late(walk.compiled, walk.started, apart_s)
        if evicted and target.model.state is BreakerState.CLOSED:
            target.warmth.request(walk.compiled, target.model)

    def _decision(self, walk: Walk, outcome: Outcome) -> Decision:
        text = ""
        if walk.request.explain and walk.prompt is not None:
            text = self._spell((*walk.prompt.prefix_ids, *walk.prompt.suffix_ids))
        return decide(walk, outcome, walk.compiled.catalog, self._routing_model, text)


def _defect(walk: Walk) -> Outcome:
    """Of the exception that is being handled: a defect of ours must not fail the request."""
    _log.exception("routing failed", decision_id=walk.id)
    return fallback(Reason.INTERNAL_ERROR, "A defect of the sidecar; see its log.")


def _prompt_of(walk: Walk) -> CompiledPrompt:
    assert walk.compiled.prompt is not None, "checked by the step before"
    return walk.compiled.prompt


def _unchecked(walk: Walk) -> Outcome | None:
    if not walk.request.unchecked:
        return None
    return fallback(Reason.WARMING, "The policy of the request is being checked.")


def _flight_key(compiled: CompiledPolicy, prompt: Prompt) -> tuple[str, tuple[int, ...]]:
    return compiled.ref.digest, prompt.asked
