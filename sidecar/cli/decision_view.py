"""Decisions on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sidecar.cli.printing import plain
from sidecar.core.conversation import Conversation, Role
from sidecar.core.decision import Decision, Explanation, Source
from sidecar.core.shown import shown

_SOURCE_STYLES = {Source.FALLBACK: "yellow", Source.MODEL: "green"}
_DEFAULT_ROUTE = "(default)"
_WIDE = 100


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table of decisions. `expected` as in `sidecar.cli.conversations.Case`."""

    conversation: Conversation
    decision: Decision
    expected: str | None = None

    @property
    def right(self) -> bool | None:
        """None if nothing was expected."""
        return None if self.expected is None else self.decision.route == self.expected


def print_decision(decision: Decision, console: Console | None = None) -> None:
    """One decision in full."""
    console = console or Console()
    console.print(_summary(decision))
    if decision.explanation is not None:
        console.print(_explained(decision, decision.explanation))
        # Not wrapped: it is the exact prompt.
        console.print(plain(decision.explanation.prompt, "dim"), soft_wrap=True)


def table(rows: Sequence[Row], console: Console) -> Table:
    """The decisions as a table that fits the console; a narrow one has the model below the
    route."""
    wide = console.width >= _WIDE
    marks = ("ok", "no") if console.options.ascii_only else ("✓", "✗")
    view = Table(box=None, padding=(0, 1, 1, 0), pad_edge=False, header_style="bold", expand=True)
    view.add_column("turn", justify="right", style="dim", no_wrap=True)
    view.add_column("conversation", ratio=1)
    view.add_column("route" if wide else "route, model", no_wrap=True)
    if wide:
        view.add_column("model", no_wrap=True)
    view.add_column("conf.", justify="right", no_wrap=True)
    view.add_column("source", max_width=20 if wide else 11)
    view.add_column("ms", justify="right", no_wrap=True)
    for row in rows:
        view.add_row(*_cells(row, wide, marks))
    return view


def _cells(row: Row, wide: bool, marks: tuple[str, str]) -> list[RenderableType]:
    decision = row.decision
    source = Text(str(decision.source), style=_SOURCE_STYLES.get(decision.source, ""))
    if decision.source is Source.FALLBACK:
        source.append(f"\n{str(decision.reason).replace('_', ' ')}", style="dim")
    users = [message for message in row.conversation.messages if message.role is Role.USER]
    route = _route_cell(row, marks)
    if not wide:
        route.append(f"\n  {shown(decision.model.upstream_model)}", style="default")
    return [
        str(len(users)),
        plain(_excerpt(users[-1].text if users else "", 80 if wide else 60)),
        route,
        *([plain(decision.model.id)] if wide else []),
        _confidence(decision),
        source,
        f"{decision.total_ms:.0f}",
    ]


def _route_cell(row: Row, marks: tuple[str, str]) -> Text:
    right, wrong = marks
    name = row.decision.route or _DEFAULT_ROUTE
    if row.right is None:
        return plain(name)
    if row.right:
        return plain(f"{right} {name}", "green")
    cell = plain(f"{wrong} {name}", "red")
    cell.append(f"\n  not {shown(row.expected or _DEFAULT_ROUTE)}", style="dim")
    return cell


def _excerpt(text: str, length: int) -> str:
    """The beginning of a message on one line, cut between words."""
    return textwrap.shorten(text, length, placeholder=" …")


def _summary(decision: Decision) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    model = decision.model
    at = f" at {model.host}" if model.host else ""
    called = shown(f"  ({model.upstream_model}{at})")
    grid.add_row("model", Text.assemble((shown(model.id), "bold"), called))
    if decision.fallbacks:
        grid.add_row("then", plain(", ".join(each.id for each in decision.fallbacks)))
    grid.add_row("route", plain(decision.route or _DEFAULT_ROUTE))
    if decision.confidence is not None:
        grid.add_row("confidence", _confidence(decision))
    source = Text(str(decision.source), style=_SOURCE_STYLES.get(decision.source, ""))
    grid.add_row(
        "source", source.append(shown(f", {decision.reason}: {decision.detail}"), style="default")
    )
    named = decision.policy.name or "inline"
    grid.add_row("policy", plain(f"{named}, revision {decision.policy.revision}"))
    grid.add_row("decided by", plain(f"{decision.routing_model}, {decision.prompt_format}"))
    steps = ", ".join(f"{step.step} {step.ms:.1f}" for step in decision.steps)
    grid.add_row("ms", plain(steps))
    grid.add_row("decision", plain(decision.id))
    return grid


def _explained(decision: Decision, explanation: Explanation) -> Group:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for index, candidate in enumerate(decision.candidates):
        bar = "█" * round(candidate.probability * 30)
        grid.add_row(
            "" if index else "candidates",
            plain(f"{candidate.probability:6.1%} {candidate.name} {bar}"),
        )
    for excluded in explanation.excluded:
        grid.add_row("passed over", plain(f"{excluded.model}: {excluded.why}"))
    if explanation.answer:
        grid.add_row("answer", plain(explanation.answer))
    cut = ", shortened to fit" if explanation.truncated else ""
    grid.add_row(
        "prompt",
        Text(
            f"{explanation.prompt_tokens} tokens, {explanation.prefix_tokens} of them the "
            f"policy's{cut}"
        ),
    )
    return Group(grid, Text())


def _confidence(decision: Decision) -> Text:
    return Text("-" if decision.confidence is None else f"{decision.confidence:.2f}")
