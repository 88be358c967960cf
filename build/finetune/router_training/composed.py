"""Lists made of several written policies: whole policies as routes, some of them beside a few of
their own routes, which come first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from router_training.augment import takes_anything
from router_training.cases import Draw, Request, RouteText, WrittenPolicy
from router_training.rewritten import as_one, open_end
from router_training.sources import Foreigners, Limits, content_words
from sidecar.prompts.second_opinion import name_words

_NUMBERED = re.compile(r"^[a-z]?\d+-(\d+-)?")
"""What stands before a policy's name in its id."""
_NO_TOPICS = re.compile(
    r"llm|model|router|prompt|task|text|question|tone|language|quick|deep|kind|size|modes?\b",
    re.IGNORECASE,
)
"""In the names of policies that are cut by something else than a topic: no topic of a list."""
_SHARED_STEMS = 3
"""Two policies with more telling words in common are not told apart by their topics."""

_WHOLE = (
    "{all}", "{topic}: {all}", "Anything about {topic}: {all}",
    "everything to do with {topic}, e.g. {all}", "{all}, and the like",
)  # fmt: skip
_WHOLE_BESIDE_PARTS = (
    "Anything else about {topic}: {all}", "{topic}, where no more specific route fits: {all}",
    "{topic} in general; its special routes come first. {all}", "the rest of {topic}: {all}",
    "General {topic} matters: {all}",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Topic:
    policy: WrittenPolicy
    words: frozenset[str]
    requests: Mapping[str, Sequence[str]]


class ComposedSource:
    """Lists whose routes are whole policies, some of them beside a few of their own routes."""

    name = "composed"

    def __init__(
        self,
        policies: Sequence[WrittenPolicy],
        foreigners: Foreigners,
        limits: Limits | None = None,
    ) -> None:
        self._foreigners = foreigners
        self._limits = limits or Limits()
        self._topics = [_topic(policy) for policy in policies if _is_topic(policy)]

    def __bool__(self) -> bool:
        """Whether there are topics enough for a list."""
        return len(self._topics) > 1

    def draw(self, rng: Random) -> Draw:
        topics = self._unlike(rng.choice((2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8, 10, 14)), rng)
        split = rng.choice((0, 1, 1, 1, 2, 3))
        routes: list[RouteText] = []
        requests: list[Request] = []
        for index, topic in enumerate(topics):
            own, asked = _routes_of(topic, rng, parts=index < split)
            if {route.name.lower() for route in own} & {route.name.lower() for route in routes}:
                continue
            routes += own
            requests += asked
        rng.shuffle(requests)
        draw = Draw(self.name, tuple(routes), tuple(requests[: self._limits.requests]))
        return self._foreigners.mixed_in(draw, "", rng, replace(self._limits, crowds=0.0))

    def _unlike(self, count: int, rng: Random) -> list[_Topic]:
        chosen: list[_Topic] = []
        for topic in rng.sample(self._topics, min(len(self._topics), 6 * count)):
            if len(chosen) < count and all(
                len(topic.words & other.words) <= _SHARED_STEMS for other in chosen
            ):
                chosen.append(topic)
        return chosen


def _is_topic(policy: WrittenPolicy) -> bool:
    if policy.level == "opaque" or len(policy.routes) > 9 or _NO_TOPICS.search(_name(policy)):
        return False
    return not any(takes_anything(as_one(route)) for route in policy.routes)


def _name(policy: WrittenPolicy) -> str:
    return _NUMBERED.sub("", policy.id)


def _topic(policy: WrittenPolicy) -> _Topic:
    requests: dict[str, list[str]] = {}
    for name, text in policy.singles:
        requests.setdefault(name, []).append(text)
    texts = [text for route in policy.routes for text in (route.name, *route.descriptions)]
    return _Topic(policy, content_words([" ".join(name_words(t)) for t in texts]), requests)


def _routes_of(topic: _Topic, rng: Random, *, parts: bool) -> tuple[list[RouteText], list[Request]]:
    """The policy as one route, with `parts` beside some of its own; and requests of them."""
    policy = topic.policy
    words = " ".join(name_words(_name(policy)))
    most = len(policy.routes) - 2 if parts else 0
    own = rng.sample(policy.routes, rng.randint(1, min(3, most))) if most > 0 else []
    names = {route.name for route in own}
    inside = [route for route in policy.routes if route.name not in names]
    told = rng.sample(inside, min(len(inside), rng.randint(2, 5)))
    by_name = rng.random() < 0.5
    listed = (", " if by_name else "; ").join(
        " ".join(name_words(route.name)) if by_name else open_end(rng.choice(route.descriptions))
        for route in told
    )
    whole = rng.choice(_WHOLE_BESIDE_PARTS if own else _WHOLE).format(topic=words, all=listed)
    parent = words.replace(" ", rng.choice(("_", "-", " ")))
    between = rng.choice((".", "/", "_", ""))
    routes, requests = [RouteText(parent, whole)], []
    # Only what the description tells of is sure to be the parent's.
    for route in told:
        requests += _asked(topic, route.name, parent, rng, 2)
    for route in own:
        name = f"{parent}{between}{route.name}" if between else route.name
        routes.append(RouteText(name, rng.choice(route.descriptions)))
        requests += _asked(topic, route.name, name, rng, 4)
    return routes, requests


def _asked(topic: _Topic, name: str, label: str, rng: Random, most: int) -> list[Request]:
    texts = topic.requests.get(name, ())
    chosen = rng.sample(texts, min(len(texts), most))
    return [Request((("user", text),), frozenset({label})) for text in chosen]
