"""Cases: a conversation, the routes to choose from, and the route that a person would take.

The format is in docs/evaluation.md. Reading is strict: a key that is misspelt and passed over would
change what is measured, and nobody would notice.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.policy import OTHER, Policy
from sidecar.evaluation.policies import CaseRoute, policy_of
from sidecar.policies import Severity, check_policy
from sidecar.policies.findings import closest, quoted

_SUFFIXES = (".jsonl", ".jsonl.gz")
_REQUIRED = ("conversation", "routes", "label")
_TEXTS = ("id", "dataset", "family", "split", "granularity")
_KEYS = (*_REQUIRED, *_TEXTS, "also_ok", "dialogue_id", "turn_index", "tags")


class CaseError(Exception):
    """A file of cases that cannot be used; the text names file, line, path and remedy, and holds
    nothing of the conversation."""


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Args:
        file: name of its file in results, see `read_cases`.
        family: what results are grouped by; the file's name where the case gives none.
        label: name of the right route, or `other`.
        also_ok: further names that count as right.
        dialogue_id: None for a case that stands alone.
        turn_index: consecutive turns of a dialogue count up by one.
    """

    id: str
    file: str
    family: str
    conversation: Conversation
    routes: tuple[CaseRoute, ...]
    label: str
    also_ok: frozenset[str] = frozenset()
    granularity: str = ""
    dialogue_id: str | None = None
    turn_index: int = 0
    tags: tuple[str, ...] = ()

    def accepts(self, answer: str) -> bool:
        return answer == self.label or answer in self.also_ok

    @property
    def user_turns(self) -> int:
        """User messages so far, the one to be routed included."""
        return user_turns(self.conversation)


def user_turns(conversation: Conversation) -> int:
    return sum(message.role is Role.USER for message in conversation.messages)


def case_files(paths: Iterable[Path]) -> dict[Path, str]:
    """The files of `paths`, each with its name in results: without folder and suffix where no other
    file is called so, else with as many folders as tell them apart, or with their suffixes.

    Raises:
        CaseError: a path is missing, has another suffix, or is a folder without cases.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        found = list(_files_at(path))
        if not found:
            raise CaseError(f"{path}: has no file that ends in {' or '.join(_SUFFIXES)}")
        for file in found:
            # A file may be named twice, and once from where one is and once in full.
            files.setdefault(file.resolve(), file)
    chosen = list(files.values())
    return dict(zip(chosen, _names(chosen), strict=True))


def read_cases(paths: Iterable[Path]) -> list[Case]:
    """The cases of files and folders, in the order of the files.

    Raises:
        CaseError: as `case_files` and `cases_of_file`.
    """
    return [case for file, name in case_files(paths).items() for case in cases_of_file(file, name)]


def sample(cases: Sequence[Case], limit: int | None) -> list[Case]:
    """At most `limit` cases, drawn evenly over all and the same each time, dialogues kept whole:
    where each has more, it is one of them.

    The cases keep their order.
    """
    if limit is None or limit >= len(cases):
        return list(cases)
    units: dict[object, list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        units[dialogue_key(case) or (case.file, case.id)].append(index)
    drawn: list[int] = []
    for key in sorted(units, key=_draw):
        if len(drawn) + len(units[key]) <= limit:
            drawn += units[key]
    # Where every dialogue is longer than the limit, one of them is more than nothing.
    return [cases[index] for index in sorted(drawn or units[min(units, key=_draw)])]


def dialogue_key(case: Case) -> tuple[str, str, tuple[CaseRoute, ...]] | None:
    """What the turns of one dialogue share: they are asked over one route list."""
    if case.dialogue_id is None:
        return None
    return (case.file, case.dialogue_id, case.routes)


def _draw(key: object) -> bytes:
    return hashlib.sha256(repr(key).encode()).digest()


def _files_at(path: Path) -> Iterator[Path]:
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.name.endswith(_SUFFIXES)):
            if not file.exists():
                raise CaseError(f"{file}: a link to no file; mend or remove it")
            if file.is_file():
                yield file
    elif not path.exists():
        raise CaseError(f"{path}: does not exist")
    elif not path.name.endswith(_SUFFIXES):
        raise CaseError(f"{path}: cases are in files that end in {' or '.join(_SUFFIXES)}")
    else:
        yield path


def _names(files: Sequence[Path]) -> list[str]:
    folders = [file.parent.resolve().parts for file in files]
    ends = [file.name.removesuffix(".gz").removesuffix(".jsonl") for file in files]
    # With their suffixes, too, x.jsonl beside x.jsonl.gz is told apart.
    for last in (ends, [file.name for file in files]):
        parts = [(*folder, end) for folder, end in zip(folders, last, strict=True)]
        for length in range(1, max(map(len, parts), default=1) + 1):
            names = ["/".join(each[-length:]) for each in parts]
            if len(set(names)) == len(names):
                return names
    raise AssertionError("no two files have one folder and one name")


def cases_of_file(path: Path, name: str) -> Iterator[Case]:
    """The cases of one file, called `name` in results.

    Raises:
        CaseError: the first line that is not a case; or there is none.
    """
    ids: dict[str, int] = {}
    checked: set[tuple[CaseRoute, ...]] = set()
    for number, content in json_lines(path, "a case"):
        where = f"{path}:{number}"
        case = _case(content, name, where, default_id=f"{path.name}:{number}")
        if case.id in ids:
            raise CaseError(
                f"{where}: id: {quoted(case.id)} is already that of line {ids[case.id]}"
            )
        ids[case.id] = number
        if case.routes not in checked:
            _check_routes(case, where)
            checked.add(case.routes)
        yield case
    if not ids:
        raise CaseError(f"{path}: there are no cases in it; add some, or remove the file")


def json_lines(path: Path, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file that has one on each line, with the lines' numbers.

    Args:
        what: an object is, for a person.

    Raises:
        CaseError: the first line that is none.
    """
    for number, line in _lines(path):
        where = f"{path}:{number}"
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, too
            raise CaseError(
                f"{where}: not JSON: {error}; {what} is one JSON object on one line"
            ) from None
        if not isinstance(content, dict):
            raise CaseError(f"{where}: must be an object")
        yield number, content


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if text.strip():
                    yield number, _text(text, f"{path}:{number}")
    except (OSError, EOFError, zlib.error) as error:
        raise CaseError(f"{path}: cannot be read: {error}") from None


def _text(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise CaseError(f"{where}: not UTF-8; save the file in UTF-8") from None


def _case(content: dict[str, Any], file: str, where: str, default_id: str) -> Case:
    _check_keys(content, where, _REQUIRED, _KEYS)
    for key in ("label", *_TEXTS):
        if not isinstance(content.get(key, ""), str):
            raise CaseError(f"{where}: {key}: must be a text")
    routes = _routes(content["routes"], where)
    names = {OTHER, *(route.name for route in routes)}
    also_ok = _texts(content, "also_ok", where)
    for key, named in (("label", content["label"]), *(("also_ok", each) for each in also_ok)):
        if named not in names:
            raise CaseError(f"{where}: {key}: {_unknown_route(named, names)}")
    conversation = _conversation(content["conversation"], where)
    return Case(
        id=content.get("id", default_id),
        file=file,
        family=content.get("family") or file,
        conversation=conversation,
        routes=routes,
        label=content["label"],
        also_ok=frozenset(also_ok),
        granularity=content.get("granularity", ""),
        dialogue_id=_dialogue_id(content, where),
        turn_index=_turn_index(content, conversation, where),
        tags=_texts(content, "tags", where),
    )


def _check_keys(
    content: dict[str, Any], where: str, required: Sequence[str], known: Sequence[str]
) -> None:
    for key in required:
        if key not in content:
            raise CaseError(f"{where}: {key}: missing")
    for key in content:
        if key not in known:
            meant = closest(key, known)
            remedy = f"did you mean {quoted(meant)}?" if meant else f"there are {', '.join(known)}"
            raise CaseError(f"{where}: unknown key {quoted(key)}; {remedy}")


def _unknown_route(name: str, names: Iterable[str]) -> str:
    meant = closest(name, names)
    remedy = f"did you mean {quoted(meant)}?" if meant else f"name one of them, or {quoted(OTHER)}"
    return f"{quoted(name)} is not a route of the case; {remedy}"


def _routes(value: Any, where: str) -> tuple[CaseRoute, ...]:
    if not isinstance(value, list) or not value:
        raise CaseError(f"{where}: routes: must be a list of at least one route")
    routes = []
    for index, each in enumerate(value):
        path = f"{where}: routes[{index}]"
        if not isinstance(each, dict):
            raise CaseError(f"{path}: must be an object with name and description")
        _check_keys(each, path, ("name", "description"), ("name", "description"))
        if not all(isinstance(text, str) for text in each.values()):
            raise CaseError(f"{path}: name and description must be texts")
        routes.append(CaseRoute(each["name"], each["description"]))
    return tuple(routes)


def _check_routes(case: Case, where: str) -> None:
    """Route lists meet the rules of policies: nothing else could be asked of a sidecar."""
    policy: Policy = policy_of(case.routes)
    for finding in check_policy(policy, None):
        if finding.severity is Severity.ERROR:
            raise CaseError(f"{where}: {finding.path}: {finding.message}")


def _conversation(value: Any, where: str) -> Conversation:
    if not isinstance(value, list) or not value:
        raise CaseError(f"{where}: conversation: must be a list of at least one message")
    messages = []
    for index, each in enumerate(value):
        path = f"{where}: conversation[{index}]"
        if not isinstance(each, dict):
            raise CaseError(f"{path}: must be an object with role and content")
        _check_keys(each, path, ("role", "content"), ("role", "content"))
        if each["role"] not in list(Role):
            raise CaseError(f"{path}.role: must be one of {', '.join(Role)}")
        if not isinstance(each["content"], str):
            raise CaseError(f"{path}.content: must be a text")
        messages.append(Message(Role(each["role"]), each["content"]))
    return Conversation(tuple(messages))


def _texts(content: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = content.get(key) or []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise CaseError(f"{where}: {key}: must be a list of texts")
    return tuple(value)


def _dialogue_id(content: dict[str, Any], where: str) -> str | None:
    value = content.get("dialogue_id")
    if value is not None and not isinstance(value, str):
        raise CaseError(f"{where}: dialogue_id: must be a text or null")
    return value


def _turn_index(content: dict[str, Any], conversation: Conversation, where: str) -> int:
    """Where none is given, what tells the turns of a dialogue apart: with one number for all, none
    would follow another, and each would be a span of its own."""
    value = content.get("turn_index", max(0, user_turns(conversation) - 1))
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CaseError(f"{where}: turn_index: must be a whole number, 0 or more")
    return value
