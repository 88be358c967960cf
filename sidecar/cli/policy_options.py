"""Options that the commands of `sidecar policy` share."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from sidecar.cli.policy_place import Missing, PolicyPlace, open_place
from sidecar.cli.policy_view import OUTPUTS
from sidecar.cli.tls_options import given_tls, tls_options
from sidecar.config import ServerSettings
from sidecar.core.policy import Attribution
from sidecar.policies.notes import MAX_AUTHOR, note_violations
from sidecar.policies.stores import WriteNote, now

F = TypeVar("F", bound=Callable[..., Any])

_TIMEOUT_S = 30.0

NUMBER = click.IntRange(1, 2**63 - 1)
"""Of a revision, where every place takes one: 64 bits."""


def at_option(command: F) -> F:
    """`--at`: where the policies are, and how it is reached."""
    return click.option(
        "--at",
        envvar="SIDECAR_ADDRESS",
        show_envvar=True,
        default=ServerSettings().grpc_address,
        show_default=True,
        metavar="PLACE",
        help="A running sidecar (host:port or unix:path), a database (sqlite:FILE or "
        "postgresql://USER@HOST/DATABASE), or a file or folder.",
    )(tls_options(command))


def output_option(command: F) -> F:
    """`--output`: for people or for programs."""
    return click.option(
        "--output",
        type=click.Choice(OUTPUTS),
        default=OUTPUTS[0],
        show_default=True,
        help="How the answer is written to standard output.",
    )(command)


def note_options(command: F) -> F:
    """`--author` and `--message`: what is kept with a change."""
    command = click.option(
        "--author", default="", help="Who makes the change; your login name if not given."
    )(command)
    return click.option("--message", "-m", default="", help="Why, for the history.")(command)


def in_utf8(_: click.Context, __: click.Parameter, value: str) -> str:
    """`value`, which a message to a sidecar can hold. Raises click.BadParameter."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("has a byte that is not UTF-8; write it in UTF-8") from None
    return value


def _given_etag(context: click.Context, option: click.Parameter, value: str) -> str:
    """As `in_utf8`; an empty one that was given is no condition, as a variable that is not set."""
    source = context.get_parameter_source(option.name or "")
    if not value and source is ParameterSource.COMMANDLINE:
        raise click.BadParameter("is empty; leave it out to change whatever is there")
    return in_utf8(context, option, value)


def etag_option(command: F) -> F:
    """`--etag`: the condition of a change."""
    return click.option(
        "--etag",
        default="",
        callback=_given_etag,
        help="Make the change only if this is the policy's present etag.",
    )(command)


def dry_run_option(command: F) -> F:
    """`--dry-run`: check everything, change nothing."""
    return click.option(
        "--dry-run", is_flag=True, help="Check everything and show what would be; change nothing."
    )(command)


def note_of(author: str, message: str, etag: str = "") -> WriteNote:
    """The note of one change. Raises click.UsageError for what no place keeps."""
    for wrong in note_violations(author, message):
        raise click.UsageError(f"--{wrong.field} {wrong.description}")
    return WriteNote(Attribution(author or _login(), message, now()), etag)


def _login() -> str:
    """Empty for a container's user without a name, and for one that no place keeps."""
    try:
        name = getpass.getuser()[:MAX_AUTHOR]
    except (KeyError, OSError):
        return ""
    return "" if any(note_violations(name, "")) else name


@contextmanager
def place(at: str, missing: Missing = Missing.REFUSED) -> Iterator[PolicyPlace]:
    """The place for the length of the block. Raises Failure."""
    opened = open_place(at, _TIMEOUT_S, given_tls(), missing)
    try:
        yield opened
    finally:
        opened.close()
