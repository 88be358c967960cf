"""Text of others on a terminal: nothing of it is obeyed, and nothing hidden."""

from __future__ import annotations

import unicodedata

_PART_OF_TEXT = "\t\u200c\u200d"
"""Tabs, and what joins letters or emoji. Spaces of any width are, too."""


def is_shown(line: str) -> bool:
    """True if a terminal obeys no character of `line`, and hides none."""
    return line.isprintable() or all(map(_is_shown, line))


def shown(text: str) -> str:
    """`text` with an escape, as YAML has them, in place of each character that a terminal obeys or
    hides: whoever wrote a policy would else write on the screen of whoever looks at it. Lines
    stay."""
    return "\n".join(map(_shown_line, text.split("\n")))


def _shown_line(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode() for c in line)


def _is_shown(char: str) -> bool:
    return char.isprintable() or char in _PART_OF_TEXT or unicodedata.category(char) == "Zs"
