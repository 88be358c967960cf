"""docs/scaling.md and the command that makes its tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from sidecar.capacity.tables import TABLES
from sidecar.cli import cli

DOCUMENT = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()


@pytest.mark.parametrize("name", TABLES)
def test_the_document_has_the_table_that_the_command_prints(name: str) -> None:
    result = CliRunner().invoke(cli, ["capacity", "table", name])
    assert result.exit_code == 0
    assert result.output.strip() in DOCUMENT, f"run `sidecar capacity table {name}` and paste it"
    assert f"`sidecar capacity table {name}`" in DOCUMENT


def test_simulate_takes_a_measured_service_time() -> None:
    arguments = ["capacity", "simulate", "--service-ms", "12", "--per-second", "20"]
    result = CliRunner().invoke(cli, arguments)
    assert "service time as given: 12.00 ms" in result.output
    assert "p99" in result.output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--per-second", "100000"], "1 x L40S cannot keep up with 100000 a second"),
        (["--prompt", "100", "--reused", "100"], "--reused 100 must be less than --prompt 100"),
    ],
)
def test_what_cannot_be_simulated(arguments: list[str], reason: str) -> None:
    result = CliRunner().invoke(cli, ["capacity", "simulate", *arguments])
    assert result.exit_code == 2
    assert reason in result.output
