"""Routing cases: one JSON object a line, `.jsonl` or `.jsonl.gz`.

A case is a conversation, the routes with their descriptions, and the right answer:
`{"id", "family", "granularity", "conversation": [{"role", "content"}], "routes": [{"name",
"description"}], "label", "also_ok", "dialogue_id", "turn_index", "tags"}`. Only `conversation`,
`routes` and `label` must be there.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from router_training.errors import InputError

OTHER = "other"


@dataclass(frozen=True, slots=True)
class RouteText:
    name: str
    description: str


Turn = tuple[str, str]
"""Role (`user` or `assistant`) and text."""


@dataclass(frozen=True, slots=True)
class Request:
    """A conversation that ends with a user turn, and the names that count as right."""

    turns: tuple[Turn, ...]
    right: frozenset[str]


@dataclass(frozen=True, slots=True)
class Case:
    id: str
    family: str
    granularity: str
    routes: tuple[RouteText, ...]
    request: Request
    label: str
    dialogue: str
    tags: frozenset[str]


@dataclass(frozen=True, slots=True)
class Draw:
    """Requests over one route list: what one pack is made of."""

    family: str
    routes: tuple[RouteText, ...]
    requests: tuple[Request, ...]


def case_files(path: Path) -> list[Path]:
    """The case files of a folder, or the file itself. Raises ValueError if there are none."""
    files = sorted(path.glob("*.jsonl*")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"no case files (.jsonl, .jsonl.gz) at {path}")
    return files


def read_cases(path: Path) -> Iterator[Case]:
    """The cases of one file. Raises ValueError naming the line that is not a case."""
    for number, value in _json_lines(path):
        try:
            yield _case(value, default_id=f"{path.name}:{number}")
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a routing case: {error!r}") from error


def check_ids(cases: Sequence[Case]) -> None:
    """Raises InputError for two with one id, where what models say is kept by it."""
    counts = Counter(case.id for case in cases)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise InputError(
            f"{len(twice)} ids are of several cases each, such as {twice[0]!r}; give every case an "
            "`id` of its own (without one it has its file's name and line), and no case twice"
        )


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, json.loads(line)


def _case(value: dict[str, Any], default_id: str) -> Case:
    routes = tuple(_route(route["name"], route["description"]) for route in value["routes"])
    label = value["label"]
    known = {route.name for route in routes} | {OTHER}
    if label not in known:
        raise KeyError(f"label {label!r} is not among the routes")
    turns = tuple((turn["role"], turn["content"]) for turn in value["conversation"])
    right = frozenset({label, *value.get("also_ok", ())}) & known
    return Case(
        id=value.get("id", default_id),
        family=value.get("family", "own"),
        granularity=value.get("granularity", "mixed"),
        routes=routes,
        request=Request(turns, right),
        label=label,
        dialogue=value.get("dialogue_id") or value.get("id", default_id),
        tags=frozenset(value.get("tags", ())),
    )


@cache
def _route(name: str, description: str) -> RouteText:
    """One object for all the cases that have the route: there are millions of them."""
    return RouteText(name, description)


@dataclass(frozen=True, slots=True)
class WrittenRoute:
    name: str
    descriptions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WrittenPolicy:
    """A hand-written policy: several descriptions a route, requests by route, dialogues."""

    id: str
    level: str
    routes: tuple[WrittenRoute, ...]
    singles: tuple[tuple[str, str], ...]
    """Route name (or `other`) and request."""
    dialogues: tuple[tuple[tuple[str, str, str], ...], ...]
    """Turns: role, text, label (empty on assistant turns)."""


def read_written(path: Path) -> list[WrittenPolicy]:
    return [_written(value) for _, value in _json_lines(path)]


def _written(value: dict[str, Any]) -> WrittenPolicy:
    return WrittenPolicy(
        id=value["id"],
        level=value["level"],
        routes=tuple(
            WrittenRoute(route["name"], tuple(route["descriptions"])) for route in value["routes"]
        ),
        singles=tuple((name, text) for name, texts in value["singles"].items() for text in texts),
        dialogues=tuple(
            tuple((turn["role"], turn["content"], turn.get("label", "")) for turn in dialogue)
            for dialogue in value["dialogues"]
        ),
    )
