"""`sidecar policy`: work with policies, in files, in stores and in running sidecars."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click
from rich.console import Console

from sidecar.cli.findings_view import print_findings
from sidecar.cli.policy_files import PolicyPath
from sidecar.cli.policy_view import emit
from sidecar.policies import PolicySet, load_policies
from sidecar.policies.findings import findings_as_plain

_COMMANDS = {
    "apply": "policy_change.apply",
    "catalog": "policy_read.catalog",
    "delete": "policy_change.delete",
    "diff": "policy_read.diff",
    "export": "policy_exchange.export",
    "get": "policy_read.get",
    "history": "policy_read.history",
    "import": "policy_exchange.import_",
    "lint": "policy_trial.lint",
    "list": "policy_read.list_",
    "prune": "policy_change.prune",
    "rollback": "policy_change.rollback",
    "test": "policy_trial.test",
    "undelete": "policy_change.undelete",
    "watch": "policy_read.watch",
}
"""Commands in modules of their own, imported when they are used: most need no gRPC."""


class PolicyCommands(click.Group):
    """The commands of this module and those of `_COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, name = _COMMANDS[cmd_name].partition(".")
        command = getattr(importlib.import_module(f"sidecar.cli.{module}"), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=PolicyCommands)
def policy() -> None:
    """Check, change and try out routing policies.

    Exit status of all commands: 0 done; 1 refused, or what was checked has errors; 2 wrong usage;
    3 conflict: somebody else has changed the policy, look at it again; 4 there is no such policy or
    revision; 5 the sidecar or the database cannot be reached.
    """


@policy.command()
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="PATH...",
    type=PolicyPath(),
)
@click.option(
    "--output",
    type=click.Choice(["text", "json", "yaml"]),
    default="text",
    show_default=True,
    help="How findings are written to standard output.",
)
def validate(paths: tuple[Path, ...], output: str) -> None:
    """Check policy and model catalog files.

    PATH is a file, a folder of *.yaml and *.yml files, or - for standard input. Name the model
    catalog and the policies that use it together.

    Exit code: 0 without errors (warnings allowed), 1 with errors, 2 if a path cannot be read.
    """
    found = load_policies(paths)
    if output == "text":
        print_findings(found, Console())
    else:
        emit(_as_plain(found), output)
    sys.exit(0 if found.valid else 1)


def _as_plain(found: PolicySet) -> dict[str, object]:
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
        "findings": findings_as_plain(found.findings),
    }
