"""Routes that take each other's requests, found by asking the routing model.

A description is the best request for its own route, so under the whole policy it hardly ever goes
elsewhere, however alike another route is. What another route is for shows when the first is not
there: its requests then go to the other one, or to none. Two routes of which each takes the
requests of the other overlap. Of a route's requests its description says what they are about, and
its examples what they sound like; where there are examples, they count as much as the description.

To leave out every route in turn costs as many readings of the policy as it has routes; the whole
policy tells which few are worth it, by who comes second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import Decision
from sidecar.core.policy import Policy, Route
from sidecar.policies.findings import Finding, item, member, quoted, warning

_WORTH_ASKING = 0.1
"""Share of what a route leaves of its own description that another one must take to be suspected;
low, since a suspicion costs two readings of the policy and nothing else."""

_TAKES = 0.5
"""Probability from which a route takes a description: more likely than not."""

_OVERLAPS = 0.8
"""Geometric mean of the probabilities, either way, from which two routes overlap. It is more than
half, since a model takes the nearest route rather than none. Where it lies between overlaps and
neighbours depends on the routing model: `python -m sidecar.bench.lint` prints what it was chosen
by."""

_OVERLAPS_DESCRIBED = 0.83
"""Likewise where one of the two has no examples, so that less is known of what they are for."""

_EXAMPLES = 8
"""Of a route, the first that are asked: each is a request to the routing model."""

_NOT_WORDS = re.compile(r"[\W_]+")

Pair = tuple[int, int]
"""Indices of two routes, the earlier first."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A description, asked as if it were a request. `index`: of its route."""

    index: int
    conversation: Conversation


def probes(policy: Policy) -> Iterator[Probe]:
    """A request for each route that should go there."""
    for index, route in enumerate(policy.routes):
        yield Probe(index, _asking(route.description))


@dataclass(frozen=True, slots=True)
class Requests:
    """What is asked `without` a route.

    Args:
        described: its description as it is, and behind the name, which tells what a short
            description leaves open.
        examples: the first of them; empty if it has none.
    """

    described: tuple[Conversation, ...]
    examples: tuple[Conversation, ...] = ()


@dataclass(frozen=True, slots=True)
class Alone:
    """The decisions about the `Requests` of a route, `without` it."""

    described: Sequence[Decision]
    examples: Sequence[Decision] = ()


def requests_of(route: Route) -> Requests:
    """Requests that should go to the route."""
    named = f"{_NOT_WORDS.sub(' ', route.name)}: {route.description}"
    return Requests(
        (_asking(route.description), _asking(named)),
        tuple(map(_asking, route.examples[:_EXAMPLES])),
    )


def _asking(text: str) -> Conversation:
    return Conversation((Message(Role.USER, text),))


def without(policy: Policy, index: int) -> Policy:
    """The policy as if the route at `index` had never been there, nor what is there for the same
    requests: the actions of a domain, the domain of an action."""
    left_out = policy.routes[index]
    routes = [
        route
        for route in policy.routes
        if route.name != left_out.name and not _related(route, left_out)
    ]
    names = {route.name for route in routes}
    return replace(
        policy,
        routes=tuple(
            route if route.domain in names else replace(route, domain="") for route in routes
        ),
    )


def suspects(policy: Policy, decisions: Mapping[int, Decision]) -> tuple[Pair, ...]:
    """Pairs that may overlap.

    Args:
        decisions: under the whole policy, by the index of the route whose description was asked.
    """
    return tuple(
        (earlier, later)
        for later in range(len(policy.routes))
        for earlier in range(later)
        if not _related(policy.routes[earlier], policy.routes[later])
        and _rivals(policy, earlier, later, decisions[earlier])
        and _rivals(policy, later, earlier, decisions[later])
    )


def overlaps(
    policy: Policy, pairs: tuple[Pair, ...], alone: Mapping[int, Alone]
) -> tuple[Finding, ...]:
    """A warning for each of `pairs` in which each takes the requests of the other.

    Args:
        alone: by the index of a route.
    """
    found = []
    for earlier, later in pairs:
        one, other = policy.routes[earlier].name, policy.routes[later].name
        # The earlier one's by the later one, and the other way round.
        shares = _taken(alone[earlier], other), _taken(alone[later], one)
        exemplified = alone[earlier].examples and alone[later].examples
        if math.sqrt(shares[0] * shares[1]) < (_OVERLAPS if exemplified else _OVERLAPS_DESCRIBED):
            continue
        found.append(
            warning(
                member(item("routes", later), "description"),
                f"overlaps that of {quoted(one)} ({item('routes', earlier)}): without either, the "
                f"other takes its requests (confidence {shares[0]:.2f} and {shares[1]:.2f}); "
                "merge the two, or say in each what is the other's",
            )
        )
    return tuple(found)


def misread(policy: Policy, decisions: Mapping[int, Decision]) -> tuple[Finding, ...]:
    """Descriptions that the routing model takes for another route's while their own is there.

    Args:
        decisions: as of `suspects`.
    """
    found = []
    for index, decision in decisions.items():
        route = policy.routes[index]
        taken = policy.route(decision.route)
        if taken is None or taken.name == route.name or _related(taken, route):
            continue
        sure = decision.confidence
        if sure is not None and sure < _TAKES:
            continue
        shown = "" if sure is None else f" with confidence {sure:.2f}"
        found.append(
            warning(
                member(item("routes", index), "description"),
                f"the routing model takes it for {quoted(taken.name)}{shown}; say in each what "
                "makes it this one",
            )
        )
    return tuple(found)


def _related(one: Route, other: Route) -> bool:
    """A domain describes what its actions do."""
    return one.domain == other.name or other.domain == one.name


def _rivals(policy: Policy, asked: int, other: int, decision: Decision) -> bool:
    """True if the route at `other` takes much of what that at `asked` leaves of its description.
    Routing models that tell the chosen route alone leave everybody suspected."""
    known = {candidate.name: candidate.probability for candidate in decision.candidates}
    if len(known) < 2:
        return True
    route = policy.routes[asked]
    family = {route.name, *(each.name for each in policy.routes if _related(each, route))}
    own = sum(known.get(name, 0.0) for name in family)
    share = known.get(policy.routes[other].name, 0.0)
    return share >= _WORTH_ASKING * max(1 - own, share)


def _taken(alone: Alone, name: str) -> float:
    """Probability that the route takes such requests: the mean, to which descriptions and examples
    give a half each."""
    halves = [alone.described, alone.examples] if alone.examples else [alone.described]
    means = [sum(_probability(each, name) for each in half) / len(half) for half in halves]
    return sum(means) / len(means)


def _probability(decision: Decision, name: str) -> float:
    for candidate in decision.candidates:
        if candidate.name == name:
            return candidate.probability
    return 1.0 if decision.route == name and decision.confidence is None else 0.0
