"""Written policies with routes that say more: one takes what two took, one names what it does not
take, one takes the rest.

A description is then more than one writer's sentence about one thing: a request has to be held
against its parts and its exceptions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

from router_training.augment import takes_anything
from router_training.cases import OTHER, Draw, RouteText, WrittenPolicy, WrittenRoute

FLAT_LEVELS = frozenset({"action", "domain", "opaque"})
"""Levels without parent routes: what one route takes is no other's."""
_JOINED = ("{a}; {b}", "{a}. Also: {b}", "{a}, and {b}", "{a} / {b}", "{a}. Includes {b}")
_EXCEPT = (
    "{a}. Not for: {b}", "{a}; not {b}", "{a} (does not cover: {b})", "{a}. Excludes {b}",
    "{a}, except {b}", "Not {b}. {a}",
)  # fmt: skip
_REST = (
    ("general", "Any other request"),
    ("fallback", "Everything that fits no other route"),
    ("misc", "requests outside the topics of the other routes"),
    ("default", "used when none of the other routes applies"),
    ("everything_else", "all remaining questions and tasks"),
    ("general-assistant", "General-purpose: whatever the specialised routes do not take"),
    ("Other topics", "catch-all for requests about something else"),
    ("chat", "anything else the user wants, from small talk to questions of all sorts"),
)


def merged(policy: WrittenPolicy, rng: Random) -> WrittenPolicy:
    """The policy with two of its routes as one; itself where that leaves none to choose from."""
    if policy.level not in FLAT_LEVELS or len(policy.routes) < 4:
        return policy
    one, two = rng.sample(policy.routes, 2)
    if takes_anything(as_one(one)) or takes_anything(as_one(two)):
        return policy
    name = one.name if policy.level == "opaque" else _joined_name(one.name, two.name, rng)
    if name in {route.name for route in policy.routes} - {one.name, two.name}:
        return policy
    texts = tuple(
        rng.choice(_JOINED).format(a=open_end(rng.choice(one.descriptions)), b=_lower(described))
        for described in two.descriptions
    )
    renamed = {one.name: name, two.name: name}
    kept = tuple(route for route in policy.routes if route.name not in renamed)
    return _relabelled(replace(policy, routes=(*kept, WrittenRoute(name, texts))), renamed)


def with_exception(
    routes: Sequence[RouteText], removed: Sequence[RouteText], rng: Random
) -> tuple[RouteText, ...]:
    """`routes`, one of which says that it does not take what a removed route took."""
    index, out = rng.randrange(len(routes)), rng.choice(removed)
    if takes_anything(routes[index]) or takes_anything(out):
        return tuple(routes)
    a, b = open_end(routes[index].description), open_end(_lower(out.description))
    text = rng.choice(_EXCEPT).format(a=a, b=b)
    changed = replace(routes[index], description=text)
    return (*routes[:index], changed, *routes[index + 1 :])


def with_rest(draw: Draw, rng: Random) -> Draw:
    """`draw` with a route for what no other takes. The caller has seen to it that what is labelled
    `other` asks for something."""
    name, description = rng.choice(_REST)
    if any(route.name.lower() == name.lower() or takes_anything(route) for route in draw.routes):
        return draw
    requests = tuple(
        replace(request, right=frozenset({name})) if OTHER in request.right else request
        for request in draw.requests
    )
    return Draw(draw.family, (*draw.routes, RouteText(name, description)), requests)


def _relabelled(policy: WrittenPolicy, renamed: Mapping[str, str]) -> WrittenPolicy:
    return replace(
        policy,
        singles=tuple((renamed.get(name, name), text) for name, text in policy.singles),
        dialogues=tuple(
            tuple((role, text, renamed.get(label, label)) for role, text, label in dialogue)
            for dialogue in policy.dialogues
        ),
    )


def as_one(route: WrittenRoute) -> RouteText:
    return RouteText(route.name, " ".join(route.descriptions))


def _joined_name(one: str, two: str, rng: Random) -> str:
    return rng.choice((f"{one}_and_{two}", f"{one}_{two}", f"{one}-{two}", f"{one}/{two}", one))


def open_end(text: str) -> str:
    return text.strip().rstrip(".;")


def _lower(text: str) -> str:
    """To go on with within a sentence; what begins with an abbreviation or a name stays."""
    plain = len(text) > 1 and text[1].islower() and not text[:1].isdigit()
    return text[:1].lower() + text[1:] if plain else text
