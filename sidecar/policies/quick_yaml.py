"""YAML text in a tenth of the time that ruamel.yaml takes.

libyaml reads the text, ruamel.yaml's rules of YAML 1.2 say what a plain scalar is. What libyaml,
which knows YAML 1.1, might take for something else is left to ruamel.yaml, and so is everything
that is wrong: its errors are the ones that people see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml  # type: ignore[import-untyped]
from ruamel.yaml.resolver import implicit_resolvers

# Expressions of their own, each behind what it cannot be without: nearly all texts have but one or
# two of these characters, and to look for a character takes a hundredth of the time.
_LEFT_ALONE = [
    (held, re.compile(expression, re.MULTILINE))
    for held, expression in (
        # A directive.
        ("%", "^%"),
        # The end of a document, of which there may be two.
        ("...", r"^\.\.\."),
        # A line of blanks, which counts in block scalars.
        (" \n", "^ +$"),
        (" \r\n", "^ +\r$"),
        # A comment right behind the head of a block scalar, or a new document there.
        ("|", r"[|>][-+0-9]*(#|\s*^---)"),
        (">", r"[|>][-+0-9]*(#|\s*^---)"),
        # A key in a list, which one takes for text.
        ("?", r"[\[{,]\s*\?"),
        # An anchor whose name goes on behind what ends it for libyaml.
        ("&", r"&[\w-]+[?:%@`]"),
        ("*", r"\*[\w-]+[?:%@`]"),
        # A document of nothing but a tag.
        ("!", r"^\s*!\s"),
    )
]
"""Where libyaml and ruamel.yaml have been seen to differ, and what else YAML 1.2 changed."""

# Line breaks or blanks in one version alone, and the mark of the byte order.
_LEFT_ALONE_CHARACTERS = re.compile("[\x85\u2028\u2029\ufeff]")

_YAML = (1, 2)

_TAG = "tag:yaml.org,2002:"
_TEXT, _LIST, _MAPPING = _TAG + "str", _TAG + "seq", _TAG + "map"


def compose_quickly(text: str) -> Sequence[Any] | None:
    """The root node of each document: like ruamel.yaml's, but for their classes; None where that is
    to read the text.

    libyaml refuses what is nested more than a thousand levels deep.
    """
    if _Composer is None or _is_left_alone(text):
        return None
    composer = _Composer(text)
    documents = []
    try:
        while composer.check_node():
            node = composer.get_node()
            # They differ about what stands below a block scalar that is all there is.
            if node.id == "scalar" and node.style in ("|", ">"):
                return None
            documents.append(node)
    except yaml.YAMLError:
        return None
    finally:
        composer.dispose()
    return documents


def _is_left_alone(text: str) -> bool:
    text += "\n"  # The last line may have none.
    if "\t" in text or (not text.isascii() and _LEFT_ALONE_CHARACTERS.search(text)):
        return True
    return any(held in text and expression.search(text) for held, expression in _LEFT_ALONE)


def _composer() -> Any:
    """None where PyYAML was built without libyaml."""
    parser: Any = getattr(yaml, "cyaml", None)
    if parser is None:
        return None

    class Composer(parser.CParser):  # type: ignore[misc]
        """What PyYAML's resolver does, without its tags that depend on a node's place: they were a
        third of the time, and there are none."""

        def resolve(self, kind: type[Any], value: Any, implicit: tuple[bool, bool]) -> str:
            if kind is yaml.ScalarNode:
                if implicit[0]:
                    for tag, matches in _IMPLICIT.get(value[:1], ()):
                        if matches(value):
                            return tag
                return _TEXT
            return _LIST if kind is yaml.SequenceNode else _MAPPING

        def descend_resolver(self, parent: Any, index: Any) -> None:
            pass

        def ascend_resolver(self) -> None:
            pass

    return Composer


def _implicit() -> dict[str, list[tuple[str, Callable[[str], object]]]]:
    """Tags of plain scalars, and what tells them, by their first character."""
    by_first: dict[str, list[tuple[str, Callable[[str], object]]]] = {}
    for versions, tag, expression, firsts in implicit_resolvers:
        for first in firsts if _YAML in versions else ():
            by_first.setdefault(first, []).append((tag, expression.match))
    return by_first


_IMPLICIT = _implicit()
_Composer = _composer()
