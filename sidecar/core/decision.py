"""What leaves the router: the decision, with its whole explanation."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from sidecar.core.conversation import Conversation, Role
from sidecar.core.policy import ApiDialect, Capability, Model, Policy

ENCODER_ALONE, LANGUAGE_MODEL_ALONE = "(encoder alone)", "(language model alone)"
"""Ends of an explained answer that only one of a routing model's two opinions decided."""

MODEL_STEP, ENCODER_STEP = "model", "encoder"
"""Steps in which the model server is waited for: `encoder` where its encoder was enough. They take
such different times that a step of both would tell nothing."""


class Source(StrEnum):
    """The step of the walk that ended it."""

    OVERRIDE = "override"
    PIN = "pin"
    CACHE = "cache"
    MODEL = "model"
    FALLBACK = "fallback"


class Reason(StrEnum):
    """Why the step decided as it did; a metric label."""

    MATCHED = "matched"
    """The routing model named the route."""
    DOMAIN = "domain"
    """An action was below its minimum confidence; its domain took the request."""
    MODEL_REQUESTED = "model_requested"
    """The caller asked for a concrete model."""

    PINNED_CONVERSATION = "pinned_conversation"
    """The conversation has a route already, and keeps it."""
    PINNED_TASK = "pinned_task"
    """The user has said nothing new since the route was chosen."""
    KEPT_UNSURE = "kept_unsure"
    """A new task, but it is not sure enough that another route than the conversation's is meant."""
    KEPT_WITHOUT_ANSWER = "kept_without_answer"
    """A new task, and no answer of the routing model: the conversation's route is the best guess.
    """

    UNKNOWN_ISSUER = "unknown_issuer"
    """A provider keeps a part of the request, and which one is not known."""

    NO_MATCH = "no_match"
    """The routing model answered `other`."""
    LOW_CONFIDENCE = "low_confidence"
    UNPARSABLE_ANSWER = "unparsable_answer"
    UNKNOWN_ROUTE = "unknown_route"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    MODEL_UNAVAILABLE = "model_unavailable"
    """The model server cannot be reached, is not ready or refused the call."""
    MODEL_ERROR = "model_error"
    """The model server answered with an error or with something that is not an answer."""
    BREAKER_OPEN = "breaker_open"
    OVERLOADED = "overloaded"
    WARMING = "warming"
    """The policy's prefix is being computed by the model server."""
    NO_CAPABLE_MODEL = "no_capable_model"
    NOTHING_TO_ROUTE = "nothing_to_route"
    """No user text that the router could read, or a policy without routes."""
    CANCELLED = "cancelled"
    """The caller went away first. Only ever recorded, never answered."""
    INTERNAL_ERROR = "internal_error"


class Candidate(NamedTuple):
    """A route (or `other`) and its probability in 0..1; for a domain route its own plus its
    actions'. A tuple, because each decision makes one for each of its routes, and a frozen
    dataclass takes twice as long to make."""

    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class StepTime:
    """Time spent in one step of the walk, in milliseconds."""

    step: str
    ms: float


@dataclass(frozen=True, slots=True)
class Excluded:
    """A model of the route that could not take this request, and why (one sentence)."""

    model: str
    why: str


@dataclass(frozen=True, slots=True)
class PolicyRef:
    """The policy that decided. `name` is the resource name; empty for an inline policy."""

    name: str
    revision: int
    digest: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Given when the caller asked for it. `prompt` contains message content; `prefix_tokens` of
    `prompt_tokens` are the part that all requests of the policy share."""

    prompt: str
    prompt_tokens: int
    prefix_tokens: int
    truncated: bool
    excluded: tuple[Excluded, ...] = ()
    answer: str = ""

    @property
    def alone(self) -> bool:
        """Whether one of two opinions decided, at a scale of its own."""
        return self.answer.endswith((ENCODER_ALONE, LANGUAGE_MODEL_ALONE))


@dataclass(frozen=True, slots=True)
class Decision:
    """The model for one request, and why.

    Args:
        route: name of the route; empty when the policy's default models were taken.
        model: the first choice; `fallbacks` follow, best first.
        detail: one sentence for a person; no message content.
        confidence: calibrated probability of the route in 0..1; None where no model was asked or
            its answer form gives none.
        candidates: every route the answer form gives a probability for, most probable first.
    """

    id: str
    route: str
    model: Model
    fallbacks: tuple[Model, ...]
    source: Source
    reason: Reason
    detail: str
    policy: PolicyRef
    prompt_format: str
    routing_model: str
    confidence: float | None = None
    candidates: tuple[Candidate, ...] = ()
    steps: tuple[StepTime, ...] = ()
    explanation: Explanation | None = None

    @property
    def total_ms(self) -> float:
        """Time of the whole decision in milliseconds; 0 if its steps do not say."""
        last = self.steps[-1] if self.steps else None
        return last.ms if last is not None and last.step == "total" else 0.0

    @property
    def asked(self) -> str:
        """The last step in which the model server was waited for; empty if it was not."""
        steps = (each.step for each in reversed(self.steps))
        return next((step for step in steps if step in (MODEL_STEP, ENCODER_STEP)), "")


@dataclass(frozen=True, slots=True)
class PolicyName:
    """Names a policy of the registry. Empty `name`: the configured default policy."""

    name: str = ""
    namespace: str = "default"

    @property
    def resource_name(self) -> str:
        return f"namespaces/{self.namespace}/policies/{self.name}"


@dataclass(frozen=True, slots=True)
class Needs:
    """What the answering model must be able to do. `context_tokens`: input plus expected output."""

    capabilities: frozenset[Capability] = frozenset()
    context_tokens: int = 0


def implied_capabilities(conversation: Conversation) -> frozenset[Capability]:
    """What a model needs to read the conversation at all.

    Tool calls in the history count: providers refuse such messages for models without tools, also
    where no new tool is offered.
    """
    images = tools = False
    for message in conversation.messages:
        images = images or message.images > 0
        tools = tools or bool(message.tool_calls) or message.role is Role.TOOL
    return _IMPLIED[images, tools]


_IMPLIED = {
    (False, False): frozenset[Capability](),
    (True, False): frozenset({Capability.IMAGES}),
    (False, True): frozenset({Capability.TOOLS}),
    (True, True): frozenset({Capability.IMAGES, Capability.TOOLS}),
}


@dataclass(frozen=True, slots=True)
class RoutingRequest:
    """One request, validated by the edge that made it.

    Args:
        policy: a name in the registry, or a whole policy (inline).
        unchecked: of the inline policy only the default models were checked in time and are here;
            nothing else of it may decide.
        model: a concrete model id; ends the walk with source `override`.
        conversation_key: the caller's own id of the conversation, for pins; empty if none.
        caller: who asks, as far as the edge knows; equal keys of different callers are different
            conversations.
        continues: id of what the provider itself keeps of the conversation; another provider does
            not have it. Empty if there is none.
        refers_to: id of something else that one provider alone has, such as a file or a stored
            prompt; empty if there is none.
        sealed: the conversation holds what the provider of an earlier answer has sealed, such as
            its reasoning, and which others may refuse.
        keep_task: keep the route in a tool loop where the policy does not say otherwise, also
            without a key.
        min_confidence: raises the minimum confidence of every route; in 0..1.
        whole_answer: the caller takes the model's answer as a whole instead of as a stream, so that
            it waits for the last token and not for the first.
        budget_s: seconds the caller waits from `arrived` on; None: the configured budget alone.
        arrived: `time.perf_counter()` when it came, from which on its time runs; None: it has not
            been waited for yet.
        trial: a person tries what would be decided: it takes no pin and leaves none.
    """

    conversation: Conversation
    policy: PolicyName | Policy = PolicyName()
    unchecked: bool = False
    model: str = ""
    conversation_key: str = ""
    caller: str = ""
    continues: str = ""
    refers_to: str = ""
    sealed: bool = False
    keep_task: bool = False
    needs: Needs = field(default_factory=Needs)
    dialect: ApiDialect | None = None
    min_confidence: float = 0.0
    whole_answer: bool = False
    budget_s: float | None = None
    arrived: float | None = field(default=None, compare=False)
    explain: bool = False
    trial: bool = False


class DecisionSink(Protocol):
    """Takes every decision once, also when its caller has gone. Must neither block nor raise."""

    def record(self, request: RoutingRequest, decision: Decision) -> None: ...
