"""Finds the route in an answer that a model wrote in words.

archgw repairs an answer and then reads it as strict JSON, so an apostrophe in a route's name, a
sentence before the object or a plain code fence is an error there. What the real model says is
accepted here, in this order:

1. objects: `{'route': 'name'}`, in either quotes, anywhere in the text, also with a list (its first
   name counts), unquoted, or not closed;
2. `route: name` up to the end of the line;
3. the name alone, bare or quoted.

A name matches exactly, else by ignoring case and taking blanks, `_` and `-` as one, if that leaves
one candidate.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from sidecar.core.decision import Reason
from sidecar.core.policy import OTHER

_MAX_CHARS = 2048  # an answer is one line; more is a model that talks on

_OBJECT_KEY = re.compile(r"""\{\s*["']?route["']?\s*:\s*""", re.IGNORECASE)
_EMPTY_OBJECT = re.compile(r"\{\s*\}")
_NOTHING = re.compile(r"(?:null|none)\b|\[\s*\]", re.IGNORECASE)
_LIST_START = re.compile(r"\[\s*")
_ENDS_VALUE = r"\s*(?=[}\],]|$)"
_STRING = re.compile(rf"""(?:"((?:\\.|[^"\\])*)"|'((?:\\.|[^'\\])*)'){_ENDS_VALUE}""", re.DOTALL)
_LOOSE_STRING = re.compile(rf"""(["'])(.*?)\1{_ENDS_VALUE}""", re.DOTALL)
_BARE_VALUE = re.compile(r"[^\n}\],]*")
_STATEMENT = re.compile(r"""\broute["'`*]*\s*[:=]\s*(.+)""", re.IGNORECASE)
_FENCE = re.compile(r"^```(?:json|python|text|plaintext)?(?!\w)|```$", re.IGNORECASE)
_AROUND_NAME = " \t\r\n\"'`*[]"

_ESCAPE = re.compile(
    r"\\(u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL
)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_JOINTS = re.compile(r"[\s_\-\u2010-\u2015]+")


def find_route(text: str, names: Sequence[str]) -> str | Reason:
    """The name that `text` states, out of `names` (routes and `other`), or why there is none.

    An object that holds no route (`{}`, null, an empty string or list) is how the model says that
    nothing fits: `other`. Two objects that name different routes contradict each other and are
    UNPARSABLE_ANSWER; so is a text that states nothing, the empty one included.
    """
    start = text[:_MAX_CHARS]
    found = _read(start, names)
    if isinstance(found, Reason) and "\\n" in start:
        # The model was seen to write a line break as a backslash and an n.
        found = _read(start.replace("\\n", "\n"), names)
    return found


def _read(answer: str, names: Sequence[str]) -> str | Reason:
    text = _FENCE.sub("", answer.strip()).strip()
    if _EMPTY_OBJECT.fullmatch(text):
        return OTHER
    stated = list(_objects(text)) or _STATEMENT.findall(text)
    if not stated:
        return _match(text, names) or Reason.UNPARSABLE_ANSWER
    matches = {name for value in stated if (name := _match(value, names))}
    if len(matches) > 1:
        return Reason.UNPARSABLE_ANSWER
    return matches.pop() if matches else Reason.UNKNOWN_ROUTE


def _objects(text: str) -> Iterator[str]:
    """The value of `route` in each object; `other` where the object has none."""
    for key in _OBJECT_KEY.finditer(text):
        start = key.end()
        if _NOTHING.match(text, start):
            yield OTHER
            continue
        if in_list := _LIST_START.match(text, start):
            start = in_list.end()
        if string := _STRING.match(text, start):
            value = string[1] if string[1] is not None else string[2]
        elif loose := _LOOSE_STRING.match(text, start):
            value = loose[2]
        else:
            bare = _BARE_VALUE.match(text, start)
            value = bare[0] if bare else ""
        yield value if value.strip() else OTHER


def _match(value: str, names: Sequence[str]) -> str | None:
    plain = value.strip(_AROUND_NAME)
    bare = value.strip(_AROUND_NAME + ".")
    for candidate in (value, _unescape(value), plain, bare):
        if candidate in names:
            return candidate
    wanted = _loosely(_unescape(bare))
    alike = [name for name in names if wanted and _loosely(name) == wanted]
    return alike[0] if len(alike) == 1 else None


def _loosely(name: str) -> str:
    return _JOINTS.sub(" ", unicodedata.normalize("NFKC", name).casefold()).strip()


def _unescape(value: str) -> str:
    """Undo the escapes of a JSON or Python string; of anything else, leave the character."""

    def character(match: re.Match[str]) -> str:
        escape = match[1]
        if len(escape) > 1:
            return chr(int(escape[1:], 16))
        return _ESCAPED.get(escape, escape)

    text = _ESCAPE.sub(character, value)
    # JSON writes characters beyond the basic plane as two surrogates.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
