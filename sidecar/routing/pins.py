"""Routes that conversations and tasks keep.

A task is what the user asked for last: all requests of a tool loop are one. A conversation is all
tasks of one client's id. Switching the model within either costs the provider's prompt cache and
mixes the styles of two models; what may not switch is the policy's choice (`pin`).

Pins are a memory that can be lost: a decision that finds none is made anew.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import Candidate, Decision, Reason, RoutingRequest, Source
from sidecar.core.policy import ApiDialect, Catalog, PinMode, Policy
from sidecar.routing.registry import CompiledPolicy
from sidecar.routing.walk import Outcome

_NO_ANSWER = frozenset(
    {
        Reason.DEADLINE_EXCEEDED,
        Reason.MODEL_UNAVAILABLE,
        Reason.MODEL_ERROR,
        Reason.BREAKER_OPEN,
        Reason.OVERLOADED,
        Reason.WARMING,
        Reason.UNPARSABLE_ANSWER,
        Reason.UNKNOWN_ROUTE,
        Reason.NOTHING_TO_ROUTE,
        Reason.INTERNAL_ERROR,
    }
)
"""Fallbacks that say nothing about the request."""

_SEALING = (ApiDialect.OPENAI_RESPONSES, ApiDialect.ANTHROPIC_MESSAGES)
"""APIs whose answers can have parts that only their provider can read."""

_KEYED = (Role.USER, Role.ASSISTANT)

Key = bytes


@dataclass(frozen=True, slots=True)
class Pin:
    """`model`: id of the model that was chosen among those of `route`."""

    route: str
    model: str


@dataclass(frozen=True, slots=True)
class Subject:
    """What a request is a part of, as keys of pins; they hold hashes and no content.

    Args:
        task: everything up to the user's last message.
        before: everything up to the user's message before that, which is the task before; None if
            there is none.
        conversation: the client's id of the conversation; None if it gave none.
        asked: the conversation up to the user's last message, which decides for the task. What the
            model says in a tool loop must not change the route in its middle.
    """

    mode: PinMode
    task: Key
    before: Key | None
    conversation: Key | None
    asked: Conversation

    @property
    def earlier(self) -> Key | None:
        """Where the route is that the conversation had before this task."""
        return self.conversation or self.before

    @property
    def keys(self) -> tuple[Key, ...]:
        """Where a decision about the request is kept."""
        return (self.task,) if self.conversation is None else (self.task, self.conversation)


def pin_mode(request: RoutingRequest, policy: Policy, lacks_issuer: bool = False) -> PinMode:
    """The policy's word; where it has none, a task keeps its route if the caller shows that it is
    part of a conversation. What a provider keeps a part of cannot go elsewhere, and where it is not
    known who does (`lacks_issuer`) the conversation's route is the best guess."""
    if (request.continues or lacks_issuer) and policy.pin is not PinMode.OFF:
        return PinMode.CONVERSATION
    if policy.pin is not None:
        return policy.pin
    return PinMode.TASK if request.conversation_key or request.keep_task else PinMode.OFF


def subject(request: RoutingRequest, compiled: CompiledPolicy, mode: PinMode) -> Subject:
    """Takes about a millisecond per megabyte of text.

    Only what the router is shown, and images, are part of a key: agents rewrite their instructions
    and clear old tool results within one task.
    """
    messages = request.conversation.messages
    turns = [index for index, message in enumerate(messages) if _is_turn(message)]
    end = turns[-1] + 1 if turns else len(messages)
    task_before = turns[-2] + 1 if len(turns) > 1 else 0
    scope = _scope(request, compiled)
    state = hashlib.sha256(scope)
    _update(state, messages[:task_before])
    before = state.copy().digest() if task_before else None
    _update(state, messages[task_before:end])
    keyed = bool(request.conversation_key)
    conversation = hashlib.sha256(scope + b"conversation").digest() if keyed else None
    return Subject(mode, state.digest(), before, conversation, Conversation(messages[:end]))


def issued_key(caller: str, response_id: str) -> Key:
    """Of what a provider keeps of a conversation. Of no policy, since whoever asks by another one
    finds it at the same provider."""
    parts = (caller, response_id)
    return hashlib.sha256(b"issued" + b"".join(_framed(_bytes(part)) for part in parts)).digest()


def _default_key(key: Key) -> Key:
    """Where the default model is that answered what `key` is of: no route, which it does not keep,
    but the provider that may have sealed a part of its answer."""
    return hashlib.sha256(b"default" + key).digest()


def size_of(conversation: Conversation) -> int:
    """Characters that are part of keys."""
    return sum([len(each.text) for each in conversation.messages if each.role in _KEYED])


def _is_turn(message: Message) -> bool:
    return message.role is Role.USER and bool(message.text or message.images)


def _scope(request: RoutingRequest, compiled: CompiledPolicy) -> bytes:
    """Pins outlive revisions of a policy, so its name counts and not its digest; an inline policy
    has no other name than its content."""
    policy = compiled.ref.name or compiled.ref.digest
    # The same words that go on from something else are not the same conversation.
    conversation = request.conversation_key or request.continues
    parts = (policy, request.caller, conversation)
    return b"".join([_framed(_bytes(part)) for part in parts])


def _update(state: hashlib._Hash, messages: Sequence[Message]) -> None:
    for message in messages:
        if message.role in _KEYED and (message.text or message.images):
            text = message.text.encode(errors="replace")
            state.update(f"{message.role.value}:{message.images}:{len(text)}:".encode())
            state.update(text)


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")


def _framed(data: bytes) -> bytes:
    """With its length ahead, so that no two sequences of parts make the same bytes."""
    return len(data).to_bytes(8, "big") + data


@dataclass(slots=True)
class _Entry:
    pin: Pin
    expires: float


class Pins:
    """A bounded memory of pins, the longest unused first to go.

    Args:
        max_entries: about 400 bytes each.
        ttl_s: seconds after its last use that a pin is kept.
        clock: seconds, monotonic.
    """

    def __init__(
        self, max_entries: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_entries = max_entries
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key | None, policy: Policy) -> Pin | None:
        """The pin of `key`, used now. One that is too old is dropped, and one whose route or model
        the policy does not have any more."""
        if key is None:
            return None
        return self._used(key, lambda pin: _stands(pin, policy))

    def issuer(self, key: Key, catalog: Catalog) -> Pin | None:
        """Likewise, of an `issued_key`: its model counts alone, whatever a policy has of it."""
        return self._used(key, lambda pin: pin.model in catalog)

    def _used(self, key: Key, stands: Callable[[Pin], bool]) -> Pin | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        now = self._clock()
        if entry.expires < now or not stands(entry.pin):
            del self._entries[key]
            return None
        entry.expires = now + self._ttl_s
        self._entries.move_to_end(key)
        return entry.pin

    def put(self, key: Key, pin: Pin) -> None:
        self._entries[key] = _Entry(pin, self._clock() + self._ttl_s)
        self._entries.move_to_end(key)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)


def _stands(pin: Pin, policy: Policy) -> bool:
    route = policy.route(pin.route)
    return route is not None and any([entry.id == pin.model for entry in route.models.models])


@dataclass(slots=True)
class Pinning:
    """The pins of one request on its walk.

    Args:
        issuer: the pin of what the request goes on from; None if it is not known, or it does not.
        earlier: the pin of the conversation before this task; None if it has none.
        used: the pin that decided; None if none did.
    """

    pins: Pins
    policy: Policy
    subject: Subject
    issuer: Pin | None = None
    earlier: Pin | None = field(init=False, default=None)
    used: Pin | None = field(init=False, default=None)

    def kept(self) -> Outcome | None:
        """The end of the walk, if this task or conversation has a route already."""
        if self.issuer is not None and _stands(self.issuer, self.policy):
            detail = f"Route {self.issuer.route} has answered what this request goes on from."
            return self._by(self.issuer, Reason.PINNED_CONVERSATION, detail)
        task = self.pins.get(self.subject.task, self.policy)
        self.earlier = self.pins.get(self.subject.earlier, self.policy)
        if self.subject.mode is PinMode.CONVERSATION and (pin := self.earlier or task):
            detail = f"This conversation keeps route {pin.route}."
            return self._by(pin, Reason.PINNED_CONVERSATION, detail)
        if task is not None:
            detail = f"This task keeps route {task.route}: the user has said nothing new."
            return self._by(task, Reason.PINNED_TASK, detail)
        return None

    def settled(self, outcome: Outcome) -> Outcome:
        """`outcome`, made for a new task, or the route of the conversation before it where that
        does not show well enough that another is meant."""
        earlier = self.earlier
        if earlier is None:
            return outcome
        if outcome.route is not None and outcome.route.name == earlier.route:
            return replace(outcome, preferred=earlier.model)
        if outcome.reason in _NO_ANSWER:
            detail = f"The conversation keeps route {earlier.route}. {outcome.detail}"
            return self._by(earlier, Reason.KEPT_WITHOUT_ANSWER, detail)
        needed = self.policy.switch_confidence
        sure = outcome.confidence is None or outcome.confidence >= needed
        if sure and outcome.reason is not Reason.LOW_CONFIDENCE:
            return outcome
        detail = (
            f"The conversation keeps route {earlier.route}: another needs {needed:.0%} to take "
            f"over. {outcome.detail}"
        )
        return self._by(earlier, Reason.KEPT_UNSURE, detail, outcome.candidates)

    def remember(self, decision: Decision, dialect: ApiDialect | None = None) -> None:
        """Keeps the route that the model chose, or that a pin did. Fallbacks are not kept, nor is
        what the caller chose. `dialect`: of the request."""
        if decision.source is Source.PIN:
            # Its model stays the pin's own, also where this request needed another.
            pin = self.used
        elif decision.source in (Source.MODEL, Source.CACHE):
            pin = Pin(decision.route, decision.model.id)
        else:
            pin = None
        if pin is not None:
            for key in self.subject.keys:
                self.pins.put(key, pin)
        elif dialect in _SEALING:
            for key in self.subject.keys:
                self.pins.put(_default_key(key), Pin("", decision.model.id))

    def answered(self, catalog: Catalog) -> Pin | None:
        """Who has answered before, as far as it is known; the route counts only of one that is
        kept."""
        keys = [key for key in (self.subject.task, self.subject.earlier) if key is not None]
        defaults = (self.pins.issuer(_default_key(key), catalog) for key in keys)
        return self.used or self.earlier or next((pin for pin in defaults if pin), None)

    def _by(
        self, pin: Pin, reason: Reason, detail: str, candidates: tuple[Candidate, ...] = ()
    ) -> Outcome:
        self.used = pin
        route = self.policy.route(pin.route)
        assert route is not None, "pins that do not stand were dropped"
        confidence = next((c.probability for c in candidates if c.name == route.name), None)
        return Outcome(
            Source.PIN, reason, detail, route, None, confidence, candidates, preferred=pin.model
        )
