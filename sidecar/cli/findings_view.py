"""Findings about policy files, for people."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from sidecar.core.shown import shown
from sidecar.policies import Finding, PolicySet, Severity

_COLOURS = {Severity.ERROR: "bold red", Severity.WARNING: "yellow"}


def print_findings(found: PolicySet, console: Console) -> None:
    """A line for each finding and each policy without errors, and one that counts."""

    def line(text: Text | str) -> None:
        # Markup and highlighting would change what a policy's author wrote; soft_wrap keeps
        # one finding one line for grep and editors.
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    for finding in found.findings:
        line(finding_text(finding))
    for name, record in found.records.items():
        text = Text("ok ", style="green")
        text.append(f"{shown(name)}: {count(len(record.policy.routes), 'route')}", style="default")
        text.append(f", {record.digest[:19]}", style="dim")
        line(text)
    errors = sum(finding.severity is Severity.ERROR for finding in found.findings)
    warnings = len(found.findings) - errors
    line(
        f"{count(len(found.files), 'file')}, {count(len(found.catalog), 'model')}: "
        f"{count(errors, 'error')}, {count(warnings, 'warning')}"
    )


def finding_text(finding: Finding) -> Text:
    place = f"{finding.file}:{finding.line}" if finding.line else finding.file
    text = Text(f"{shown(place)}: ", style="dim")
    text.append(f"{finding.severity}: ", style=_COLOURS[finding.severity])
    if finding.path:
        text.append(f"{shown(finding.path)}: ", style="bold")
    text.append(shown(finding.message), style="default")
    return text


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
