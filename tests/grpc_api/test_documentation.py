"""docs/api.md says what the code does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from sidecar.core.errors import ErrorCode
from sidecar.grpc_api.convert.requests import RequestLimits
from sidecar.grpc_api.health import ROUTING_MODEL
from sidecar.grpc_api.routing_service import MAX_BATCH, Concurrency
from sidecar.observability.metrics import Metrics, SidecarState
from sidecar.policies import MAX_BYTES
from sidecar.policies.rules import MAX_EXAMPLES, MAX_ROUTES, MAX_TEXT

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "api.md").read_text()
PROTO = ROOT / "proto" / "llmrouter" / "v1"


def rows(first_cell: str) -> dict[str, list[str]]:
    """Tables by the content of the first cell in code style."""
    lines = re.findall(rf"^\| `({first_cell})` \|(.*)\|$", TEXT, re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in lines}


def test_every_error_is_listed_with_its_status() -> None:
    listed = {name: cells[0] for name, cells in rows("[A-Z_]+").items()}

    assert listed == {code.name: code.grpc_status for code in ErrorCode}


def test_every_metric_of_ours_is_listed_with_its_labels() -> None:
    metrics = Metrics()
    metrics.watch(lambda: SidecarState(True, "", "", "", prices_oldest="2026-08-21"))
    existing = {family.name for family in metrics.registry.collect()}
    ours = {name for name in existing if name.startswith("llmrouter_")}

    listed = {re.sub("_(total|info)$", "", name) for name in rows("llmrouter_[a-z_]+")}

    assert listed == {re.sub("_info$", "", name) for name in ours}


@pytest.mark.parametrize(
    "said",
    [
        f"{RequestLimits().max_messages:,} messages",
        f"{RequestLimits().max_parts:,} parts",
        f"{RequestLimits().max_content_bytes // 1024 // 1024} MiB",
        f"up to {MAX_BATCH} requests",
        f"At most {Concurrency().stream} are in flight",
        f"`{ROUTING_MODEL}`",
    ],
)
def test_limits_and_names_are_those_of_the_code(said: str) -> None:
    assert said in TEXT


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("routing", f"{RequestLimits().max_messages:,} messages, {RequestLimits().max_parts:,} "),
        ("routing", f"{RequestLimits().max_content_bytes // 1024 // 1024} MiB in all"),
        ("routing", f"1 to {MAX_BATCH} requests"),
        ("policy", f"at most {MAX_BYTES // 1024} KiB"),
        ("policy", f"at most {MAX_ROUTES}."),
        ("policy", f"At most {MAX_EXAMPLES}, "),
        ("policy", f"at most {MAX_TEXT:,} characters"),
    ],
)
def test_limits_in_the_api_are_those_of_the_code(file: str, said: str) -> None:
    text = (PROTO / f"{file}.proto").read_text()

    assert said in " ".join(text.replace("//", " ").split())


def logged() -> Iterator[tuple[str, str]]:
    """Each entry that the code logs, and its level."""
    for path in (ROOT / "sidecar").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="_log"), attr=level),
                    args=[ast.Constant(value=str(entry)), *_],
                ):
                    yield entry, "error" if level == "exception" else level


def test_every_entry_of_the_log_is_listed_with_its_level() -> None:
    table = TEXT[TEXT.index("| Entry | Level | |") : TEXT.index("`policy_digest` tells")]
    listed = {
        name: level
        for names, level in re.findall(r"^\| (`.*?`) \| (.*?) \|", table, re.MULTILINE)
        for name in re.findall("`(.*?)`", names)
    }
    found = set()
    for entry, level in logged():
        # What follows the dots is left out of the page.
        names = [name for name in listed if fnmatchcase(entry, name.replace("…", "*"))]
        assert names, entry
        assert level in listed[names[0]], entry
        found.update(names)

    # That one is made for each decision, by a name of its own.
    assert set(listed) - found == {"decision"}
