"""docs/scaling.md and the command that makes its tables."""

from __future__ import annotations

from collections.abc import Iterable
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


def span(values: Iterable[float], digits: int = 1) -> str:
    found = sorted(values)
    return f"{found[0]:.{digits}f} to {found[-1]:.{digits}f}"


def test_what_the_document_reads_off_its_tables_is_in_them() -> None:
    lines = TABLES["roofline"]().splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    # GPU, precision, prompt, answer -> milliseconds as assumed: computed anew, and with reuse.
    assumed = {tuple(row[:4]): (float(row[5]), float(row[7])) for row in cells}

    def against(place: int, word: str, other: str, column: int) -> list[float]:
        """How many times as long with `word` in that place as with `other`."""
        return [
            times[column] / assumed[*key[:place], other, *key[place + 1 :]][column]
            for key, times in assumed.items()
            if key[place] == word
        ]

    by_reuse: dict[tuple[str, ...], list[float]] = {key[2:]: [] for key in assumed}
    for key, (anew, reused) in assumed.items():
        by_reuse[key[2:]].append(anew / reused)
    labels = [*against(3, "8 tokens", "label", 0), *against(3, "8 tokens", "label", 1)]
    fp8 = [100 * (1 - 1 / times) for times in against(1, "bf16", "fp8", 1)]
    short = max(*by_reuse["300", "label"], *by_reuse["300", "8 tokens"])
    text = " ".join(DOCUMENT.split())
    assert f"largest gain, {span(labels)} times" in text
    assert f"Reuse gains at most {short:.1f} times at 300 tokens" in text
    assert f"{span(by_reuse['2000', '8 tokens'])} times with eight tokens of answer" in text
    assert f"{span(by_reuse['2000', 'label'])} times with a label" in text
    assert f"FP8 saves {span(fp8, 0)} % with reuse" in text


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
