"""Decisions read back from a log."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from datetime import datetime
from io import BufferedIOBase, BufferedReader
from typing import Annotated, Any

import msgspec
from msgspec import Meta

MAX_LINE = 1024 * 1024
"""Bytes of a line that are read: no entry of the sidecar's is as long, and what is no log may have
no line ends."""

_MARK = b'"decision_id"'
_GZIP = b"\x1f\x8b"

_BEGINNINGS = 10
"""Braces at which an entry may begin: what a collector puts before it may have some itself."""

_Name = Annotated[str, Meta(max_length=1024)]
_Part = Annotated[float, Meta(ge=0, le=1)]


class LoggedCandidate(msgspec.Struct, gc=False):
    """A candidate of an entry."""

    route: _Name


class LoggedDecision(msgspec.Struct, gc=False):
    """What is counted of an entry `decision`; its other keys are passed over."""

    event: str
    timestamp: Annotated[datetime, Meta(tz=True)]
    source: str
    reason: str
    route: _Name
    model: _Name
    policy: _Name
    ms: Annotated[float, Meta(ge=0)]
    confidence: _Part | None = None
    asked: str = ""
    candidates: list[LoggedCandidate] = []


class _Kind(msgspec.Struct):
    event: Any = None


class LogError(Exception):
    """A log cannot be read. The text names it, the line and what to do, and holds no message
    content."""


class LogReader:
    """Reads logs, one after the other, a line at a time.

    Decisions stand among other entries and those of other programs, behind whatever `kubectl logs
    --prefix` or a collector has put before the JSON.

    Attributes:
        lines: read so far.
        decisions: found in them.
        unreadable: lines that hold the key `decision_id` and are no JSON, as one that was cut; and
            compressed logs that end too early.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.decisions = 0
        self.unreadable = 0

    def read(self, log: BufferedReader, name: str) -> Iterator[LoggedDecision]:
        """The decisions of a log, which may be compressed with gzip.

        Args:
            name: for errors.

        Raises:
            LogError: it cannot be read, or one of its decisions lacks what is counted.
        """
        number = 0
        try:
            for number, line in enumerate(_lines(log), 1):
                self.lines += 1
                if _MARK in line and (found := self._decision(line, name, number)) is not None:
                    self.decisions += 1
                    yield found
        except EOFError:
            self.unreadable += 1
        except (gzip.BadGzipFile, zlib.error):
            where = f"after line {number}" if number else "from its beginning"
            raise LogError(
                f"{name}: its gzip data is damaged {where}; give what can be unpacked: "
                "gzip -dc FILE | sidecar report -"
            ) from None
        except OSError as error:
            raise LogError(f"{name}: cannot be read: {error.strerror}") from None

    def _decision(self, line: bytes, name: str, number: int) -> LoggedDecision | None:
        begins, mark = max(line.find(b"{"), 0), line.find(_MARK)
        for _ in range(_BEGINNINGS):
            try:
                return _decoded(line[begins:], f"{name}:{number}")
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                begins = line.find(b"{", begins + 1, mark)
            if begins < 0:
                break
        self.unreadable += 1
        return None


_EVENT = "decision"
_DECISIONS = msgspec.json.Decoder(LoggedDecision)
_KINDS = msgspec.json.Decoder(_Kind)


def _decoded(document: bytes, where: str) -> LoggedDecision | None:
    """None if it is no decision.

    Raises:
        LogError: it is one, and lacks what is counted.
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: it is no JSON.
    """
    try:
        found = _DECISIONS.decode(document)
    except msgspec.ValidationError as error:
        # Raised at the first wrong value: what comes after it may be no JSON.
        if not _is_decision(document):
            return None
        raise LogError(
            f"{where}: cannot be counted as a decision: {error}; take the line out if "
            "another program wrote it, or read the log with the version that did"
        ) from None
    return found if found.event == _EVENT else None


def _is_decision(document: bytes) -> bool:
    try:
        return bool(_KINDS.decode(document).event == _EVENT)
    except msgspec.ValidationError:
        return False


def _lines(log: BufferedReader) -> Iterator[bytes]:
    """Of a line that is too long, the beginning."""
    unpacked: BufferedIOBase = log
    if log.peek(len(_GZIP)).startswith(_GZIP):
        unpacked = gzip.GzipFile(fileobj=log)
    begins = True
    while piece := unpacked.readline(MAX_LINE):
        if begins:
            yield piece
        begins = piece.endswith(b"\n")
