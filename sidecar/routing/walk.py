"""The state of one request on its walk, and the decision made of how the walk ended."""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sidecar.core.conversation import Conversation, Role
from sidecar.core.decision import (
    Candidate,
    Decision,
    Excluded,
    Explanation,
    Reason,
    RoutingRequest,
    Source,
    StepTime,
)
from sidecar.core.model import Prompt
from sidecar.core.policy import ApiDialect, Catalog, Model, Preference, Route
from sidecar.routing.latencies import Latencies
from sidecar.routing.registry import CompiledPolicy
from sidecar.routing.selection import LatencyMs, Selection, configured_latency, select

if TYPE_CHECKING:
    from sidecar.routing.pins import Pin, Pinning

_BEGINNING = 4096
"""Characters of a first message that tell conversations apart; to hash megabytes would hold the
event loop for milliseconds."""

_IDS = random.Random()  # noqa: S311 -- no secret
"""Of decisions, which have to differ and may be guessed. To ask the system for each gives the
interpreter to another thread."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a walk ended.

    Args:
        route: None: the policy's default.
        model: named by the caller.
        preferred: id of the route's model to take first, if it can take the request.
    """

    source: Source
    reason: Reason
    detail: str
    route: Route | None = None
    model: Model | None = None
    confidence: float | None = None
    candidates: tuple[Candidate, ...] = ()
    preferred: str = ""


def fallback(reason: Reason, detail: str) -> Outcome:
    """The policy's default, because of `reason`."""
    return Outcome(Source.FALLBACK, reason, detail)


@dataclass(slots=True)
class Walk:
    """One request under one policy.

    Args:
        budget_s: seconds from the start in which the decision must be made.
        started: `time.perf_counter()` at its start.
        asked: what the routing model is asked about: the conversation, or its part that decides
            for a task.
        pinning: the pins of the request; None if it has none.
        issuer: the pin of what the request goes on from, or refers to; None if it is not known, or
            there is none.
        latencies: what was measured of the models; None: what the catalog says counts.
    """

    request: RoutingRequest
    compiled: CompiledPolicy
    budget_s: float
    started: float
    latencies: Latencies | None = None
    id: str = field(default_factory=lambda: f"{_IDS.getrandbits(128):032x}")
    steps: list[StepTime] = field(default_factory=list)
    prompt: Prompt | None = None
    answer_text: str = ""
    asked: Conversation = field(init=False)
    pinning: Pinning | None = None
    issuer: Pin | None = None
    _step_started: float = field(init=False)

    def __post_init__(self) -> None:
        self._step_started = self.started
        self.asked = self.request.conversation

    @property
    def held(self) -> bool:
        """One provider alone can take the request."""
        return bool(self.request.continues or self.request.refers_to)

    @property
    def lacks_issuer(self) -> bool:
        """Which provider that is, is not known, and there are several."""
        if not self.held or self.issuer is not None:
            return False
        return len(_clusters_of(self.compiled, self.request.dialect)) > 1

    @property
    def remaining_s(self) -> float:
        return self.budget_s - (time.perf_counter() - self.started)

    def finish_step(self, name: str) -> None:
        """Everything since the last call belongs to step `name`."""
        now = time.perf_counter()
        self.steps.append(StepTime(name, (now - self._step_started) * 1000))
        self._step_started = now


@dataclass(frozen=True, slots=True)
class RoutingModelRef:
    """The routing model and prompt format that a router decides with."""

    id: str
    prompt_format: str


def decide(
    walk: Walk, outcome: Outcome, catalog: Catalog, routing_model: RoutingModelRef, prompt_text: str
) -> Decision:
    """Pick the models for the outcome and write the decision down.

    Args:
        prompt_text: the prompt as text, where the caller asked for an explanation.
    """
    outcome, chosen, excluded = _models(walk, outcome, catalog)
    walk.finish_step("selection")
    total_ms = (time.perf_counter() - walk.started) * 1000
    return Decision(
        id=walk.id,
        route=outcome.route.name if outcome.route else "",
        model=chosen[0],
        fallbacks=chosen[1:],
        source=outcome.source,
        reason=outcome.reason,
        detail=outcome.detail,
        policy=walk.compiled.ref,
        prompt_format=routing_model.prompt_format,
        routing_model=routing_model.id,
        confidence=outcome.confidence,
        candidates=outcome.candidates,
        steps=(*walk.steps, StepTime("total", total_ms)),
        explanation=_explanation(walk, prompt_text, excluded) if walk.request.explain else None,
    )


def _models(
    walk: Walk, outcome: Outcome, catalog: Catalog
) -> tuple[Outcome, tuple[Model, ...], tuple[Excluded, ...]]:
    """The outcome's models; where none of them is capable, the default's; where none of those is
    either, one of the default's, because a request must go somewhere."""
    if outcome.model is not None:
        return outcome, (outcome.model,), ()
    excluded: tuple[Excluded, ...] = ()
    route = outcome.route
    if route is not None:
        selection = _select(walk, catalog, route)
        outcome, models = _preferred_first(walk, outcome, catalog, selection.models)
        if models:
            return outcome, models, selection.excluded
        excluded = selection.excluded
        detail = f"No model of route {route.name} can take the request."
        outcome = fallback_keeping(outcome, Reason.NO_CAPABLE_MODEL, detail)
    selection = _select(walk, catalog, None)
    excluded += selection.excluded
    outcome, models = _preferred_first(walk, outcome, catalog, selection.models)
    if models:
        return outcome, models, excluded
    last_resort = _last_resort(walk, catalog)
    detail = f"No model of the policy can take the request; {last_resort.id} is the nearest."
    outcome = fallback_keeping(outcome, Reason.NO_CAPABLE_MODEL, detail)
    return outcome, (last_resort,), excluded


def _preferred_first(
    walk: Walk, outcome: Outcome, catalog: Catalog, models: tuple[Model, ...]
) -> tuple[Outcome, tuple[Model, ...]]:
    """`models`, the preferred one first if it is among them. Where its provider keeps a part of the
    conversation: those that the same cluster reaches, and one of these at the least. Where it has
    sealed a part: these first."""
    preferred = catalog.get(outcome.preferred)
    if walk.held:
        issuer = catalog.get(walk.issuer.model) if walk.issuer is not None else None
        kept = issuer or preferred or next(iter(models), None)
        if kept is None:
            return outcome, models
        models = tuple(model for model in models if model.cluster == kept.cluster) or (kept,)
    elif walk.request.sealed and (sealer := _sealer(walk, catalog)):
        readers = tuple(sorted(models, key=lambda model: model.cluster != sealer))
        if readers != models:
            detail = (
                f"Its models at {sealer} come first, which has sealed a part of the conversation."
            )
            outcome, models = replace(outcome, detail=f"{outcome.detail} {detail}"), readers
    if preferred is not None and preferred in models:
        models = (preferred, *(model for model in models if model != preferred))
    return outcome, models


def _sealer(walk: Walk, catalog: Catalog) -> str:
    """The cluster whose model has answered before; empty if that is not known."""
    pinning = walk.pinning
    pin = pinning.answered(catalog) if pinning is not None else None
    model = catalog.get(pin.model) if pin is not None else None
    return "" if model is None else model.cluster


def _clusters_of(compiled: CompiledPolicy, dialect: ApiDialect | None) -> set[str]:
    """Clusters that requests of the dialect can be sent to."""
    policy, catalog = compiled.policy, compiled.catalog
    lists = [policy.default, *(route.models for route in policy.routes)]
    models = [catalog[entry.id] for each in lists for entry in each.models]
    return {each.cluster for each in models if dialect is None or dialect in each.dialects}


def _last_resort(walk: Walk, catalog: Catalog) -> Model:
    """A default model that speaks the caller's API: one that lacks another need may still answer,
    one that speaks another API cannot."""
    models = [catalog[entry.id] for entry in walk.compiled.policy.default.models]
    dialect = walk.request.dialect
    speaking = [model for model in models if dialect is None or dialect in model.dialects]
    return (speaking or models)[0]


def fallback_keeping(outcome: Outcome, reason: Reason, detail: str) -> Outcome:
    """A fallback that still tells what the routing model thought."""
    return Outcome(
        Source.FALLBACK,
        reason,
        detail,
        confidence=outcome.confidence,
        candidates=outcome.candidates,
    )


def _select(walk: Walk, catalog: Catalog, route: Route | None) -> Selection:
    choices = route.models if route else walk.compiled.policy.default
    request = walk.request
    return select(
        choices,
        catalog,
        request.needs,
        request.dialect,
        stable_key(request) if choices.preference is Preference.WEIGHTED else "",
        _latency_ms(walk),
    )


def _latency_ms(walk: Walk) -> LatencyMs:
    latencies, whole = walk.latencies, walk.request.whole_answer
    if latencies is None:
        return configured_latency
    return lambda model: latencies.latency_ms(model, whole)


def stable_key(request: RoutingRequest) -> str:
    """The same for all turns of a caller's conversation: its key, or else how what the user said
    first begins. What stands before that is the application's, and one for all its conversations.
    """
    key = request.conversation_key
    if not key:
        messages = request.conversation.messages
        said = (each.text for each in messages if each.role is Role.USER and each.text)
        first = next(said, "".join(each.text for each in messages[:1]))
        key = hashlib.sha256(first[:_BEGINNING].encode(errors="replace")).hexdigest()
    return f"{request.caller}\0{key}" if request.caller else key


def _explanation(walk: Walk, prompt_text: str, excluded: tuple[Excluded, ...]) -> Explanation:
    prompt = walk.prompt or Prompt((), ())
    return Explanation(
        prompt=prompt_text,
        prompt_tokens=len(prompt.prefix_ids) + len(prompt.suffix_ids),
        prefix_tokens=len(prompt.prefix_ids),
        truncated=prompt.truncated,
        excluded=excluded,
        answer=walk.answer_text,
    )
