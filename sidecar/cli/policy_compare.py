"""What another policy makes of conversations: `sidecar policy test --conversations`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidecar.cli.printing import echo, plain
from sidecar.core.conversation import Conversation, Role
from sidecar.core.decision import Decision, Needs, RoutingRequest, implied_capabilities
from sidecar.core.policy import Catalog, Policy
from sidecar.routing.selection import select
from sidecar.routing.walk import stable_key

_EXCERPT = 60


@dataclass(frozen=True, slots=True)
class Side:
    """A policy, and the catalog that its models are in."""

    policy: Policy
    catalog: Catalog


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy makes of a conversation. `route`: empty: the default."""

    route: str
    model: str
    confidence: float | None
    reason: str

    @property
    def place(self) -> tuple[str, str]:
        return self.route, self.model

    def as_plain(self) -> dict[str, Any]:
        return {
            "route": self.route,
            "model": self.model,
            "confidence": self.confidence,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Compared:
    """A conversation under two policies. `number`: its place in the file, from 1."""

    number: int
    conversation: Conversation
    before: Outcome
    after: Outcome

    @property
    def different(self) -> bool:
        return self.before.place != self.after.place

    @property
    def request(self) -> str:
        """What the user said last."""
        said = [each.text for each in self.conversation.messages if each.role is Role.USER]
        return said[-1] if said else ""


def outcome_of(side: Side, conversation: Conversation, decision: Decision) -> Outcome:
    """The decision's route, and the model of it that a request would get which needs nothing but
    what the conversation shows."""
    needs = Needs(implied_capabilities(conversation))
    key = stable_key(RoutingRequest(conversation))
    route = side.policy.route(decision.route)
    lists = [route.models] if route is not None else []
    for models in (*lists, side.policy.default):
        chosen = select(models, side.catalog, needs, None, key).models
        if chosen:
            model = chosen[0].id
            break
    else:
        model = side.policy.default.models[0].id
    return Outcome(decision.route, model, decision.confidence, decision.reason.value)


def compared_as_plain(before: str, after: str, rows: Sequence[Compared]) -> dict[str, Any]:
    """For programs. `before`, `after`: what the policies are called."""
    different = [row for row in rows if row.different]
    return {
        "before": before,
        "after": after,
        "conversations": len(rows),
        "different": len(different),
        "differences": [
            {
                "number": row.number,
                "request": row.request,
                "before": row.before.as_plain(),
                "after": row.after.as_plain(),
            }
            for row in different
        ],
    }


def print_compared(before: str, after: str, rows: Sequence[Compared]) -> None:
    """A line for each conversation that is routed otherwise, and one that counts."""
    different = [row for row in rows if row.different]
    if different:
        table = Table(box=None, pad_edge=False)
        for heading in ("", "BEFORE", "SURE", "AFTER", "SURE", "REQUEST"):
            table.add_column(heading, overflow="fold")
        for row in different:
            table.add_row(
                str(row.number),
                *_shown(row.before),
                *_shown(row.after),
                plain(" ".join(row.request.split())[:_EXCERPT]),
            )
        Console().print(table)
    echo(
        f"{len(different)} of {len(rows)} conversations are routed otherwise by {after} than by "
        f"{before}"
    )


def _shown(outcome: Outcome) -> tuple[Text, str]:
    sure = "" if outcome.confidence is None else f"{outcome.confidence:.2f}"
    return plain(f"{outcome.route or 'the default'}: {outcome.model}"), sure
