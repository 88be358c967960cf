"""What is trained on: routing cases, in files that `sidecar eval` reads, too (docs/evaluation.md),
and hand-written policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from router_training.errors import InputError
from sidecar.evaluation import cases as evaluation

OTHER = "other"

_OWN = "own"
"""The family of cases that name none."""
_SPEAKERS = ("user", "assistant")


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
    """The files of `paths`, each once. Raises CaseError."""
    return list(evaluation.case_files(paths))


def read_all(paths: Iterable[Path]) -> list[Case]:
    """The cases of files and folders. Raises CaseError."""
    return [case for file in case_files(paths) for case in read_cases(file)]


def read_cases(path: Path) -> Iterator[Case]:
    """The cases of one file, but those without a text of user or assistant: of them no model is
    asked. Raises CaseError."""
    for case in evaluation.cases_of_file(path, _OWN):
        if case.conversation.shown_to_router():
            yield _case(case)


def check_ids(cases: Sequence[Case]) -> None:
    """Raises InputError for two with one id, where what models say is kept by it."""
    counts = Counter(case.id for case in cases)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        more = f" (and so with {len(twice) - 1} more ids)" if twice[1:] else ""
        raise InputError(
            f"several cases have the id {twice[0]!r}{more}; give every case an `id` of its own "
            "(without one it has its file's name and line), and no case twice"
        )


def _case(case: evaluation.Case) -> Case:
    turns = tuple((message.role.value, message.text) for message in case.conversation.messages)
    return Case(
        id=case.id,
        family=case.family,
        granularity=case.granularity,
        routes=tuple(_route(route.name, route.description) for route in case.routes),
        request=Request(turns, case.also_ok | {case.label}),
        label=case.label,
        dialogue=case.dialogue_id or case.id,
        tags=frozenset(case.tags),
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
    """Raises CaseError for a file that cannot be read or has no policy, InputError for a line that
    is none."""
    policies = []
    for number, value in evaluation.json_lines(path, "a written policy"):
        try:
            policies.append(_written(value))
        except (InputError, KeyError, TypeError, AttributeError) as error:
            what = error if isinstance(error, InputError) else repr(error)
            raise InputError(f"{path}:{number}: not a written policy: {what}") from error
    if not policies:
        raise InputError(f"{path}: there are no policies in it; add some, or leave the file out")
    return policies


def _written(value: dict[str, Any]) -> WrittenPolicy:
    """Raises InputError, KeyError, TypeError, AttributeError."""
    policy = WrittenPolicy(
        id=value["id"],
        level=value["level"],
        routes=tuple(
            WrittenRoute(route["name"], _texts(route["descriptions"], "descriptions"))
            for route in value["routes"]
        ),
        singles=tuple(
            (name, text)
            for name, texts in value["singles"].items()
            for text in _texts(texts, "singles")
        ),
        dialogues=tuple(
            tuple((turn["role"], turn["content"], turn.get("label", "")) for turn in dialogue)
            for dialogue in value["dialogues"]
        ),
    )
    _check_written(policy)
    return policy


def _texts(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(_is_text(text) for text in value):
        raise InputError(f"{key}: must be lists of texts, none of them blank")
    return tuple(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_written(policy: WrittenPolicy) -> None:
    """What would be trained on all the same, and teach something else than is meant."""
    names = [route.name for route in policy.routes]
    if not all(map(_is_text, (policy.id, policy.level, *names))):
        raise InputError("id, level and the routes' names must be texts, none of them blank")
    if not names or len({*names, OTHER}) <= len(names):
        raise InputError(
            f"routes: must be one or more, each with a name of its own, none {OTHER!r}"
        )
    if silent := [route.name for route in policy.routes if not route.descriptions]:
        raise InputError(f"routes: {silent[0]!r} has no descriptions")
    turns = [turn for dialogue in policy.dialogues for turn in dialogue]
    for role, text, label in turns:
        if role not in _SPEAKERS or not _is_text(text) or (label and role != "user"):
            raise InputError(
                f"dialogues: a turn is of {' or '.join(_SPEAKERS)}, with a text that is not blank, "
                "and has a label only of the user"
            )
    labels = [*(name for name, _ in policy.singles), *(label for *_, label in turns if label)]
    if not labels:
        raise InputError("singles, dialogues: there is no request")
    if unknown := [label for label in labels if label not in {*names, OTHER}]:
        raise InputError(f"{unknown[0]!r} is not a route of the policy; name one, or {OTHER!r}")
