"""`sidecar report`: what the log of decisions says."""

from __future__ import annotations

from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from sidecar.cli.failures import Failure
from sidecar.cli.findings_view import count, print_findings
from sidecar.cli.output_file import OutputFile
from sidecar.cli.policy_files import PolicyPath
from sidecar.cli.policy_place import resource_name
from sidecar.cli.report_view import print_report
from sidecar.observability.logged import LogError, LogReader
from sidecar.observability.report import INLINE, DecisionReport, Document
from sidecar.observability.worth import Prices, Tokens
from sidecar.policies import load_policies
from sidecar.policies.documents import json_text


class _Tokens(click.ParamType[Tokens]):
    name = "IN:OUT"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Tokens:
        parts = str(value).split(":")
        if len(parts) != 2 or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts):
            self.fail(
                f"{value!r} must be the input and the output tokens of a request, as 1000:300",
                param,
                ctx,
            )
        return Tokens(*map(int, parts))


@click.command()
@click.argument(
    "logs",
    nargs=-1,
    required=True,
    metavar="LOG...",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
)
@click.option(
    "--policy",
    metavar="NAME",
    help=f"Count its decisions alone: an id in the namespace default, a resource name, or "
    f"`{INLINE}` for policies that came with their requests.",
)
@click.option(
    "--catalog",
    "catalogs",
    type=PolicyPath(),
    multiple=True,
    help="File or folder with the catalog of models, for prices, and with the policies, if they "
    "are to have a say in the baseline; may be given more than once.",
)
@click.option(
    "--baseline",
    metavar="MODEL",
    help="Compare prices with always taking this model; else with the most expensive one that "
    "the policy names (where --catalog has it) or that was chosen.",
)
@click.option(
    "--tokens",
    type=_Tokens(),
    help="Also show dollars per 1,000 requests, if each had so many input and output tokens.",
)
@click.option("--json", "json_path", type=OutputFile(), help="Write what was counted there.")
def report(
    logs: tuple[Path, ...],
    policy: str | None,
    catalogs: tuple[Path, ...],
    baseline: str | None,
    tokens: Tokens | None,
    json_path: Path | None,
) -> None:
    """Count what logs of decisions say: by policy sources, fallbacks, routes, models and times, and
    with --catalog what routing saved.

    LOG is what a sidecar wrote on standard error, as JSON, plain or compressed with gzip; - is
    standard input. Lines that are no decisions are skipped.
    """
    if not catalogs and (baseline is not None or tokens is not None):
        raise click.UsageError("--baseline and --tokens need --catalog, which has the prices")
    if Path("-") in logs and Path("/dev/stdin") in catalogs:
        raise click.UsageError("LOG and --catalog cannot both be -, standard input")
    wanted = policy if policy in (None, INLINE) else resource_name(policy)
    _check_output((*logs, *catalogs), json_path)
    prices = _prices(catalogs, baseline or "", tokens) if catalogs else None
    counted = _counted(logs, wanted, prices)
    if json_path is not None:
        try:
            json_path.write_text(f"{json_text(counted, indent=1)}\n", encoding="utf-8")
        except OSError as error:
            raise Failure(f"{json_path}: cannot be written: {error.strerror}") from None
    print_report(counted)


def _check_output(read: Sequence[Path], json_path: Path | None) -> None:
    """Raises UsageError where the JSON would be written over what is read."""
    if json_path is None or not json_path.is_file():
        return  # /dev/null and /dev/stdout are never logs.
    for path in read:
        if path.exists() and path.samefile(json_path):
            raise click.UsageError(f"--json {json_path} would be written over {path}; name another")


def _prices(catalogs: Sequence[Path], baseline: str, tokens: Tokens | None) -> Prices:
    """Raises Failure."""
    found = load_policies(catalogs)
    if not found.valid:
        print_findings(found, Console(stderr=True))
        raise Failure("--catalog has errors; nothing was counted")
    policies = {name: record.policy for name, record in found.records.items()}
    prices = Prices(found.catalog, policies, baseline, tokens)
    if baseline and prices.of(baseline) is None:
        why = "has no input and output price there" if baseline in found.catalog else "is not there"
        known = ", ".join(sorted(model for model in found.catalog if prices.of(model)))
        raise Failure(
            f"--baseline {baseline} {why}; models with a price in --catalog: {known or 'none'}"
        )
    return prices


def _counted(logs: Sequence[Path], wanted: str | None, prices: Prices | None) -> Document:
    """Raises Failure."""
    reader, counted, others = LogReader(), DecisionReport(), 0
    for path in logs:
        standard_input = str(path) == "-"
        name = "standard input" if standard_input else str(path)
        try:
            with _opened(path, standard_input) as log:
                for entry in reader.read(log, name):
                    if wanted in (None, entry.policy):
                        counted.add(entry)
                    else:
                        others += 1
        except LogError as error:
            raise Failure(str(error)) from None
        except OSError as error:
            raise Failure(f"{name}: cannot be opened: {error.strerror}") from None
    if reader.decisions == others:
        raise Failure(_nothing(reader, wanted, others))
    log_facts = {
        "lines": reader.lines,
        "decisions": reader.decisions,
        "skipped": reader.lines - reader.decisions,
        "unreadable": reader.unreadable,
        "other_policies": others,
    }
    return {"log": log_facts, **counted.document(prices)}


def _opened(path: Path, standard_input: bool) -> BufferedReader:
    if standard_input:
        return open(0, "rb", closefd=False)
    return path.open("rb")


def _nothing(reader: LogReader, wanted: str | None, others: int) -> str:
    if others:
        return f"no decision of {wanted} in the logs, but {others} of other policies"
    unreadable = f", {reader.unreadable} cut or unreadable" if reader.unreadable else ""
    return (
        f"no decision in {count(reader.lines, 'line')}{unreadable}; a sidecar logs them as JSON "
        "with logging.format json and logging.level info"
    )
