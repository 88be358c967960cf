"""A wall clock that jumps must change no deadline, time to live or measurement."""

from __future__ import annotations

import ast
from pathlib import Path

import sidecar

PACKAGE = Path(sidecar.__file__).parent

READERS = {
    "policies/prices.py": "how many days old prices are",
    "policies/stores/contract.py": "when a revision was written, for people",
    "policies/stores/files.py": "numbers of revisions go on after a restart",
    "observability/recent.py": "when a decision was made, for people",
    "observability/tracing.py": "when a span began, for those who collect it",
    "bench/envoy.py": "a text that no earlier run asked",
}
"""And what for."""

_WALL = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow")}


def wall_clock_calls(source: str) -> list[int]:
    """Lines that read the wall clock."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name | ast.Attribute)
        and (_last(node.value), node.attr) in _WALL
    ]


def _last(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


def test_the_wall_clock_is_read_for_nothing_that_waits_or_measures() -> None:
    readers = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if "_generated" not in path.parts and wall_clock_calls(path.read_text(encoding="utf-8"))
    }
    assert readers == set(READERS)


def test_a_reader_of_the_wall_clock_is_found() -> None:
    assert wall_clock_calls("import time\nend = time.time() + 1") == [2]
    assert wall_clock_calls("import datetime\ndatetime.datetime.now()") == [2]
    assert wall_clock_calls("import time\nend = time.monotonic() + 1") == []
