"""Results of an evaluation on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidecar.core.decision import Reason
from sidecar.core.shown import shown
from sidecar.evaluation.results import Document, interrupted

_COLUMNS = {
    "cases": "cases",
    "turn_accuracy": "turn",
    "span_accuracy": "span",
    "conversation_accuracy": "conv.",
    "other_accuracy": "other",
    "many_routes_accuracy": "20+ routes",
    "ece": "ECE",
}
_TOO_LATE = {Reason.DEADLINE_EXCEEDED, Reason.WARMING}
"""The second where the prefix of a long list of routes took all of the time."""
_FRACTIONS = {"ece"}
"""Not shares of cases, so not shown in percent."""


def print_results(results: Document, console: Console | None = None) -> None:
    """A summary; everything is in the JSON document."""
    console = console or Console()
    console.print(_table(results))
    if not results["run"]["complete"]:
        console.print(Text(f"\n{interrupted(results)}", style="yellow"))
    console.print(_facts(results))


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _table(results: Document) -> Table:
    view = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    view.add_column("file", no_wrap=True)
    for heading in _COLUMNS.values():
        view.add_column(heading, justify="right", no_wrap=True)
    files: Mapping[str, Any] = results["files"]
    for name, metrics in files.items():
        view.add_row(Text(shown(name)), *_cells(metrics))
    view.add_row("overall", *_cells(results["overall"]), style="bold")
    for name, baseline in results["baselines"].items():
        view.add_row(f"  {name}", *_cells(baseline["overall"]), style="dim")
    return view


def _cells(metrics: Mapping[str, Any]) -> list[str]:
    cells = []
    for key in _COLUMNS:
        value = metrics[key]
        if value is None or key == "cases":
            cells.append("-" if value is None else str(value))
        else:
            cells.append(f"{value:.3f}" if key in _FRACTIONS else percent(value))
    return cells


def _facts(results: Document) -> Table:
    run, overall = results["run"], results["overall"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row()
    low, high = overall["turn_accuracy_low"], overall["turn_accuracy_high"]
    grid.add_row(
        "turn accuracy",
        f"{percent(overall['turn_accuracy'])} (95 % interval {percent(low)} to {percent(high)}); "
        f"mean of the families {percent(overall['macro_turn_accuracy'])}",
    )
    grid.add_row(
        "coverage",
        ", ".join(f"{percent(overall[f'coverage_{p}'])} at {p} % precision" for p in (90, 95, 99)),
    )
    grid.add_row("latency", _latency(overall["latency_ms"]))
    reasons = ", ".join(f"{name} {percent(part)}" for name, part in overall["reasons"].items())
    grid.add_row("reasons", reasons)
    if overall["undecided"]:
        text = f"{overall['undecided']} cases were not decided, and count as wrong"
        if _TOO_LATE & overall["reasons"].keys():
            text += "; where time was too short, ask a sidecar with a longer decision_budget_ms"
        grid.add_row("undecided", Text(text, style="yellow"))
    for name, found in results["robustness"].items():
        grid.add_row(name.replace("_", " "), _robustness(found))
    if results["calibration"] is not None:
        grid.add_row("calibration", _calibration(results["calibration"]))
    decided_by = f"{run['routing_model']}, {run['prompt_format']}"
    grid.add_row("decided by", Text(shown(decided_by)))
    grid.add_row("took", f"{run['seconds']:.0f} s, {run['concurrency']} at once")
    return grid


def _latency(latency: Mapping[str, float] | None) -> str:
    if latency is None:
        return "-"
    return ", ".join(f"{name} {ms:.0f} ms" for name, ms in latency.items())


def _robustness(found: Mapping[str, Any]) -> str:
    cost = found["accuracy_cost"]
    points = "-" if cost is None else f"{cost * 100:.1f} points"
    return (
        f"turn accuracy {percent(found['turn_accuracy'])}, cost {points}; same decision in "
        f"{percent(found['same_decision'])} of {found['compared_cases']} cases, and in "
        f"{percent(found['confident_same_decision'])} of the {found['confident_cases']} decided "
        "with confidence ≥ 0.8"
    )


def _calibration(found: Mapping[str, Any]) -> str:
    temperature = found["temperature"]
    new = f"temperature {temperature:.4g}" if temperature is not None else "the temperature"
    return (
        f"{new} (now times {found['factor']:.4g}): ECE {found['ece_before']:.3f} becomes "
        f"{found['ece_after']:.3f}, loss {found['nll_before']:.4f} becomes {found['nll_after']:.4f}"
    )
