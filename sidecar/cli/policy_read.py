"""`sidecar policy get|list|history|diff|watch|catalog`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from sidecar.cli.failures import Failure
from sidecar.cli.policy_files import PolicyPath
from sidecar.cli.policy_options import NUMBER, at_option, in_utf8, output_option, place
from sidecar.cli.policy_place import (
    NOT_FOUND,
    PlaceFailure,
    PolicyPlace,
    namespace_id,
    present,
    resource_name,
)
from sidecar.cli.policy_view import (
    OUTPUTS,
    by_line,
    described,
    described_catalog,
    described_change,
    emit,
    print_change,
    print_diff,
    print_history,
    print_policies,
    print_policy,
)
from sidecar.cli.printing import echo
from sidecar.core.policy import Policy
from sidecar.policies import Severity, load_policies
from sidecar.policies.differences import differences, unified_diff
from sidecar.policies.documents import catalog_document, json_text, yaml_text


@click.command()
@click.argument("name")
@click.option(
    "--revision",
    type=NUMBER,
    help="An earlier revision; without it the present one.",
)
@at_option
@output_option
def get(name: str, revision: int | None, at: str, output: str) -> None:
    """Print the policy NAME: an id of the namespace `default`, or a resource name.

    As text it is YAML that `apply` takes.
    """
    with place(at) as found:
        record = found.get(resource_name(name), revision or 0)
    if output == "text":
        print_policy(record)
    else:
        emit(described(record), output)


@click.command("list")
@click.option("--namespace", default="-", show_default=True, help="One of them; `-` for all.")
@click.option(
    "--filter",
    "text",
    default="",
    callback=in_utf8,
    help="Terms that all must hold: route:NAME, model:ID, author:NAME, or a word of the name or "
    'description. What has spaces stands in double quotes: author:"Ada Lovelace".',
)
@click.option("--deleted", is_flag=True, help="Also those that were deleted.")
@at_option
@output_option
def list_(namespace: str, text: str, deleted: bool, at: str, output: str) -> None:
    """List policies."""
    with place(at) as found:
        listed = found.list(namespace_id(namespace), text, deleted)
    if output == "text":
        print_policies(listed.records)
    else:
        emit([described(record, content=False) for record in listed.records], output)
    _fail_for(listed.unreadable)


@click.command()
@click.argument("name")
@click.option(
    "--limit",
    default=50,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="At most so many of them.",
)
@at_option
@output_option
def history(name: str, limit: int, at: str, output: str) -> None:
    """List the revisions of the policy NAME, the latest first."""
    with place(at) as found:
        listed = found.history(resource_name(name), limit)
    if output == "text":
        print_history(listed.records)
    else:
        emit([described(record, content=False) for record in listed.records], output)
    _fail_for(listed.unreadable)


def _fail_for(unreadable: Sequence[str]) -> None:
    """A list that lacks something is not to be taken for all."""
    if unreadable:
        sys.stdout.flush()
        raise Failure("\n".join(unreadable))


@click.command()
@click.option(
    "--revision",
    type=NUMBER,
    help="An earlier revision; without it the present one.",
)
@at_option
@output_option
def catalog(revision: int | None, at: str, output: str) -> None:
    """Print the model catalog.

    As text it is YAML that `apply` takes.
    """
    with place(at) as found:
        record = found.catalog(revision or 0)
    if output != "text":
        emit(described_catalog(record), output)
        return
    echo(f"# model catalog, revision {record.revision}")
    line = " ".join(by_line(record.attribution).split())
    echo(f"# etag {record.etag}" + (f"; {line}" if line else ""))
    click.echo(yaml_text(catalog_document(record.models.values())), nl=False)


@click.command()
@click.argument("name")
@click.option("--from", "older", type=NUMBER, help="Revision; without it the one before --to.")
@click.option("--to", "newer", type=NUMBER, help="Revision; without it the present one.")
@click.option(
    "--file",
    type=PolicyPath(),
    help="Compare the present revision with the policy in this file or folder instead; - for "
    "standard input.",
)
@click.option("--exit-code", is_flag=True, help="Exit with 1 if there is a difference.")
@at_option
@output_option
def diff(
    name: str,
    older: int | None,
    newer: int | None,
    file: Path | None,
    exit_code: bool,
    at: str,
    output: str,
) -> None:
    """Show how two revisions of the policy NAME differ, or what `apply` of a file would change."""
    if file is not None and (older or newer):
        raise click.UsageError("give --file, or --from and --to, not both")
    full = resource_name(name)
    with place(at) as found:
        before, after, names = _compared(found, full, older or 0, newer or 0, file)
    if output == "text":
        print_diff(unified_diff(before, after, names))
    else:
        emit(
            [
                {"path": each.path, "before": each.before, "after": each.after}
                for each in differences(before, after)
            ],
            output,
        )
    if exit_code and before != after:
        sys.exit(1)


def _compared(
    found: PolicyPlace, name: str, older: int, newer: int, file: Path | None
) -> tuple[Policy | None, Policy, tuple[str, str]]:
    if file is not None:
        held = _present(found, name)
        given = _in_file(file, found, name)
        return held, given, (f"{name} at the place", f"{name} in {file}")
    last = found.get(name, newer)
    earlier = found.get(name, older or max(last.revision - 1, 1))
    names = (f"{name}@{earlier.revision}", f"{name}@{last.revision}")
    return earlier.policy, last.policy, names


def _present(found: PolicyPlace, name: str) -> Policy | None:
    try:
        record = found.get(name)
    except PlaceFailure as failure:
        if failure.exit_code == NOT_FOUND:
            return None
        raise
    return present(record)


def _in_file(file: Path, found: PolicyPlace, name: str) -> Policy:
    read = load_policies([file], known=found.catalog().models)
    if name in read.records:
        return read.records[name].policy
    # A finding says which file it is about.
    errors = (str(each) for each in read.findings if each.severity is Severity.ERROR)
    raise Failure(next(errors, f"{file}: it has no policy {name}"))


@click.command()
@click.option(
    "--after",
    type=click.IntRange(0, NUMBER.max),
    help="Begin with the changes after this number; 0: with the first there was. Without it, with "
    "the next one.",
)
@click.option("--count", type=click.IntRange(1), help="End after so many changes.")
@at_option
@click.option(
    "--output",
    type=click.Choice(OUTPUTS),
    default=OUTPUTS[0],
    show_default=True,
    help="`json`: an object a line. `yaml`: a document each, behind a line `---`.",
)
def watch(after: int | None, count: int | None, at: str, output: str) -> None:
    """Print each change as it is made, until Ctrl-C."""
    with place(at) as found, suppress(KeyboardInterrupt):
        changes = found.watch(after, lambda text: echo(text, err=True))
        for seen, change in enumerate(changes, 1):
            if output == "text":
                print_change(change)
            elif output == "json":
                click.echo(json_text(described_change(change)))
            else:
                click.echo("---\n" + yaml_text(described_change(change)), nl=False)
            sys.stdout.flush()
            if seen == count:
                return
