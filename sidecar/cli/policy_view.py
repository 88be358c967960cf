"""How `sidecar policy` prints: as text for people, as JSON or YAML for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sidecar.cli.printing import echo, plain
from sidecar.core.policy import Attribution, CatalogRecord, PolicyRecord
from sidecar.policies.documents import catalog_document, json_text, policy_document, yaml_text
from sidecar.policies.stores import Change

OUTPUTS = ("text", "json", "yaml")
_NO_TERMINAL = 1000
_SHOWN_CHARS = 300
"""Of who, when and why, in a table; all of it is in the output for programs."""


def emit(value: Mapping[str, Any] | Sequence[Mapping[str, Any]], output: str) -> None:
    """Prints `value` as `json` or `yaml`; a list in YAML is a document for each."""
    if output == "json":
        click.echo(json_text(value, indent=2))
    elif isinstance(value, Mapping):
        click.echo(yaml_text(value), nl=False)
    else:
        click.echo(yaml_text(*value) if value else "", nl=False)


def described(record: PolicyRecord, content: bool = True) -> dict[str, Any]:
    """A record for programs."""
    return {
        "name": record.policy.resource_name,
        **_revision(record),
        "deleted": record.deleted,
        **({"policy": policy_document(record.policy)} if content else {}),
    }


def described_catalog(record: CatalogRecord) -> dict[str, Any]:
    """A catalog record for programs."""
    return {
        "name": "modelCatalog",
        **_revision(record),
        "catalog": catalog_document(record.models.values()),
    }


def described_change(change: Change) -> dict[str, Any]:
    """A change for programs."""
    record = change.record
    what = described_catalog(record) if isinstance(record, CatalogRecord) else described(record)
    return {"change": change.number, "kind": change.kind.value, **what}


def _revision(record: PolicyRecord | CatalogRecord) -> dict[str, Any]:
    attribution = record.attribution
    return {
        "revision": record.revision,
        "etag": record.etag,
        "digest": record.digest,
        "change": record.change,
        "author": attribution.author if attribution else "",
        "author_verified": attribution.verified if attribution else False,
        "message": attribution.message if attribution else "",
        "time": attribution.time.isoformat() if attribution else "",
    }


def by_line(attribution: Attribution | None) -> str:
    """Who, when and why, in one line; empty where it is not kept."""
    if attribution is None:
        return ""
    claimed = "" if attribution.verified else " (claimed)"
    who = f"{attribution.author or 'unnamed'}{claimed}"
    why = f": {attribution.message}" if attribution.message else ""
    return f"{attribution.time:%Y-%m-%d %H:%M:%S} UTC, {who}{why}"


def print_policy(record: PolicyRecord) -> None:
    """The policy as YAML that `apply` takes, below comments that say which revision it is."""
    state = ", deleted" if record.deleted else ""
    line = by_line(record.attribution)
    echo(f"# {record.policy.resource_name}, revision {record.revision}{state}")
    echo(f"# etag {record.etag}" + (f"; {' '.join(line.split())}" if line else ""))
    click.echo(yaml_text(policy_document(record.policy)), nl=False)


def print_policies(records: Sequence[PolicyRecord]) -> None:
    """A line for each policy."""
    table = Table(box=None, pad_edge=False)
    for heading in ("POLICY", "REV", "ROUTES", "CHANGED", "DIGEST"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "CHANGED")
    for record in records:
        table.add_row(
            plain(record.policy.resource_name + (" (deleted)" if record.deleted else "")),
            str(record.revision),
            str(len(record.policy.routes)),
            plain(_short(by_line(record.attribution))),
            plain(record.digest.removeprefix("sha256:")[:12]),
        )
    _wide().print(table)


def print_history(records: Sequence[PolicyRecord]) -> None:
    """A line for each revision."""
    table = Table(box=None, pad_edge=False)
    for heading in ("REV", "CHANGE", "CHANGED", "DIGEST"):
        table.add_column(heading, overflow="fold")
    for record in records:
        table.add_row(
            str(record.revision) + (" (deleted)" if record.deleted else ""),
            str(record.change or ""),
            plain(_short(by_line(record.attribution))),
            plain(record.digest.removeprefix("sha256:")[:12]),
        )
    _wide().print(table)


def print_diff(text: str) -> None:
    """A unified diff, coloured on a terminal."""
    console = Console()
    for line in text.split("\n")[:-1]:
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        style = "bold" if line.startswith(("+++", "---")) else style
        console.print(plain(line, style), soft_wrap=True, highlight=False)


def print_change(change: Change) -> None:
    """One line, whatever the message of the change: a program may read them."""
    record = change.record
    name = "model catalog" if isinstance(record, CatalogRecord) else record.policy.resource_name
    echo(
        f"{change.number}  {change.kind.value:<8} {name}, revision {record.revision}  "
        f"{' '.join(by_line(record.attribution).split())}".rstrip()
    )


def _short(text: str) -> str:
    """In one line, whatever the message of the change."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]}…"


def _wide() -> Console:
    """As wide as the terminal; where there is none, a line stays a line."""
    console = Console()
    return console if console.is_terminal else Console(width=_NO_TERMINAL)
