"""YAML 1.2 text to plain values that remember their lines.

Values are made from the node graph rather than by a constructor of ruamel.yaml: that gives the
line of every value, reports every duplicate key instead of the first, and bounds what aliases can
expand to.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, MaxDepthExceededError
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError

from sidecar.policies.findings import Finding, error, item, member, quoted, self_and_ancestors
from sidecar.policies.quick_yaml import compose_quickly

MAX_BYTES = 512 * 1024
"""A policy of 34 routes has 10 kB; reading takes about half a second per 100 kB."""
MAX_VALUES = 50_000
"""Of one text, its documents together, after aliases are followed: the time is in the values, two
bytes can be one, and a few hundred bytes of aliases can be any number. Policies whose texts are
sentences reach `MAX_BYTES` long before."""
MAX_ITEMS = 1000
"""Of one list; reading stops there, since the time is in the reading."""
MAX_DEPTH = 20
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels; flatten it"

_SURROGATE = re.compile("[\ud800-\udfff]")

_TAG = "tag:yaml.org,2002:"
_TEXT_TAG, _LIST_TAG, _MAPPING_TAG = _TAG + "str", _TAG + "seq", _TAG + "map"
# YAML 1.2 has no dates: what looks like one is text.
_TEXT_TAGS = frozenset({_TEXT_TAG, _TAG + "timestamp"})
_CONSTRUCTED_TAGS = frozenset({_TAG + "int", _TAG + "float", _TAG + "bool", _TAG + "null"})

_YAML = YAML(typ="safe", pure=True)
"""Of constructors. To make one looks for plug-ins in the file system."""


@dataclass(frozen=True)
class Document:
    """One YAML document.

    Args:
        value: dicts, lists, str, int, float, bool and None.
        line: where it begins, counted from 1.
        read_lines: gives `lines`.
        findings: what could not be read; `value` holds the rest.
    """

    value: object
    line: int
    read_lines: Callable[[], Mapping[str, int]] = field(repr=False)
    findings: tuple[Finding, ...] = ()

    @cached_property
    def lines(self) -> Mapping[str, int]:
        """Path of each value to its line in the file, counted from 1."""
        return self.read_lines()

    def line_of(self, path: str) -> int:
        """Line of the value, or of the nearest one around it that exists."""
        around = (self.lines[known] for known in self_and_ancestors(path) if known in self.lines)
        return next(around, self.line)


def decode(data: bytes) -> tuple[str, Finding | None]:
    """`data` as text; empty text and the finding if it is too large or not UTF-8."""
    if len(data) > MAX_BYTES:
        return "", error("", f"has more than the {MAX_BYTES} bytes that are read; split it")
    try:
        return data.decode("utf-8-sig"), None
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        byte = data[problem.start]
        return "", error("", f"byte 0x{byte:02x} is not UTF-8; save the file in UTF-8", line)


def read_documents(text: str) -> tuple[list[Document], list[Finding]]:
    """All documents of `text`, and what ended the reading early, if anything did.

    Empty documents are left out. Reading stops at the first syntax error: what follows it cannot
    be told apart from its consequences.
    """
    quick = _quickly_read(text)
    return _carefully_read(text) if quick is None else (quick, [])


def _quickly_read(text: str) -> list[Document] | None:
    """None where there is anything to say about the text, or might be."""
    nodes = compose_quickly(text)
    if nodes is None:
        return None
    documents = []
    lines, reader = _Lines(text), _QuickReader()
    for number, node in enumerate(nodes):
        try:
            value = reader.document(node)
        except _UnusualError:
            return None
        if value is not None:
            documents.append(Document(value, node.start_mark.line + 1, partial(lines.of, number)))
    return documents


class _Lines:
    """Lines of documents that were quickly read. They take as long as the values, and are wanted
    where there is something to say about one of these: then of all, since each reading is one of
    the whole text, and there may be hundreds of documents."""

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def _all(self) -> Sequence[Mapping[str, int]]:
        nodes = compose_quickly(self._text)
        assert nodes is not None
        return [_Reader().document(node).lines for node in nodes]

    def of(self, number: int) -> Mapping[str, int]:
        return self._all[number]


def _carefully_read(text: str) -> tuple[list[Document], list[Finding]]:
    documents: list[Document] = []
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_DEPTH + 1
    yaml.Composer = _BoundedComposer
    yaml.composer.warn_double_anchors = False
    try:
        reader = _Reader(yaml)
        for node in yaml.compose_all(text):
            document = reader.document(node)
            if document.value is not None or document.findings:
                documents.append(document)
    except (_TooMuchError, _TooManyValuesError) as stop:
        return documents, [stop.finding]
    except MaxDepthExceededError as problem:
        line = problem.problem_mark.line + 1
        return documents, [error("", _TOO_DEEP, line)]
    except MarkedYAMLError as problem:
        return documents, [_syntax_error(problem)]
    except ReaderError as problem:
        line = text.count("\n", 0, problem.position) + 1
        code = problem.character if isinstance(problem.character, int) else ord(problem.character)
        return documents, [
            error("", f"the character U+{code:04X} may not stand in YAML; remove it", line)
        ]
    except YAMLError as problem:
        return documents, [error("", f"not YAML: {str(problem).splitlines()[0]}")]
    return documents, []


_REMEDIES = {
    "mapping values are not allowed here": 'put text that contains ": " in quotes',
    "found character '\\t' that cannot start any token": "indent with spaces, not tabs",
}


def _syntax_error(problem: MarkedYAMLError) -> Finding:
    mark = problem.problem_mark or problem.context_mark
    what = problem.problem or problem.context or "cannot be read"
    if mark is None:
        return error("", f"not YAML: {what}")
    message = f"not YAML, column {mark.column + 1}: {what}"
    begun = problem.context_mark
    if begun is not None and begun.line != mark.line:
        message += f" ({problem.context} that begins on line {begun.line + 1})"
    if what in _REMEDIES:
        message += f"; {_REMEDIES[what]}"
    return error("", message, mark.line + 1)


class _TooMuchError(Exception):
    def __init__(self, finding: Finding) -> None:
        self.finding = finding


class _TooManyValuesError(Exception):
    """Ends the reading of the whole text."""

    def __init__(self, line: int) -> None:
        self.finding = error(
            "",
            f"more than {MAX_VALUES} values, with those that aliases stand for; write fewer "
            "aliases or split it",
            line,
        )


def _too_many_items(line: int) -> Finding:
    text = f"a list of more than {MAX_ITEMS} entries, the most that are read; split it"
    return error("", text, line)


class _BoundedComposer(Composer):
    _values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        # `index` is a number in a list; in a mapping it is a key's node, and None for the key.
        if isinstance(index, int) and index >= MAX_ITEMS:
            raise _TooMuchError(_too_many_items(self._line()))
        self._values += parent is None or index is not None
        if self._values > MAX_VALUES:
            raise _TooManyValuesError(self._line())
        return super().compose_node(parent, index)

    def _line(self) -> int:
        line: int = self.parser.peek_event().start_mark.line + 1
        return line


class _UnusualError(Exception):
    """There may be something to say: `_Reader` finds out."""


class _QuickReader:
    """Reads the documents of a text of which nothing needs to be said, in a fifth of the time of
    `_Reader`. Raises _UnusualError."""

    def __init__(self) -> None:
        self._left = MAX_VALUES
        self._reader = _Reader()

    def document(self, node: Any) -> object:
        self._left -= 1
        if self._left < 0:
            raise _UnusualError
        return self._value(node, 0)

    def _value(self, node: Any, depth: int) -> object:
        if node.id == "scalar":
            return self._scalar(node)
        # Also where an alias contains itself.
        self._left -= len(node.value)
        if self._left < 0 or depth >= MAX_DEPTH:
            raise _UnusualError
        if node.id == "mapping" and node.tag == _MAPPING_TAG:
            return self._mapping(node, depth + 1)
        if node.tag != _LIST_TAG or len(node.value) > MAX_ITEMS:
            raise _UnusualError
        return [self._value(each, depth + 1) for each in node.value]

    def _mapping(self, node: Any, depth: int) -> dict[str, object]:
        values: dict[str, object] = {}
        for key, value in node.value:
            if key.id != "scalar" or key.value == "<<":
                raise _UnusualError
            # Without two calls for what is the most there is.
            plain = value.id == "scalar" and value.tag == _TEXT_TAG and value.value.isascii()
            values[key.value] = value.value if plain else self._value(value, depth)
        if len(values) < len(node.value):
            raise _UnusualError
        return values

    def _scalar(self, node: Any) -> object:
        if node.tag in _TEXT_TAGS:
            text: str = node.value
            if text.isascii() or not _SURROGATE.search(text):
                return text
        elif node.tag in _CONSTRUCTED_TAGS:
            return self._reader.constructed(node)
        raise _UnusualError


class _Reader:
    """Reads the documents of a text, from nodes of ruamel.yaml or of PyYAML, which are alike."""

    def __init__(self, yaml: YAML | None = None) -> None:
        self._yaml = yaml
        self._lines: dict[str, int] = {}
        self._findings: list[Finding] = []
        self._values = 0
        self._begins = 0
        self._open: set[int] = set()

    @cached_property
    def _constructor(self) -> Any:
        return SafeConstructor(loader=_YAML) if self._yaml is None else self._yaml.constructor

    def document(self, node: Any) -> Document:
        """Raises _TooManyValuesError."""
        lines: dict[str, int] = {}
        findings: list[Finding] = []
        self._lines, self._findings = lines, findings
        self._begins = line = node.start_mark.line + 1
        try:
            value = self._value(node, "", 0)
        except _TooMuchError as stop:
            value = None
            findings.append(stop.finding)
        return Document(value, line, lambda: lines, tuple(findings))

    def _value(self, node: Any, path: str, depth: int) -> object:
        self._values += 1
        if self._values > MAX_VALUES:
            raise _TooManyValuesError(self._begins)
        if depth > MAX_DEPTH:
            raise _TooMuchError(error("", _TOO_DEEP, node.start_mark.line + 1))
        if id(node) in self._open:
            raise _TooMuchError(error(path, "an alias that contains itself; write the value out"))
        if node.id == "scalar":
            return self._scalar(node, path)
        self._open.add(id(node))
        try:
            return self._collection(node, path, depth)
        finally:
            self._open.remove(id(node))

    def _collection(self, node: Any, path: str, depth: int) -> object:
        if node.id == "sequence" and node.tag == _LIST_TAG:
            return list(self._items(node, path, depth))
        if node.id == "mapping" and node.tag == _MAPPING_TAG:
            return self._mapping(node, path, depth)
        self._refuse_tag(node, path)
        return None

    def _items(self, node: Any, path: str, depth: int) -> Iterator[object]:
        if len(node.value) > MAX_ITEMS:
            raise _TooMuchError(_too_many_items(node.start_mark.line + 1))
        for index, child in enumerate(node.value):
            child_path = item(path, index)
            self._lines[child_path] = child.start_mark.line + 1
            yield self._value(child, child_path, depth + 1)

    def _mapping(self, node: Any, path: str, depth: int) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self._key(key_node, path)
            if key is None:
                continue
            child_path = member(path, key)
            if key in values:
                self._report(
                    child_path,
                    f"duplicate key {quoted(key)}, first on line {self._lines[child_path]}; "
                    "keep one",
                    line,
                )
                continue
            self._lines[child_path] = line
            values[key] = self._value(value_node, child_path, depth + 1)
        return values

    def _key(self, node: Any, path: str) -> str | None:
        line = node.start_mark.line + 1
        if node.id != "scalar":
            self._report(path, "a key must be text, not a list or a mapping", line)
            return None
        if node.value == "<<" and not node.style:
            self._report(member(path, "<<"), "YAML 1.2 has no merge keys; write the keys out", line)
            return None
        return str(node.value)

    def _scalar(self, node: Any, path: str) -> object:
        if node.tag in _TEXT_TAGS:
            return self._text(node, path)
        if node.tag in _CONSTRUCTED_TAGS:
            return self.constructed(node)
        self._refuse_tag(node, path)
        return None

    def constructed(self, node: Any) -> object:
        """The value of a scalar that is no text."""
        try:
            value = self._constructor.construct_object(ScalarNode(node.tag, node.value))
        except (ValueError, KeyError, IndexError, YAMLError):
            return str(node.value)  # `!!int x`: the shape says what it should be.
        if isinstance(value, int) and value.bit_length() >= sys.float_info.max_exp:
            # Python does not print one of thousands of digits, and here it is too much anyway.
            return math.inf if value > 0 else -math.inf
        return value

    def _text(self, node: Any, path: str) -> str:
        text = str(node.value)
        if not text.isascii() and _SURROGATE.search(text):
            line = node.start_mark.line + 1
            self._report(path, "has half of a surrogate pair; write the character itself", line)
            return ""
        return text

    def _refuse_tag(self, node: Any, path: str) -> None:
        line = node.start_mark.line + 1
        self._report(path, f"the tag {quoted(str(node.tag))} is not used here; remove it", line)

    def _report(self, path: str, message: str, line: int) -> None:
        self._findings.append(error(path, message, line))
