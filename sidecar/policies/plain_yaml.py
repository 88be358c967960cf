"""YAML as most policies are written, in a fraction of the time that a parser of all of YAML takes.

Keys and lists in blocks; texts on one line, in quotes, or folded; short lists and mappings in
brackets. What is not certain to be one of these, and to have one meaning, is left to the parsers
that know all of YAML, and so is everything that is wrong. Lines are not noted.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import Any

from ruamel.yaml.resolver import implicit_resolvers

_VALUES = 20_000
_ITEMS = 500
_DEPTH = 10
"""More than policies have, and well within what is read (`MAX_…` of `yaml_source`)."""

_YAML = (1, 2)

_INTEGER = re.compile(r"0|[1-9][0-9]{0,14}")
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,14})\.[0-9]{1,15}")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_WORDS = {"true": True, "false": False}

_KEY = r"[A-Za-z_][A-Za-z0-9_-]{0,63}"
_LINE = re.compile(rf"(- +)?(?:({_KEY}):(?: +|$))?(.*)")
"""Of a line without its indentation: the mark of a list's entry, a key, and the rest."""

_SINGLE_QUOTED = re.compile(r"'(?:[^']|'')*'")

_ITEM = r"[A-Za-z0-9][A-Za-z0-9_./@+-]*"
_LIST = rf"\[{_ITEM}(?:, *{_ITEM})*\]"
_PAIR = re.compile(rf"({_KEY}): +({_ITEM}|{_LIST})")
_BRACKETS = re.compile(_LIST)
_BRACES = re.compile(rf"\{{{_PAIR.pattern}(?:, *{_PAIR.pattern})*\}}")

_BLOCK_TEXTS = {">-": (" ", ""), ">": (" ", "\n"), "|-": ("\n", ""), "|": ("\n", "\n")}
"""What joins and what ends the lines of a text, by its head."""

_NOTHING = object()

_Line = tuple[int, int, str | None, object]
"""Column, column behind the mark of an entry (the same if there is none), key, value."""

_END: _Line = (-1, -1, None, None)


@dataclass(frozen=True, slots=True)
class PlainDocument:
    """Dicts, lists, str, int, float and bool, and the line that it begins on, counted from 1."""

    value: object
    line: int


class _NotPlainError(Exception):
    """Somebody else has to read it."""


def read_plainly(text: str) -> list[PlainDocument] | None:
    """All documents; None where there is more to the text than is read here, or may be."""
    # An entry and its value on each line, and what stands in brackets.
    most = 2 * text.count("\n") + text.count(",") + 2 * (text.count("[") + text.count("{"))
    if most > _VALUES or not text.replace("\n", "").isprintable():
        return None
    try:
        return [_Blocks(lines).document(line) for line, lines in _documents(text)]
    except _NotPlainError:
        return None


def _documents(text: str) -> list[tuple[int, list[_Line]]]:
    """The lines of each document, comments left out, and the number of the first."""
    rows = text.split("\n")
    documents: list[tuple[int, list[_Line]]] = []
    lines: list[_Line] = []
    at = first = 0
    marked = False
    while at < len(rows):
        row, at = rows[at], at + 1
        content = row.lstrip(" ")
        if not content or content[0] == "#":
            continue
        if row == "---":
            if lines:
                documents.append((first, lines))
            elif marked:
                raise _NotPlainError
            lines, marked = [], True
            continue
        if not lines:
            first = at
        line, at = _line(content, len(row) - len(content), rows, at)
        lines.append(line)
    if lines:
        documents.append((first, lines))
    elif marked:
        raise _NotPlainError
    return documents


def _line(content: str, column: int, rows: list[str], at: int) -> tuple[_Line, int]:
    """The line, and which of the rows is next."""
    match = _LINE.match(content)
    assert match is not None, "it takes everything"
    mark, key, rest = match.groups()
    inner = column + len(mark) if mark else column
    rest = rest.rstrip(" ")
    if not rest or rest[0] == "#":
        if key is None:
            raise _NotPlainError
        return (column, inner, key, _NOTHING), at
    if not (mark or key):
        raise _NotPlainError
    if rest[0] in _TEXT_ALONE and ":" not in rest and "#" not in rest:
        return (column, inner, key, rest), at
    if rest in _BLOCK_TEXTS:
        value, at = _block_text(rest, rows, at, column if key is None else inner)
        return (column, inner, key, value), at
    return (column, inner, key, _value(rest)), at


def _block_text(head: str, rows: list[str], at: int, around: int) -> tuple[str, int]:
    """Lines of one indentation, deeper than `around`, with none empty between them."""
    texts: list[str] = []
    indent = 0
    while at < len(rows) and rows[at]:
        text = rows[at].lstrip(" ")
        column = len(rows[at]) - len(text)
        if column <= around:
            break
        indent = indent or column
        if column != indent or not text or text[-1] == " ":
            raise _NotPlainError
        texts.append(text)
        at += 1
    while at < len(rows) - 1 and not rows[at]:
        at += 1
    # It goes on, or does not end with a line's end.
    after = rows[at] if at < len(rows) else " "
    if not texts or after[: around + 1].isspace():
        raise _NotPlainError
    joint, end = _BLOCK_TEXTS[head]
    return joint.join(texts) + end, at


def _value(text: str) -> object:
    first = text[0]
    if first == '"':
        if "\\" in text or text.find('"', 1) != len(text) - 1:
            raise _NotPlainError
        return text[1:-1]
    if first == "'":
        if not _SINGLE_QUOTED.fullmatch(text):
            raise _NotPlainError
        return text[1:-1].replace("''", "'")
    if " #" in text:
        text = text[: text.index(" #")].rstrip(" ")
    if first == "[":
        return _brackets(text)
    if first == "{":
        return _braces(text)
    if ": " in text or text[-1] == ":":
        raise _NotPlainError
    return _plain(text)


def _plain(text: str) -> object:
    first = text[0]
    if not first.isalnum():
        raise _NotPlainError
    if first in _SPECIAL and any(pattern.match(text) for pattern in _SPECIAL[first]):
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            return int(text)
        if _DECIMAL.fullmatch(text):
            return float(text)
        if not _DAY.fullmatch(text):  # YAML 1.2 has none
            raise _NotPlainError
    return text


def _brackets(text: str) -> list[object]:
    if text == "[]":
        return []
    if text.count(",") >= _ITEMS or not _BRACKETS.fullmatch(text):
        raise _NotPlainError
    return [_plain(each.lstrip(" ")) for each in text[1:-1].split(",")]


def _braces(text: str) -> dict[str, object]:
    if not _BRACES.fullmatch(text):
        raise _NotPlainError
    values: dict[str, object] = {}
    for key, value in _PAIR.findall(text):
        if key in values:
            raise _NotPlainError
        values[key] = _brackets(value) if value[0] == "[" else _plain(value)
    return values


def _special() -> dict[str, list[Any]]:
    by_first: dict[str, list[Any]] = {}
    for versions, _, pattern, firsts in implicit_resolvers:
        if _YAML in versions:
            for first in firsts:
                by_first.setdefault(first, []).append(pattern)
    return by_first


_SPECIAL = _special()
"""Patterns of what plain text is other than text, by the first character."""

_TEXT_ALONE = frozenset(string.ascii_letters) - _SPECIAL.keys()
"""What begins with one of these is text, unless it has a key or a comment."""


class _Blocks:
    """Puts the lines of a document together."""

    def __init__(self, lines: list[_Line]) -> None:
        self._lines = [*lines, _END]
        self._at = 0

    def document(self, line: int) -> PlainDocument:
        column, inner, _, _ = self._lines[0]
        value = self._mapping(column, 0) if inner == column else self._sequence(column, 0)
        if self._at != len(self._lines) - 1:
            raise _NotPlainError
        return PlainDocument(value, line)

    def _mapping(self, column: int, depth: int) -> dict[str, object]:
        values: dict[str, object] = {}
        while True:
            start, inner, key, value = self._lines[self._at]
            if start != column or inner != start:
                break
            if key is None or key in values:
                raise _NotPlainError
            self._at += 1
            values[key] = self._nested(column, depth) if value is _NOTHING else value
        if start >= column:
            raise _NotPlainError
        return values

    def _nested(self, column: int, depth: int) -> object:
        """The value of a key that stands alone on its line."""
        start, inner, _, _ = self._lines[self._at]
        if depth > _DEPTH:
            raise _NotPlainError
        if inner > start >= column:
            return self._sequence(start, depth + 1)
        if start > column:
            return self._mapping(start, depth + 1)
        raise _NotPlainError

    def _sequence(self, column: int, depth: int) -> list[object]:
        items: list[object] = []
        while True:
            start, inner, key, value = self._lines[self._at]
            if start != column or inner == start:
                break
            if key is None:
                self._at += 1
                items.append(value)
            else:
                self._lines[self._at] = (inner, inner, key, value)
                items.append(self._mapping(inner, depth + 1))
        if start > column or len(items) > _ITEMS:
            raise _NotPlainError
        return items
