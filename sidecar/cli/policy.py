"""`sidecar policy`: work with policy files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from sidecar.policies import Finding, PolicySet, Severity, load_policies

_COLOURS = {Severity.ERROR: "bold red", Severity.WARNING: "yellow"}


@click.group()
def policy() -> None:
    """Check routing policies."""


@policy.command()
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="PATH...",
    type=click.Path(exists=True, readable=True, path_type=Path),
)
@click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How findings are written to standard output.",
)
def validate(paths: tuple[Path, ...], output: str) -> None:
    """Check policy and model catalog files.

    PATH is a file, or a folder of *.yaml and *.yml files. Name the model catalog and the policies
    that use it together.

    Exit code: 0 without errors (warnings allowed), 1 with errors, 2 if a path cannot be read.
    """
    found = load_policies(paths)
    if output == "json":
        click.echo(json.dumps(_as_json(found), indent=2, ensure_ascii=False))
    else:
        print_findings(found, Console())
    sys.exit(0 if found.valid else 1)


def _as_json(found: PolicySet) -> dict[str, object]:
    return {
        "valid": found.valid,
        "files": list(found.files),
        "models": len(found.catalog),
        "policies": [
            {
                "name": name,
                "routes": len(record.policy.routes),
                "digest": record.digest,
            }
            for name, record in found.records.items()
        ],
        "findings": [
            {
                "severity": finding.severity.value,
                "file": finding.file,
                "line": finding.line,
                "path": finding.path,
                "message": finding.message,
            }
            for finding in found.findings
        ],
    }


def print_findings(found: PolicySet, console: Console) -> None:
    """A line for each finding and each policy without errors, and one that counts."""

    def line(text: Text | str) -> None:
        # Markup and highlighting would change what a policy's author wrote; soft_wrap keeps
        # one finding one line for grep and editors.
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    for finding in found.findings:
        line(_finding_text(finding))
    for name, record in found.records.items():
        text = Text("ok ", style="green")
        text.append(f"{name}: {_count(len(record.policy.routes), 'route')}", style="default")
        text.append(f", {record.digest[:19]}", style="dim")
        line(text)
    errors = sum(finding.severity is Severity.ERROR for finding in found.findings)
    warnings = len(found.findings) - errors
    line(
        f"{_count(len(found.files), 'file')}, {_count(len(found.catalog), 'model')}: "
        f"{_count(errors, 'error')}, {_count(warnings, 'warning')}"
    )


def _finding_text(finding: Finding) -> Text:
    place = f"{finding.file}:{finding.line}" if finding.line else finding.file
    text = Text(f"{place}: ", style="dim")
    text.append(f"{finding.severity}: ", style=_COLOURS[finding.severity])
    if finding.path:
        text.append(f"{finding.path}: ", style="bold")
    text.append(finding.message, style="default")
    return text


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
