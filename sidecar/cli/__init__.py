"""The command line. Each command's module is imported when it is used, so that help is quick."""

from __future__ import annotations

import importlib
import io
import os
import sys

import click

from sidecar import __version__
from sidecar.cli.failures import is_expected
from sidecar.core.shown import shown

_COMMANDS = {
    "capacity": "Compute how many GPUs a fleet needs.",
    "bench": "Measure decisions per second and their latency on this machine.",
    "demo": "Route example conversations on this machine and print what was decided.",
    "eval": "Measure a routing model over cases whose right route is known.",
    "model": "Build and look at routing models.",
    "policy": "Check, change and try out routing policies.",
    "report": "Count what a log of decisions says, and what routing saved.",
    "route": "Ask a running sidecar for a decision.",
    "serve": "Serve the API.",
    "settings": "Show the settings in force.",
    "soak": "Break what can break under steady calls, and show what became of them.",
    "up": "Run Triton and the sidecar on this machine.",
}
"""Name of the command and of its module -> one line for `--help`."""


class LazyCommands(click.Group):
    """A group whose commands live in modules of the same name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"sidecar.cli.{cmd_name}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # Left to click, it would be a failure like any other.
            click.echo("Interrupted.", err=True)
            ctx.exit(130)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


@click.command(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sidecar")
def cli() -> None:
    """Picks the LLM for each request by a policy in plain language."""


def main() -> None:
    """Entry point. Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Conversations may have letters that the terminal's encoding lacks. A file's is UTF-8:
            # a policy that was got is not applied with others in their place.
            in_file = stream is sys.stdout and not stream.isatty()
            stream.reconfigure(encoding="utf-8" if in_file else None, errors="replace")
    try:
        cli(prog_name="sidecar")
    except Exception as error:
        if not is_expected(error):
            raise
        click.echo(f"Error: {shown(str(error))}", err=True)
        _drop_unwritten()
        sys.exit(1)


def _drop_unwritten() -> None:
    """Of standard output what could not be written, as on a full disk: at its end Python tries it
    once more, and fails in words and with a status of its own (docs.python.org, "Note on
    SIGPIPE")."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
