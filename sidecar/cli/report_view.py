"""What a log of decisions says, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidecar.cli.eval_view import percent
from sidecar.cli.findings_view import count
from sidecar.cli.printing import plain
from sidecar.core.decision import Source
from sidecar.observability.report import Document

_SHOWN = 20
"""Policies that are told of; all are in the JSON document."""


def print_report(report: Document, console: Console | None = None) -> None:
    """For people: whatever the JSON document has, but reasons that are no fallback's."""
    console = console or Console()
    _line(console, _read(report["log"]))
    policies: Mapping[str, Document] = report["policies"]
    for name, policy in list(policies.items())[:_SHOWN]:
        console.print()
        console.print(plain(name, "bold"), soft_wrap=True)
        console.print(_facts(policy))
        console.print()
        console.print(_routes(policy))
        if "price" in policy:
            console.print()
            _print_price(console, policy["price"])
    if len(policies) > _SHOWN:
        more = len(policies) - _SHOWN
        _line(console, f"\npolicies not shown: {more}; --policy NAME shows one, --json has all")
    if len(policies) > 1 and "price" in report:
        console.print()
        console.print(Text("all these policies", "bold"))
        _print_price(console, report["price"])


def _line(console: Console, text: str) -> None:
    console.print(plain(text), overflow="fold")


def _read(log: Document) -> str:
    read = f"{count(log['decisions'], 'decision')} in {count(log['lines'], 'line')}"
    rest = [f"{log['skipped']} of them no decisions"]
    if log["other_policies"]:
        rest.append(f"{log['other_policies']} of other policies")
    if log["unreadable"]:
        rest.append(f"{log['unreadable']} cut or unreadable")
    return f"{read}; {', '.join(rest)}"


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _facts(policy: Document) -> Table:
    grid, decisions = _grid(), policy["decisions"]
    grid.add_row("decisions", f"{decisions}, {_time(policy['first'])} to {_time(policy['last'])}")
    grid.add_row("source", _shares(policy["sources"], decisions))
    fallbacks = policy["reasons"].get(Source.FALLBACK)
    if fallbacks:
        grid.add_row("fallbacks", _shares(fallbacks, decisions))
    sure = policy["confidence"]
    if sure["decisions"]:
        grid.add_row("confidence", f"{sure['mean']:.2f}, mean of {sure['decisions']} with a route")
    asked = policy["by_routing_model"]
    if asked is not None:
        alone = asked["encoder_alone"]
        grid.add_row(
            "encoder alone",
            f"{alone} of {asked['decisions']} that the routing model decided "
            f"({percent(alone / asked['decisions'])})",
        )
    grid.add_row("ms", ", ".join(f"{name} {ms:g}" for name, ms in policy["ms"].items()))
    return grid


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S %Z}"


def _shares(counts: Mapping[str, int], of: int) -> str:
    return ", ".join(f"{name} {number} ({percent(number / of)})" for name, number in counts.items())


def _routes(policy: Document) -> Table:
    view = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    view.add_column("route", overflow="fold")
    for heading in ("decisions", "share", "conf.", "unsure"):
        view.add_column(heading, justify="right", no_wrap=True)
    view.add_column("models", overflow="fold")
    for name, route in policy["routes"].items():
        number, sure = route["decisions"], route["confidence"]
        view.add_row(
            plain(name or "(default)"),
            str(number),
            percent(number / policy["decisions"]),
            "-" if sure is None else f"{sure:.2f}",
            str(route["below_minimum"] or "-"),
            _models(route["models"]),
        )
    if policy["overridden"]:
        number = sum(policy["overridden"].values())
        share = percent(number / policy["decisions"])
        named = _models(policy["overridden"])
        view.add_row("(named by the caller)", str(number), share, "-", "-", named)
    return view


def _models(models: Mapping[str, int]) -> Text:
    return plain("\n".join(f"{number} {model}" for model, number in models.items()))


def _print_price(console: Console, price: Document) -> None:
    left_out = _left_out(price.get("left_out", {}))
    if not price["decisions"]:
        _line(console, f"price: no decision of a model that has one{left_out}")
        return
    _line(
        console,
        "price in dollars per million tokens, mean of "
        f"{count(price['decisions'], 'decision')}, each counted alike{left_out}",
    )
    view = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    view.add_column("", overflow="fold")
    tokens = price["per_million_tokens"]
    cost = price.get("per_1000_requests")
    for heading in ("input", "output", *(("1,000 requests",) if cost else ())):
        view.add_column(heading, justify="right", no_wrap=True)
    always = f"always {price['baseline']}" if price["baseline"] else "always each one's baseline"
    for key, name, form in (
        ("routed", "as routed", _dollars),
        ("baseline", always, _dollars),
        ("ratio", "ratio", _ratio),
    ):
        cells = [form(tokens[key]["input"]), form(tokens[key]["output"])]
        view.add_row(plain(name), *cells, *((form(cost[key]),) if cost else ()))
    console.print(view)
    _line(console, f"baseline: {price['baseline_is']}")
    if cost:
        assumed = cost["assumed_tokens"]
        _line(
            console,
            f"1,000 requests: an assumption, {assumed['input']} input and {assumed['output']} "
            "output tokens each; the log does not have them",
        )


def _left_out(left_out: Document) -> str:
    parts = [
        f"{left_out[key]} {why}"
        for key, why in (("override", "whose model the caller named"), ("cancelled", "cancelled"))
        if left_out.get(key)
    ]
    parts += [
        f"{number} of {model}, whose price is unknown"
        for model, number in left_out.get("unpriced", {}).items()
    ]
    return f"; without {', '.join(parts)}" if parts else ""


def _dollars(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.1 or not value else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
