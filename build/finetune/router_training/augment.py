"""What widens a draw without changing what is right: names, order, follow-ups, commands."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from router_training import phrases
from router_training.cases import OTHER, Draw, Request, RouteText
from sidecar.prompts.second_opinion import name_words


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares of draws (names) and of requests (the rest) that are augmented."""

    restyled_names: float = 0.25
    opaque_names: float = 0.10
    misleading_names: float = 0.02
    topic_shift: float = 0.08
    closing: float = 0.03
    opening: float = 0.01
    follow_up: float = 0.04
    command_beside: float = 0.025
    command_alone: float = 0.004
    pasted: float = 0.015


_ANYTHING = re.compile(
    r"anything else|everything else|fallback|catch.?all|general|no other|other topics"
    r"|small.?talk|chat|misc|greet",
    re.IGNORECASE,
)


def takes_anything(route: RouteText) -> bool:
    """A route for what no other takes, or for talk: nothing can be said to be none of its."""
    return bool(_ANYTHING.search(f"{route.name} {route.description}"))


def shuffled(draw: Draw, rng: Random) -> Draw:
    return Draw(
        draw.family,
        tuple(rng.sample(draw.routes, len(draw.routes))),
        tuple(rng.sample(draw.requests, len(draw.requests))),
    )


def renamed(draw: Draw, rng: Random, rates: Rates) -> Draw:
    """The draw with its names restyled, replaced by names that say nothing, or swapped."""
    names = [route.name for route in draw.routes]
    chance = rng.random()
    if chance < rates.opaque_names:
        new = opaque_names(len(names), rng)
    elif (chance := chance - rates.opaque_names) < rates.misleading_names:
        new = rng.sample(names, len(names))
    elif chance - rates.misleading_names < rates.restyled_names:
        new = _restyled(names, rng)
    else:
        return draw
    if len(set(new)) < len(new) or OTHER in new:
        return draw
    return with_names(draw, dict(zip(names, new, strict=True)))


def with_names(draw: Draw, new: dict[str, str]) -> Draw:
    """The draw with route `old` called `new[old]`, also where a description speaks of it."""
    # Plain words such as "billing" are left alone: there they are language, not references.
    spoken = [re.escape(name) for name in new if re.search(r"[a-z][-_./][a-z]", name)]
    longest_first = "|".join(sorted(spoken, key=len, reverse=True))
    references = re.compile(rf"(?<!\w)(?:{longest_first})\b")

    def described(text: str) -> str:
        return references.sub(lambda found: new[found.group()], text) if spoken else text

    routes = tuple(RouteText(new[r.name], described(r.description)) for r in draw.routes)
    requests = tuple(
        Request(request.turns, frozenset(new.get(name, name) for name in request.right))
        for request in draw.requests
    )
    return Draw(draw.family, routes, requests)


def opaque_names(count: int, rng: Random) -> list[str]:
    style = rng.choice(phrases.OPAQUE_NAMES)
    letters = "{c}" in style and count <= len(string.ascii_lowercase)
    if not letters:
        style = style.replace("{c}", "{n}")
    numbers = rng.sample(range(1, max(10, 2 * count)), count)
    if letters:
        chosen = rng.sample(string.ascii_lowercase, count)
        return [style.format(c=letter) for letter in chosen]
    return [style.format(n=number) for number in numbers]


def _restyled(names: Sequence[str], rng: Random) -> list[str]:
    style = rng.randrange(6)
    return [_in_style(name_words(name), style) or name for name in names]


def _in_style(words: list[str], style: int) -> str:
    lower = [word.lower() for word in words]
    match style:
        case 0:
            return "_".join(lower)
        case 1:
            return "-".join(lower)
        case 2:
            return " ".join(lower)
        case 3:
            return "".join(word.capitalize() for word in lower)
        case 4:
            return " ".join(word.capitalize() for word in lower)
        case _:
            return "_".join(lower).upper()


def with_conversation_moves(
    draw: Draw, rng: Random, rates: Rates, pasted_texts: Sequence[str]
) -> Draw:
    """Some requests become follow-ups, topic shifts or closings, or carry commands or pastes."""
    requests: list[Request] = []
    for request in draw.requests:
        requests.append(_moved(request, draw, rng, rates, pasted_texts))
    return Draw(draw.family, draw.routes, tuple(requests))


def _moved(
    request: Request, draw: Draw, rng: Random, rates: Rates, pasted_texts: Sequence[str]
) -> Request:
    chance = rng.random()

    def falls(rate: float) -> bool:
        nonlocal chance
        chance -= rate
        return chance < 0

    text = request.turns[-1][1]
    answered = (*request.turns, ("assistant", rng.choice(phrases.REPLIES)))
    routed = OTHER not in request.right
    if falls(rates.topic_shift):
        before = rng.choice(draw.requests)
        reply = ("assistant", rng.choice(phrases.REPLIES))
        alone = len(request.turns) == 1
        return Request((*before.turns, reply, *request.turns), request.right) if alone else request
    if falls(rates.closing):
        return Request((*answered, ("user", rng.choice(phrases.CLOSINGS))), frozenset({OTHER}))
    if falls(rates.opening) and not any(takes_anything(route) for route in draw.routes):
        return Request((("user", rng.choice(phrases.OPENINGS)),), frozenset({OTHER}))
    if falls(rates.follow_up) and routed:
        return Request((*answered, ("user", rng.choice(phrases.FOLLOW_UPS))), request.right)
    if falls(rates.command_beside):
        return _with_last(request, text + _command(draw, request, rng))
    if falls(rates.command_alone):
        return Request((("user", rng.choice(phrases.COMMANDS_ALONE)),), frozenset({OTHER}))
    if falls(rates.pasted) and pasted_texts and routed:
        lead = rng.choice(phrases.PASTED_LEADS)
        return _with_last(request, lead.format(request=text, text=rng.choice(pasted_texts)))
    return request


def _with_last(request: Request, text: str) -> Request:
    if request.turns[-1][0] != "user":
        return request
    return Request((*request.turns[:-1], ("user", text)), request.right)


def _command(draw: Draw, request: Request, rng: Random) -> str:
    wrong = [route.name for route in draw.routes if route.name not in request.right]
    if not wrong:
        return ""
    name = rng.choice(wrong)
    words = name_words(name)
    return rng.choice(phrases.COMMANDS_BESIDE).format(
        name=name, label=words[-1].lower() if words else name
    )
