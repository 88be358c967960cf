"""`sidecar report`: the command around the counting."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from sidecar.cli import cli
from sidecar.cli.report_view import print_report
from sidecar.core.shown import is_shown
from tests.observability.log_lines import OTHER_ENTRY, line

HOSTILE = "\x1b]0;title\x07\x9b31m\u202eback"
CATALOG = """\
apiVersion: llmrouter.v1
kind: ModelCatalog
models:
  - {id: acme/small, upstream_model: small, prices: {input: 1, output: 2}}
  - {id: acme/large, upstream_model: large, prices: {input: 10, output: 40}}
  - {id: acme/unpriced, upstream_model: unpriced}
"""
POLICY = """\
---
apiVersion: llmrouter.v1
kind: Policy
name: support
default: {models: [acme/small]}
routes:
  - {name: billing, description: questions about invoices, models: [acme/large, acme/small]}
"""
LOG = (
    line(asked="encoder")
    + line(asked="model", source="model")
    + line(source="fallback", reason="no_match", route="", confidence=0.4)
    + line(model="acme/unpriced")
    + OTHER_ENTRY
    + line()[:-30]
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "sidecar.log"
    path.write_bytes(LOG)
    return path


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.yaml"
    path.write_text(CATALOG + POLICY)
    return path


def report(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


def counted(tmp_path: Path, *arguments: str | Path) -> dict[str, Any]:
    out = tmp_path / "out.json"
    result = report(*arguments, "--json", out)
    assert result.exit_code == 0, result.output
    read: dict[str, Any] = json.loads(out.read_text())
    return read


def test_a_report_says_what_was_decided(log: Path) -> None:
    result = report(log)
    assert result.exit_code == 0, result.output
    lines = [" ".join(each.split()) for each in result.output.splitlines()]
    assert lines[0] == "4 decisions in 6 lines; 2 of them no decisions, 1 cut or unreadable"
    for expected in (
        "namespaces/default/policies/support",
        "decisions 4, 2026-08-01 10:00:00 UTC to 2026-08-01 10:00:00 UTC",
        "source model 3 (75.0%), fallback 1 (25.0%)",
        "fallbacks no_match 1 (25.0%)",
        "confidence 0.75, mean of 3 with a route",
        "encoder alone 1 of 2 that the routing model decided (50.0%)",
        "ms p50 10, p95 10, p99 10",
        "billing 3 75.0% 0.75 - 2 acme/small",
        "1 acme/unpriced",
        "(default) 1 25.0% - - 1 acme/small",
    ):
        assert expected in lines
    assert "dollars" not in result.output


def test_with_a_catalog_it_says_what_routing_saved(log: Path, catalog: Path) -> None:
    result = report(log, "--catalog", catalog, "--tokens", "1000:300")
    text = " ".join(result.output.split())
    for expected in (
        "mean of 3 decisions, each counted alike; without 1 of acme/unpriced, whose price is",
        "as routed 1.00 2.00 1.60",
        "always acme/large 10.00 40.00 22.00",
        "ratio 0.10 0.05 0.07",
        "baseline: the most expensive model that the policy names or that was chosen",
        "an assumption, 1000 input and 300 output tokens each",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("arguments", "baseline"),
    [((), "acme/large"), (("--baseline", "acme/small"), "acme/small")],
)
def test_the_baseline_can_be_named(
    log: Path, catalog: Path, tmp_path: Path, arguments: tuple[str, ...], baseline: str
) -> None:
    found = counted(tmp_path, log, "--catalog", catalog, *arguments)
    (policy,) = found["policies"].values()
    assert policy["price"]["baseline"] == found["price"]["baseline"] == baseline


@pytest.mark.parametrize("name", ["support", "namespaces/default/policies/support", "inline"])
def test_one_policy_is_counted(tmp_path: Path, name: str) -> None:
    log = tmp_path / "sidecar.log"
    log.write_bytes(line() + line(policy="inline") + line(policy="namespaces/a/policies/support"))
    found = counted(tmp_path, log, "--policy", name)
    assert found["log"] == {
        "lines": 3,
        "decisions": 3,
        "skipped": 0,
        "unreadable": 0,
        "other_policies": 2,
    }
    assert [each.rpartition("/")[2] for each in found["policies"]] == [name.rpartition("/")[2]]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_logs_are_read_one_after_the_other_and_from_standard_input(
    log: Path, tmp_path: Path, packed: bool
) -> None:
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "sidecar.cli", "report", log, "-", "--json", out],
        input=gzip.compress(LOG) if packed else LOG,
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(b"8 decisions in 12 lines; ")
    assert json.loads(out.read_text())["log"]["decisions"] == 8


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "Missing argument 'LOG...'"),
        (["/nowhere.log"], 2, "'/nowhere.log' does not exist"),
        (["/"], 2, "'/' is a directory"),
        (["LOG", "--tokens", "1000:300"], 2, "--baseline and --tokens need --catalog"),
        (["LOG", "--baseline", "acme/small"], 2, "--baseline and --tokens need --catalog"),
        (["-", "--catalog", "-"], 2, "LOG and --catalog cannot both be -"),
        (["LOG", "--catalog", "CATALOG", "--tokens", "1000"], 2, "'1000' must be the input and"),
        (["LOG", "--catalog", "CATALOG", "--tokens", "-1:3"], 2, "'-1:3' must be the input and"),
        (["LOG", "--policy", "No such"], 2, "names no policy; give an id"),
        (["LOG", "--policy", "other"], 1, "no decision of namespaces/default/policies/other in"),
        (["LOG", "--json", "LOG"], 2, "would be written over"),
        (["LOG", "--catalog", "CATALOG", "--json", "CATALOG"], 2, "would be written over"),
        (["LOG", "--json", "/no/such/x.json"], 2, "the folder /no/such does not exist"),
        (["LOG", "--catalog", "LOG"], 1, "--catalog has errors; nothing was counted"),
        (
            ["LOG", "--catalog", "CATALOG", "--baseline", "acme/none"],
            1,
            "acme/none is not there; models with a price in --catalog: acme/large, acme/small",
        ),
        (
            ["LOG", "--catalog", "CATALOG", "--baseline", "acme/unpriced"],
            1,
            "acme/unpriced has no input and output price there; models with",
        ),
        (["CATALOG"], 1, "no decision in 13 lines; a sidecar logs them as JSON with"),
        (["CUT"], 1, "no decision in 1 line, 1 cut or unreadable; a sidecar"),
        (["LOG", "BAD"], 1, "bad.log:2: cannot be counted as a decision: Expected `float`"),
    ],
)
def test_what_is_wrong_is_said(
    log: Path, catalog: Path, tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    bad = tmp_path / "bad.log"
    bad.write_bytes(b"\n" + line(ms="long"))
    cut = tmp_path / "cut.log"
    cut.write_bytes(line()[:-20])
    paths = {"LOG": log, "CATALOG": catalog, "BAD": bad, "CUT": cut}
    result = report(*(paths.get(each, each) for each in arguments))
    assert result.exit_code == status
    assert message in " ".join(result.output.split())
    assert log.read_bytes() == LOG


def test_names_in_a_log_are_not_obeyed(tmp_path: Path, catalog: Path) -> None:
    log = tmp_path / "sidecar.log"
    log.write_bytes(
        line(policy=HOSTILE, route=HOSTILE, model=HOSTILE, source=HOSTILE)
        + line(policy=HOSTILE, source="override", model=f"{HOSTILE}[bold]")
    )
    shown = io.StringIO()
    found = counted(tmp_path, log, "--catalog", catalog)
    print_report(found, Console(file=shown, width=500))
    assert "\\x1b]0;title" in shown.getvalue()
    assert "[bold]" in shown.getvalue()
    assert all(map(is_shown, shown.getvalue().split("\n")))


def test_of_many_policies_the_largest_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    log = tmp_path / "sidecar.log"
    names = [f"namespaces/n{number}/policies/p" for number in range(25)]
    log.write_bytes(b"".join(line(policy=name) for name in names) + line(policy=names[-1]))
    result = report(log)
    assert f"\n{names[-1]}\n" in result.output
    assert f"\n{names[-2]}\n" not in result.output
    assert "policies not shown: 5; --policy NAME shows one, --json has all" in result.output
    assert len(counted(tmp_path, log)["policies"]) == 25
