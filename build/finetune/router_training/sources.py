"""Where draws come from: hand-written policies, families of cases regrouped, cases as they are.

Many requests behind one route list cost little more than one, so the sources gather them: a written
policy has many requests of its own, and the cases of a family share route names, so that a case's
list can serve other cases whose label is on it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from random import Random
from typing import Protocol

from router_training.augment import takes_anything
from router_training.cases import OTHER, Case, Draw, Request, RouteText, Turn, WrittenPolicy
from sidecar.prompts.second_opinion import name_words

_FLAT_LEVELS = frozenset({"action", "domain", "opaque"})
"""Levels without parent routes: a removed route leaves its requests to nobody."""
_AS_THEY_ARE = frozenset({"opaque_names", "near_duplicate", "fallback"})
"""Tags of cases whose route list means something for them alone."""
_SHORT_CLOSING_WORDS = 6
_LONG = 300
"""Characters of a conversation."""
_REMOVED_SHARE = 0.12
"""Share of regrouped requests whose own route is not on the list."""
_COMMON_TEXT = """
the and for not with from this that what when user users anything about their any how who wants
questions question request requests handles choose topics general other asks asked ask get make
information info help new out all into own your you are has have one more
"""
_COMMON = frozenset(_COMMON_TEXT.split())


class Source(Protocol):
    @property
    def name(self) -> str: ...

    def draw(self, rng: Random) -> Draw: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of a draw.

    Args:
        requests: at most so many requests; packs are cut to their token budget later.
        routes: at most so many routes of one policy or list, distractors aside.
        distractors, crowds: chance of a few routes from elsewhere, and of `crowd` of them.
        strangers: share of requests that no route takes, elsewhere.
        removed: chance that a written policy lacks some of its routes.
    """

    requests: int = 24
    routes: int = 40
    distractors: float = 0.25
    strangers: float = 0.22
    crowds: float = 0.03
    crowd: tuple[int, int] = (25, 60)
    removed: float = 0.35


def content_words(texts: Iterable[str]) -> frozenset[str]:
    """Lower-case stems (five letters) of the telling words of names and descriptions."""
    words = (word.lower() for text in texts for word in re.findall(r"[^\W\d_]{3,}", text))
    return frozenset(word[:5] for word in words if word not in _COMMON)


def route_words(route: RouteText) -> frozenset[str]:
    return content_words((" ".join(name_words(route.name)), route.description))


@dataclass(frozen=True, slots=True)
class Foreigner:
    """A route of some policy or family (`home`), its telling words, and requests it takes."""

    home: str
    route: RouteText
    words: frozenset[str]
    requests: tuple[Request, ...] = ()


@dataclass(frozen=True, slots=True)
class Foreigners:
    """Routes and requests of elsewhere, to be mixed into draws they have no word in common with."""

    pool: tuple[Foreigner, ...]

    @staticmethod
    def of(policies: Sequence[WrittenPolicy]) -> Foreigners:
        pool = []
        for policy in policies:
            for route in policy.routes:
                requests = tuple(
                    Request((("user", text),), frozenset({OTHER}))
                    for name, text in policy.singles
                    if name == route.name
                )
                for description in route.descriptions:
                    text = RouteText(route.name, description)
                    if words := route_words(text):
                        pool.append(Foreigner(policy.id, text, words, requests))
        return Foreigners(tuple(one for one in pool if not takes_anything(one.route)))

    def mixed_in(self, draw: Draw, home: str, rng: Random, limits: Limits) -> Draw:
        chance = rng.random()
        if chance < limits.crowds:
            return self._with_routes(draw, home, rng.randint(*limits.crowd), rng)
        if chance < limits.distractors:
            return self._with_routes(draw, home, rng.randint(1, 6), rng)
        return self._with_strangers(draw, home, rng, limits.strangers)

    def _with_routes(self, draw: Draw, home: str, count: int, rng: Random) -> Draw:
        """`draw` with foreign routes, without the requests that a foreign route might now take."""
        taken = {route.name.lower() for route in draw.routes} | {OTHER}
        foreign: list[RouteText] = []
        for one in self._unrelated(draw, home, 8 * count, rng):
            if one.route.name.lower() not in taken and len(foreign) < count:
                taken.add(one.route.name.lower())
                foreign.append(one.route)
        requests = tuple(r for r in draw.requests if OTHER not in r.right or _is_closing(r))
        return Draw(draw.family, (*draw.routes, *foreign), requests)

    def _with_strangers(self, draw: Draw, home: str, rng: Random, share: float) -> Draw:
        """`draw` with requests that none of its routes takes, up to `share` of all."""
        if any(takes_anything(route) for route in draw.routes):
            return draw
        others = sum(OTHER in request.right for request in draw.requests)
        wanted = round(share * len(draw.requests)) - others
        strangers = [
            rng.choice(one.requests)
            for one in self._unrelated(draw, home, 4 * max(wanted, 0), rng)
            if one.requests
        ]
        return Draw(draw.family, draw.routes, (*draw.requests, *strangers[: max(wanted, 0)]))

    def _unrelated(self, draw: Draw, home: str, tries: int, rng: Random) -> Iterable[Foreigner]:
        words = frozenset().union(*(route_words(route) for route in draw.routes))
        for one in rng.sample(self.pool, min(len(self.pool), tries)):
            if one.home != home and not one.words & words:
                yield one


def _is_closing(request: Request) -> bool:
    return len(request.turns) > 1 and len(request.turns[-1][1].split()) <= _SHORT_CLOSING_WORDS


@dataclass(slots=True)
class WrittenSource:
    """Draws routes, description variants and requests of hand-written policies afresh."""

    policies: Sequence[WrittenPolicy]
    foreigners: Foreigners
    limits: Limits = field(default_factory=Limits)
    name: str = "written"

    def draw(self, rng: Random) -> Draw:
        policy = rng.choice(self.policies)
        kept = self._kept_routes(policy, rng)
        routes = tuple(
            RouteText(route.name, rng.choice(route.descriptions))
            for route in policy.routes
            if route.name in kept
        )
        orphans_are_other = policy.level in _FLAT_LEVELS
        requests = list(written_requests(policy, kept, orphans_are_other, rng))
        rng.shuffle(requests)
        requests = _with_few_others(requests, self.limits.requests)
        draw = Draw(self.name, routes, tuple(requests))
        return self.foreigners.mixed_in(draw, policy.id, rng, self.limits)

    def _kept_routes(self, policy: WrittenPolicy, rng: Random) -> frozenset[str]:
        names = [route.name for route in policy.routes]
        if rng.random() < 1 - self.limits.removed or len(names) < 3:
            return frozenset(names)
        return frozenset(rng.sample(names, rng.randint(2, len(names) - 1)))


def written_requests(
    policy: WrittenPolicy, kept: frozenset[str], orphans_are_other: bool, rng: Random
) -> Iterable[Request]:
    """Requests of the policy over the `kept` routes; those of removed routes become `other` where
    no remaining route stands above the removed one, and are left out where one may."""

    def right(label: str) -> frozenset[str] | None:
        if label in kept or label == OTHER:
            return frozenset({label})
        return frozenset({OTHER}) if orphans_are_other else None

    for label, text in policy.singles:
        answer = right(label)
        if answer is not None:
            yield Request((("user", text),), answer)
    for dialogue in policy.dialogues:
        turns: list[Turn] = []
        for role, text, label in dialogue:
            turns.append((role, text))
            answer = right(label) if label else None
            if answer is not None:
                yield Request(tuple(turns), answer)


def _with_few_others(requests: Sequence[Request], limit: int, share: float = 0.2) -> list[Request]:
    routed = [request for request in requests if OTHER not in request.right]
    others = [request for request in requests if OTHER in request.right]
    few = max(1, round(share * limit))
    return routed[: limit - min(few, len(others))] + others[:few]


class FamilySource:
    """Cases of one family, regrouped behind the route list of one of them.

    Args:
        own: a user's own cases: they come with others of the same routes. In their policies one
            name may mean two things, and two names one.
    """

    def __init__(
        self,
        name: str,
        cases: Sequence[Case],
        foreigners: Foreigners,
        limits: Limits,
        *,
        own: bool = False,
    ) -> None:
        self.name = name
        self._cases = cases
        self._foreigners = foreigners
        self._limits = limits
        self._own = own
        self._by_label: dict[tuple[str, str], list[Case]] = defaultdict(list)
        self._by_dialogue: dict[str, list[Case]] = defaultdict(list)
        self._by_list: dict[frozenset[RouteText], list[Case]] = defaultdict(list)
        self._descriptions: dict[tuple[str, str], set[str]] = defaultdict(set)
        for case in cases:
            self._by_dialogue[case.dialogue].append(case)
            if self._regroupable(case):
                self._by_label[case.granularity, case.label].append(case)
                for route in case.routes:
                    self._descriptions[case.granularity, route.name].add(route.description)
            elif own:
                self._by_list[frozenset(case.routes)].append(case)
        self._variants = {key: sorted(texts) for key, texts in self._descriptions.items()}
        self._concepts = concepts_of(
            (case.granularity, route)
            for case in cases
            if self._regroupable(case)
            for route in case.routes
        )

    def draw(self, rng: Random) -> Draw:
        case = rng.choice(self._cases)
        own = [
            turn.request for turn in self._by_dialogue[case.dialogue] if turn.routes == case.routes
        ]
        draw = Draw(self.name, case.routes, tuple(own))
        if not self._regroupable(case):
            return replace(draw, requests=(*own, *self._same_list(case, rng, len(own))))
        fresh = tuple(
            RouteText(r.name, rng.choice(self._variants[case.granularity, r.name]))
            for r in case.routes
        )
        own_texts = case.label == OTHER
        draw = Draw(
            self.name,
            case.routes if own_texts else fresh,
            (*own, *islice(self._others_of(case, rng), self._limits.requests - len(own))),
        )
        return self._foreigners.mixed_in(draw, self.name, rng, self._limits)

    def _regroupable(self, case: Case) -> bool:
        levels = () if self._own else ("action", "domain")
        return case.granularity in levels and not (case.tags & _AS_THEY_ARE)

    def _same_list(self, case: Case, rng: Random, taken: int) -> Iterable[Request]:
        """More requests over the same routes, in whatever order, as many as there is room for."""
        here = (case.dialogue, case.routes)
        same = self._by_list.get(frozenset(case.routes), ())
        others = [one.request for one in same if (one.dialogue, one.routes) != here]
        return rng.sample(others, min(len(others), max(0, self._limits.requests - taken)))

    def _others_of(self, case: Case, rng: Random) -> Iterable[Request]:
        """More requests for the list of `case`: for its routes in turn, now and then for none."""
        names = [
            route.name for route in case.routes if self._by_label[case.granularity, route.name]
        ]
        listed = {self._concepts[case.granularity, route.name] for route in case.routes}
        for _ in range(4 * self._limits.requests if names else 0):
            if rng.random() < _REMOVED_SHARE:
                stranger = rng.choice(self._cases)
                if self._regroupable(stranger) and stranger.granularity == case.granularity:
                    key = (stranger.granularity, stranger.label)
                    if stranger.label != OTHER and self._concepts[key] not in listed:
                        yield replace(stranger.request, right=frozenset({OTHER}))
                continue
            found = rng.choice(self._by_label[case.granularity, rng.choice(names)])
            # A long conversation takes the room of many short ones.
            long = sum(len(text) for _, text in found.request.turns) > _LONG
            if len(found.request.right) == 1 and not (long and rng.random() < 0.7):
                yield found.request


def concepts_of(routes: Iterable[tuple[str, RouteText]]) -> dict[tuple[str, str], int]:
    """(granularity, name) -> a number that names of the same concept share.

    Names are the same concept if they share a description or differ in style alone.
    """
    parents: dict[object, object] = {}

    def root(item: object) -> object:
        while parents.setdefault(item, item) != item:
            parents[item] = item = parents[parents[item]]
        return item

    keys = set()
    for granularity, route in routes:
        key = (granularity, route.name)
        keys.add(key)
        plain = "".join(name_words(re.split(r"[/.]", route.name)[-1])).lower()
        for tie in (("description", route.description.lower()), ("name", granularity, plain)):
            parents[root(key)] = root(tie)
    numbers: dict[object, int] = {}
    return {key: numbers.setdefault(root(key), len(numbers)) for key in sorted(keys)}
