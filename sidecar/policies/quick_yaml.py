"""Node graphs of YAML text in a tenth of the time that ruamel.yaml takes.

libyaml reads the text, ruamel.yaml's rules of YAML 1.2 say what a plain scalar is. What libyaml,
which knows YAML 1.1, might take for something else is left to ruamel.yaml, and so is everything
that is wrong: its errors are the ones that people see.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml  # type: ignore[import-untyped]
from ruamel.yaml.resolver import implicit_resolvers

_LEFT_ALONE = re.compile(
    # A line break or a blank in one version alone, a mark of the byte order.
    "[\x85\u2028\u2029\ufeff\t]"
    # A directive, and a line of blanks, which counts in block scalars.
    r"|^%|^ +\r?$"
    # A comment right behind the head of a block scalar.
    r"|[|>][-+0-9]*#"
    # Or a new document there.
    r"|[|>][-+0-9]*[ ]*\r?\n(---|\.\.\.)"
    # A key in a list, which one takes for text.
    r"|[\[{,]\s*\?",
    re.MULTILINE,
)
"""Where libyaml and ruamel.yaml have been seen to differ, and what else YAML 1.2 changed."""

_YAML = (1, 2)


def compose_quickly(text: str) -> Sequence[Any] | None:
    """The root node of each document: like ruamel.yaml's, but for their classes; None where that is
    to read the text.

    libyaml refuses what is nested more than a thousand levels deep.
    """
    if _Composer is None or _LEFT_ALONE.search(text):
        return None
    composer = _Composer(text)
    documents = []
    try:
        while composer.check_node():
            documents.append(composer.get_node())
    except yaml.YAMLError:
        return None
    finally:
        composer.dispose()
    return documents


def _composer() -> Any:
    """None where PyYAML was built without libyaml."""
    parser: Any = getattr(yaml, "cyaml", None)
    if parser is None:
        return None

    class Composer(parser.CParser, yaml.resolver.BaseResolver):  # type: ignore[misc]
        def __init__(self, text: str) -> None:
            parser.CParser.__init__(self, text)
            yaml.resolver.BaseResolver.__init__(self)

    for versions, tag, pattern, first in implicit_resolvers:
        if _YAML in versions:
            Composer.add_implicit_resolver(tag, pattern, first)
    return Composer


_Composer = _composer()
