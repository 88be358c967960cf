"""Decisions are found in whatever stands around them, and a log that cannot be read says where."""

from __future__ import annotations

import gzip
import io

import pytest

from sidecar.observability.logged import MAX_LINE, LogError, LoggedDecision, LogReader
from tests.observability.log_lines import OTHER_ENTRY, line


def read(log: bytes) -> tuple[LogReader, list[LoggedDecision]]:
    reader = LogReader()
    found = list(reader.read(io.BufferedReader(io.BytesIO(log)), "some.log"))
    assert reader.decisions == len(found)
    return reader, found


def noise() -> bytes:
    """What hardly compresses, so that a piece of it is not the whole."""
    return b"".join(b"%032x\n" % (7**n % 2**128) for n in range(20_000))


@pytest.mark.parametrize(
    ("log", "lines", "decisions", "unreadable"),
    [
        (b"", 0, 0, 0),
        (line(), 1, 1, 0),
        (line().rstrip(), 1, 1, 0),
        (line() + line(), 2, 2, 0),
        (line() + OTHER_ENTRY + b"I1128 from Triton\n\n[1]\n\xff\n", 6, 1, 0),
        (b"[pod/sidecar-0/sidecar] " + line(), 1, 1, 0),
        (b'{pod="sidecar-0"} {} ' + line(), 1, 1, 0),
        (b'{pod="sidecar-0"} ' + line()[:-20], 1, 0, 1),
        (b"{" * 1000 + line(), 1, 0, 1),
        (line()[:20] + line(), 1, 1, 0),
        (b'{"event": "decision", "who": "another program"}\n', 1, 0, 0),
        (b'["decision_id", "decision"]\n', 1, 0, 0),
        (line(event="appeal", ms="long"), 1, 0, 0),
        (line() + line()[:-20], 2, 1, 1),
        (line()[:-20] + b"\n" + line(), 2, 1, 1),
        (line(ms="long")[:-20] + b"\n" + line(), 2, 1, 1),
        (line(ms="long").replace(b'"event": "decision"', b'"event": "\xff"'), 1, 0, 1),
        (line(ms="long")[:-2] + b', "x": ' + b"[" * 100_000 + b"\n", 1, 0, 1),
        (line().replace(b"billing", b"\xff"), 1, 0, 1),
        (b'{"decision_id": ' + b"[" * 100_000 + b"\n", 1, 0, 1),
        (b" " * (3 * MAX_LINE) + line() + line(), 2, 1, 0),
        (line(text="x" * 2 * MAX_LINE) + line(), 2, 1, 1),
        (gzip.compress(line() + line()), 2, 2, 0),
        (gzip.compress(line()) + gzip.compress(line()), 2, 2, 0),
        (gzip.compress(line() + noise())[:-100], 18_000, 1, 1),
    ],
    ids=[
        "empty",
        "one",
        "without the last line end",
        "two",
        "among others",
        "behind a prefix",
        "behind a prefix with braces",
        "behind a prefix with braces, and cut",
        "behind too many braces",
        "behind one that was cut, on its line",
        "decision of another program",
        "no object",
        "another event with the same keys",
        "the last is cut",
        "one is cut",
        "one is cut behind a wrong value",
        "not UTF-8 behind a wrong value",
        "nested too deeply behind a wrong value",
        "not UTF-8",
        "nested too deeply",
        "behind a line that is too long",
        "too long itself",
        "gzip",
        "gzip, appended to",
        "gzip, cut",
    ],
)
def test_decisions_are_found_and_the_rest_is_counted(
    log: bytes, lines: int, decisions: int, unreadable: int
) -> None:
    reader, found = read(log)
    assert (len(found), reader.unreadable) == (decisions, unreadable)
    assert reader.lines == lines if lines < 18_000 else reader.lines > lines


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (OTHER_ENTRY + line(model=None), "some.log:2: cannot be counted as a decision: .*`model`"),
        (line(ms="my secret"), r"some.log:1: .*\$.ms"),
        (line(ms=-1), r"some.log:1: .*\$.ms"),
        (line(confidence=1.5), r"some.log:1: .*\$.confidence"),
        (line(timestamp="2026-08-01T10:00:00"), r"some.log:1: .*timezone.*\$.timestamp"),
        (line(route="r" * 2000), r"some.log:1: .*\$.route"),
        (b"\x1f\x8bthis is no gzip", "some.log: its gzip data is damaged from its beginning; give"),
        (
            gzip.compress(line()) + gzip.compress(line())[:10] + b"\xff" * 100,
            "some.log: its gzip data is damaged after line 1; give",
        ),
    ],
)
def test_what_cannot_be_counted_is_named_and_not_quoted(log: bytes, message: str) -> None:
    with pytest.raises(LogError, match=message) as raised:
        read(log)
    assert "secret" not in str(raised.value)


def test_lines_are_counted_over_all_logs_and_named_within_their_own() -> None:
    reader, _ = read(line())
    with pytest.raises(LogError, match=r"next\.log:1:"):
        list(reader.read(io.BufferedReader(io.BytesIO(line(ms="x"))), "next.log"))
    assert reader.lines == 2
