"""What may stand in the note of a change, whoever takes it: the API or a command."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sidecar.core.errors import FieldViolation

MAX_AUTHOR = 200
MAX_MESSAGE = 2000

# Of halves of a character, as arguments of a command that are no UTF-8 have them, none can be kept.
_UNWANTED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def note_violations(author: str, message: str) -> Iterator[FieldViolation]:
    """What is wrong with `author` and `message`, the fields so named."""
    if len(author) > MAX_AUTHOR or (author and not author.isprintable()):
        yield FieldViolation(
            "author", f"must have at most {MAX_AUTHOR} characters, all of them printable"
        )
    if len(message) > MAX_MESSAGE or _UNWANTED.search(message):
        yield FieldViolation(
            "message",
            f"must have at most {MAX_MESSAGE} characters and no control characters",
        )
