"""The walk of one routing request: override, model, fallback."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from sidecar.core.decision import (
    Decision,
    DecisionSink,
    PolicyName,
    Reason,
    RoutingRequest,
    Source,
)
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import (
    CompiledPrompt,
    InferenceError,
    InferenceFailure,
    ModelOutput,
    Prompt,
)
from sidecar.inference.breaker import BreakerState
from sidecar.inference.guarded import GuardedModel
from sidecar.routing.choice import choose
from sidecar.routing.coalescing import Coalescer
from sidecar.routing.registry import CompiledPolicy, PolicyRegistry
from sidecar.routing.walk import Outcome, RoutingModelRef, Walk, decide, fallback
from sidecar.routing.warmth import Warmth

_log = structlog.get_logger(__name__)

_SHARED_CALL_BUDGETS = 4
"""Life of a call that several requests wait for, in budgets: each waiter leaves by its own
deadline, so this only ends a call that ever new waiters would keep alive."""


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
    """Decides requests. Never fails for a reason other than wrong input."""

    def __init__(
        self,
        registry: PolicyRegistry,
        model: GuardedModel,
        warmth: Warmth,
        sink: DecisionSink,
        limits: RouterLimits,
        routing_model: RoutingModelRef,
        spell: Callable[[Sequence[int]], str],
    ) -> None:
        self._registry = registry
        self._model = model
        self._warmth = warmth
        self._sink = sink
        self._limits = limits
        self._routing_model = routing_model
        self._spell = spell
        self._coalescer = Coalescer()
        self._waiting = 0

    @property
    def degraded(self) -> str:
        """Why the routing model is not being asked now; empty if it is."""
        return self._model.degraded

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
        started = time.perf_counter()
        compiled = await self._compiled(request)
        walk = self._walk(request, compiled, started)
        # What is recorded if the caller goes away before there is an outcome.
        outcome = fallback(Reason.CANCELLED, "The caller went away before the decision.")
        decision: Decision | None = None
        try:
            outcome = await self._outcome(walk)
            decision = self._decision(walk, outcome)
        finally:
            self._sink.record(request, decision or self._decision(walk, outcome))
        return decision

    async def _compiled(self, request: RoutingRequest) -> CompiledPolicy:
        if isinstance(request.policy, PolicyName):
            compiled = self._registry.get(request.policy)
        else:
            compiled = await self._registry.compile_inline(request.policy)
        if request.model and request.model not in self._registry.catalog:
            raise SidecarError(
                ErrorCode.MODEL_NOT_FOUND,
                f"model: {request.model!r} is not in the model catalog; "
                "leave it empty to have the policy choose",
            )
        return compiled

    def _walk(self, request: RoutingRequest, compiled: CompiledPolicy, started: float) -> Walk:
        shortened = request.budget_s is not None and request.budget_s < self._limits.budget_s
        budget = request.budget_s if shortened else self._limits.budget_s
        assert budget is not None, "shortened only where the request has a budget"
        return Walk(request, compiled, budget - self._limits.reserve_s, not shortened, started)

    async def _outcome(self, walk: Walk) -> Outcome:
        try:
            return self._override(walk) or self._unroutable(walk) or await self._by_model(walk)
        except InferenceError as error:
            return self._after_failure(walk, error)
        except Exception:
            # A defect of ours must not fail the caller's request.
            _log.exception("routing failed", decision_id=walk.id)
            return fallback(Reason.INTERNAL_ERROR, "A defect of the sidecar; see its log.")

    def _override(self, walk: Walk) -> Outcome | None:
        if not walk.request.model:
            return None
        model = self._registry.catalog[walk.request.model]
        detail = f"The caller asked for {model.id}."
        return Outcome(Source.OVERRIDE, Reason.MODEL_REQUESTED, detail, model=model)

    def _unroutable(self, walk: Walk) -> Outcome | None:
        if walk.compiled.prompt is None:
            return fallback(Reason.NOTHING_TO_ROUTE, "The policy has no routes.")
        if not walk.request.conversation.shown_to_router():
            detail = "The conversation has no user or assistant text."
            return fallback(Reason.NOTHING_TO_ROUTE, detail)
        return None

    async def _by_model(self, walk: Walk) -> Outcome:
        refused = self._refused(walk)
        if refused is not None:
            return refused
        compiled_prompt = _prompt_of(walk)
        walk.prompt = compiled_prompt.render(walk.request.conversation)
        walk.finish_step("prompt")
        try:
            output = await self._ask(walk, compiled_prompt, walk.prompt)
        finally:
            walk.finish_step("model")
        self._warmth.in_time(walk.compiled)
        answer = compiled_prompt.read(output)
        walk.answer_text = answer.text
        choice = choose(answer, walk.compiled.policy, walk.request.min_confidence)
        walk.finish_step("answer")
        return Outcome(
            Source.FALLBACK if choice.route is None else Source.MODEL,
            choice.reason,
            choice.detail,
            choice.route,
            confidence=choice.confidence,
            candidates=choice.candidates,
        )

    def _refused(self, walk: Walk) -> Outcome | None:
        """A fallback for what is known without asking the model."""
        if self._model.state is BreakerState.RECOVERING:
            return fallback(Reason.WARMING, self._model.degraded)
        if self._model.state is BreakerState.OPEN:
            return fallback(Reason.BREAKER_OPEN, f"Not asked: {self._model.degraded}")
        if self._waiting >= self._limits.max_waiting:
            detail = f"{self._waiting} decisions are waiting for the routing model already."
            return fallback(Reason.OVERLOADED, detail)
        # An inline policy is asked cold: it may never come again, so waiting for the second time
        # would mean that it is never used.
        if not walk.compiled.inline and not self._warmth.is_warm(walk.compiled):
            self._warmth.request(walk.compiled, self._model)
            detail = "The model server is computing the policy's prefix."
            return fallback(Reason.WARMING, detail)
        return None

    async def _ask(self, walk: Walk, compiled: CompiledPrompt, prompt: Prompt) -> ModelOutput:
        timeout = walk.remaining_s
        if timeout <= 0:
            raise InferenceError(InferenceFailure.DEADLINE, "no time is left to ask the model")
        self._waiting += 1
        try:
            return await self._coalescer.join(
                (walk.compiled.ref.digest, prompt.suffix_ids),
                lambda: self._model.infer(
                    prompt, compiled.answer_form, self._limits.budget_s * _SHARED_CALL_BUDGETS
                ),
                timeout,
            )
        finally:
            self._waiting -= 1

    def _after_failure(self, walk: Walk, error: InferenceError) -> Outcome:
        if error.failure is InferenceFailure.DEADLINE:
            self._after_late(walk, error)
        return fallback(error.failure.value, f"The routing model gave no answer: {error}")

    def _after_late(self, walk: Walk, error: InferenceError) -> None:
        if not walk.full_budget:
            # A caller in a hurry says nothing about the model server.
            return
        if walk.compiled.inline:
            # Asked cold, so late is no surprise; the next request finds it warm.
            self._warmth.request(walk.compiled, self._model)
            return
        if not self._model.answered_since(walk.started):
            # A server that answers others is busy, not broken.
            self._model.record_failure(error)
        if self._warmth.late(walk.compiled) and self._model.state is BreakerState.CLOSED:
            self._warmth.request(walk.compiled, self._model)

    def _decision(self, walk: Walk, outcome: Outcome) -> Decision:
        text = ""
        if walk.request.explain and walk.prompt is not None:
            text = self._spell((*walk.prompt.prefix_ids, *walk.prompt.suffix_ids))
        return decide(walk, outcome, self._registry.catalog, self._routing_model, text)


def _prompt_of(walk: Walk) -> CompiledPrompt:
    assert walk.compiled.prompt is not None, "checked by the step before"
    return walk.compiled.prompt
