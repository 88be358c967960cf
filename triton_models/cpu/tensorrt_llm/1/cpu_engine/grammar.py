"""Reads the one form of EBNF that the sidecar writes: an alternation of quoted literals.

    root ::= "first" | "second" | …

The notation is xgrammar's (https://xgrammar.mlc.ai/docs/tutorials/ebnf_guided_generation.html),
which TensorRT-LLM uses. Anything more is refused rather than approximated: an ignored rule would
be an unconstrained answer.
"""

from __future__ import annotations

import re

from cpu_engine.errors import RefusedError

_RULE = re.compile(r"\s*root\s*::=\s*")
_LITERAL = re.compile(r'"((?:[^"\\\n\r]|\\.)*)"')
_SEPARATOR = re.compile(r"\s*\|\s*")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_PLAIN = {'"': '"', "\\": "\\", "n": "\n", "t": "\t", "r": "\r"}

MAX_CHARACTERS, MAX_LITERAL_BYTES = 1 << 18, 1 << 10
"""Of a guide and of one of its literals, which hold up whatever else is decided while they are read
and spelled. Those of the largest policy are smaller."""


def read_literals(guide: str) -> tuple[bytes, ...]:
    """The literals of a guide in UTF-8, in order, without repetitions.

    Raises:
        RefusedError: the guide is anything but such an alternation, or too large. The text gives
            the position, not the content.
    """
    if len(guide) > MAX_CHARACTERS:
        raise RefusedError(
            f"guided_decoding_guide has {len(guide)} characters; must have {MAX_CHARACTERS} at most"
        )
    rule = _RULE.match(guide)
    if rule is None:
        raise RefusedError('guided_decoding_guide must begin with "root ::= "')
    literals: list[bytes] = []
    position = rule.end()
    while True:
        literal = _LITERAL.match(guide, position)
        if literal is None:
            raise RefusedError(
                f"guided_decoding_guide: expected a quoted literal at character {position}; only "
                "an alternation of literals is supported"
            )
        literals.append(_unescape(literal.group(1), position))
        position = literal.end()
        separator = _SEPARATOR.match(guide, position)
        if separator is None:
            break
        position = separator.end()
    if guide[position:].strip():
        raise RefusedError(
            f"guided_decoding_guide: expected '|' or the end at character {position}; only an "
            "alternation of literals is supported"
        )
    return tuple(dict.fromkeys(literals))


def _unescape(body: str, position: int) -> bytes:
    def replace(match: re.Match[str]) -> str:
        escape = match.group(1)
        if len(escape) == 5:
            return chr(int(escape[1:], 16))
        if escape not in _PLAIN:
            raise RefusedError(
                f"guided_decoding_guide: unsupported escape in the literal at character {position}"
            )
        return _PLAIN[escape]

    text = _ESCAPE.sub(replace, body)
    if not text:
        raise RefusedError(f"guided_decoding_guide: empty literal at character {position}")
    # A code point beyond U+FFFF is written as two \u escapes, a surrogate pair.
    try:
        literal = text.encode("utf-16", "surrogatepass").decode("utf-16").encode()
    except UnicodeDecodeError as error:
        raise RefusedError(
            f"guided_decoding_guide: lone surrogate in the literal at character {position}"
        ) from error
    if len(literal) > MAX_LITERAL_BYTES:
        raise RefusedError(
            f"guided_decoding_guide: the literal at character {position} has {len(literal)} bytes; "
            f"must have {MAX_LITERAL_BYTES} at most"
        )
    return literal
