"""Routing cases: one JSON object a line, `.jsonl` or `.jsonl.gz`.

A case is a conversation, the routes with their descriptions, and the right answer:
`{"id", "family", "granularity", "conversation": [{"role", "content"}], "routes": [{"name",
"description"}], "label", "also_ok", "dialogue_id", "turn_index", "tags"}`. Only `conversation`,
`routes` and `label` must be there; other keys are errors.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from router_training.errors import InputError
from sidecar.core.conversation import Role

OTHER = "other"

_SUFFIXES = (".jsonl", ".jsonl.gz")
_REQUIRED = ("conversation", "routes", "label")
_TEXTS = ("id", "label", "family", "granularity", "dataset", "split")
_KEYS = (*_REQUIRED, *_TEXTS, "also_ok", "dialogue_id", "turn_index", "tags")
_TURN = ("role", "content")
_ROUTE = ("name", "description")
_ROLES = tuple(Role)
_ASKED = (Role.USER, Role.ASSISTANT)


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


def case_files(paths: Iterable[Path]) -> list[Path]:
    """The files of `paths`, each once: those of a folder and its folders that `sidecar eval` reads.

    Raises InputError for a path that has none, and for a link to none.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        inside = list(path.rglob("*")) if path.is_dir() else [path]
        for link in sorted(p for p in inside if p.name.endswith(_SUFFIXES) and p.is_symlink()):
            if not link.exists():
                raise InputError(f"{link}: a link to no file; mend or remove it")
        found = sorted(p for p in inside if p.name.endswith(_SUFFIXES) and p.is_file())
        if not found:
            raise InputError(f"{path}: there is no file that ends in {' or '.join(_SUFFIXES)}")
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def read_all(paths: Iterable[Path]) -> list[Case]:
    """The cases of files and folders. Raises InputError."""
    return [case for file in case_files(paths) for case in read_cases(file)]


def read_cases(path: Path) -> Iterator[Case]:
    """The cases of one file, but those without a text of user or assistant: of them no model is
    asked. Raises InputError naming the line that is not a case."""
    for number, value in _json_lines(path):
        try:
            case = _case(value, default_id=f"{path.name}:{number}")
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        if any(role in _ASKED and text for role, text in case.request.turns):
            yield case


def check_ids(cases: Sequence[Case]) -> None:
    """Raises InputError for two with one id, where what models say is kept by it."""
    counts = Counter(case.id for case in cases)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        more = f" (and so with {len(twice) - 1} more ids)" if twice[1:] else ""
        raise InputError(
            f"several cases have the id {twice[0]!r}{more}; give every case an `id` of its own "
            "(without one it has its file's name and line), and no case twice"
        )


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if text.strip():
                    yield number, json.loads(text.decode("utf-8"))
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg} at column {error.colno}"
        raise InputError(f"{path}, line {number}: {what}") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, too
        raise InputError(f"{path}, line {number}: not JSON in UTF-8: {error}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read after line {number}: {error}") from None


def _case(value: Any, default_id: str) -> Case:
    """Raises InputError for what `sidecar eval` refuses, too, but for `turn_index` and the
    form of names and descriptions."""
    _check_keys(value, "", _REQUIRED, _KEYS)
    for key in _TEXTS:
        if not isinstance(value.get(key, ""), str):
            raise InputError(f"{key}: must be a text")
    routes = _routes(value["routes"])
    known = {route.name for route in routes} | {OTHER}
    also_ok = _texts(value, "also_ok")
    for key, name in (("label", value["label"]), *(("also_ok", name) for name in also_ok)):
        if name not in known:
            raise InputError(f"{key}: {name!r} is not among the routes")
    dialogue = value.get("dialogue_id")
    if not isinstance(dialogue, str | None):
        raise InputError("dialogue_id: must be a text or null")
    return Case(
        id=value.get("id", default_id),
        family=value.get("family") or "own",
        granularity=value.get("granularity", "mixed"),
        routes=routes,
        request=Request(_turns(value["conversation"]), frozenset({value["label"], *also_ok})),
        label=value["label"],
        dialogue=dialogue or value.get("id", default_id),
        tags=frozenset(_texts(value, "tags")),
    )


def _check_keys(value: Any, where: str, required: Iterable[str], known: Collection[str]) -> None:
    """Args:
    where: ends in a dot, unless it is empty."""
    if not isinstance(value, dict):
        raise InputError(f"{where[:-1] or 'it'}: must be an object")
    for key in required:
        if key not in value:
            raise InputError(f"{where}{key}: missing")
    for key in value:
        if key not in known:
            raise InputError(f"{where}{key}: unknown key; there are {', '.join(known)}")


def _turns(value: Any) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        raise InputError("conversation: must be a list of at least one message")
    for index, turn in enumerate(value):
        _check_keys(turn, f"conversation[{index}].", _TURN, _TURN)
        if turn["role"] not in _ROLES:
            raise InputError(f"conversation[{index}].role: must be one of {', '.join(_ROLES)}")
        if not isinstance(turn["content"], str):
            raise InputError(f"conversation[{index}].content: must be a text")
    return tuple((turn["role"], turn["content"]) for turn in value)


def _routes(value: Any) -> tuple[RouteText, ...]:
    if not isinstance(value, list) or not value:
        raise InputError("routes: must be a list of at least one route")
    for index, route in enumerate(value):
        _check_keys(route, f"routes[{index}].", _ROUTE, _ROUTE)
        if not all(isinstance(text, str) for text in route.values()):
            raise InputError(f"routes[{index}]: name and description must be texts")
    counts = Counter([OTHER, *(route["name"] for route in value)])
    if twice := [name for name, number in counts.items() if number > 1]:
        what = "may not be a route's name" if twice[0] == OTHER else "is the name of two routes"
        raise InputError(f"routes: {twice[0]!r} {what}")
    return tuple(_route(route["name"], route["description"]) for route in value)


def _texts(value: dict[str, Any], key: str) -> tuple[str, ...]:
    texts = value.get(key) or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{key}: must be a list of texts")
    return tuple(texts)


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
    """Raises InputError naming the line that is not a policy."""
    policies = []
    for number, value in _json_lines(path):
        try:
            policies.append(_written(value))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}, line {number}: not a written policy: {error!r}") from error
    return policies


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
