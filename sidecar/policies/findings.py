"""What is wrong, or doubtful, with a policy or a catalog, and where."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

_SHOWN_CHARS = 60
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class Severity(StrEnum):
    ERROR = "error"
    """The policy is refused."""
    WARNING = "warning"
    """The policy works, but probably not as meant."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Args:
        path: of the value within its document, spelled as in YAML: `routes[2].models[0]`; empty
            where the whole document or file is meant.
        message: what is wrong with which value, and what to do.
        file: as given by the caller; empty for text that came without one.
        line: counts from 1; 0 where no line is known.
    """

    severity: Severity
    path: str
    message: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        """`file:line: severity: path: message`, without the parts that are not known."""
        place = self.file
        if self.line:
            place = f"{place}:{self.line}" if place else f"line {self.line}"
        return ": ".join(part for part in (place, self.severity, self.path, self.message) if part)


def findings_as_plain(findings: Iterable[Finding]) -> list[dict[str, str | int]]:
    """For JSON."""
    return [
        {
            "severity": finding.severity.value,
            "file": finding.file,
            "line": finding.line,
            "path": finding.path,
            "message": finding.message,
        }
        for finding in findings
    ]


def error(path: str, message: str, line: int = 0) -> Finding:
    return Finding(Severity.ERROR, path, message, line=line)


def warning(path: str, message: str, line: int = 0) -> Finding:
    return Finding(Severity.WARNING, path, message, line=line)


def has_errors(findings: Iterable[Finding]) -> bool:
    return any(finding.severity is Severity.ERROR for finding in findings)


def errors_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors, then warnings; each file by file in the order given, and by line."""
    findings = tuple(findings)
    files = list(dict.fromkeys(finding.file for finding in findings))
    order = {file: number for number, file in enumerate(files)}

    def key(finding: Finding) -> tuple[bool, int, int]:
        return finding.severity is not Severity.ERROR, order[finding.file], finding.line

    return tuple(sorted(findings, key=key))


def member(path: str, key: str) -> str:
    """Path of `key` in the mapping at `path`."""
    if not _PLAIN_KEY.fullmatch(key):
        return f"{path}[{quoted(key)}]"
    return f"{path}.{key}" if path else key


def item(path: str, index: int) -> str:
    """Path of the entry `index` in the list at `path`."""
    return f"{path}[{index}]"


def self_and_ancestors(path: str) -> Iterator[str]:
    """`path`, then what it stands in, outwards; the document itself (``) not included."""
    while path:
        yield path
        path = path[: max(path.rfind("."), path.rfind("["), 0)]


def shortened(text: str) -> str:
    """`text`, cut to a length that can be read."""
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"


def quoted(value: str) -> str:
    """`value` in double quotes, shortened, non-printing characters escaped."""
    shown = json.dumps(shortened(value), ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in shown)


def spelled(value: str) -> str:
    """`quoted`, for names that are ASCII: of any other character, which may look like the one that
    was meant, the number."""
    other = next((char for char in value if not char.isascii()), None)
    return quoted(value) if other is None else f"{quoted(value)} (with U+{ord(other):04X})"


def closest(value: str, known: Iterable[str]) -> str | None:
    """The known spelling that `value` was probably meant to be."""
    return _closest(value, tuple(known))


# A model that has left the catalog is missed by thousands of routes, and to compare its name with
# all others takes a millisecond.
@functools.lru_cache(128)
def _closest(value: str, known: tuple[str, ...]) -> str | None:
    spellings = {name.lower(): name for name in known}
    match = difflib.get_close_matches(value.lower(), spellings, n=1, cutoff=0.6)
    return spellings[match[0]] if match else None
