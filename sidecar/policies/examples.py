"""The examples of routes as tests of their policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import Decision, Reason, Source
from sidecar.core.policy import Policy
from sidecar.policies.findings import item, member, quoted


@dataclass(frozen=True, slots=True)
class Example:
    """A request that should go to `route`. `path`: where the policy has it, as YAML spells it."""

    route: str
    path: str
    text: str

    @property
    def conversation(self) -> Conversation:
        return Conversation((Message(Role.USER, self.text),))


@dataclass(frozen=True, slots=True)
class ExampleResult:
    """What became of an example.

    Args:
        decided: False where no routing model decided, so that nothing is known.
        route: empty: the default.
        confidence: None where the routing model gives none.
    """

    example: Example
    decided: bool
    route: str
    confidence: float | None
    reason: str

    @property
    def passed(self) -> bool:
        return self.decided and self.route == self.example.route

    @property
    def said(self) -> str:
        """One line for a person."""
        if not self.decided:
            return f"could not be routed: {self.reason}"
        taken = quoted(self.route) if self.route else "the default"
        sure = "" if self.confidence is None else f" with confidence {self.confidence:.2f}"
        return f"went to {taken}{sure} ({self.reason}), not to {quoted(self.example.route)}"


_HEARD = frozenset(
    {
        Reason.NO_MATCH,
        Reason.LOW_CONFIDENCE,
        Reason.UNPARSABLE_ANSWER,
        Reason.UNKNOWN_ROUTE,
        Reason.NO_CAPABLE_MODEL,
    }
)
"""Reasons of fallbacks in which the routing model was heard."""


def examples_of(policy: Policy) -> Iterator[Example]:
    """All examples, in the order of the policy."""
    for index, route in enumerate(policy.routes):
        examples = member(item("routes", index), "examples")
        for number, text in enumerate(route.examples):
            yield Example(route.name, item(examples, number), text)


def heard(decision: Decision) -> bool:
    """True if the routing model has had its say in it."""
    return decision.source in (Source.MODEL, Source.CACHE) or decision.reason in _HEARD


def result_of(example: Example, decision: Decision) -> ExampleResult:
    """What the decision for the example says about it."""
    return ExampleResult(
        example, heard(decision), decision.route, decision.confidence, decision.reason.value
    )
