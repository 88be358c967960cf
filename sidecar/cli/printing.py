"""Printing what others wrote."""

from __future__ import annotations

import click
from rich.text import Text

from sidecar.core.shown import shown


def plain(text: str, style: str = "") -> Text:
    """As it was written: nothing of it is markup, and a terminal obeys none of it."""
    return Text(shown(text), style)


def echo(text: str, err: bool = False) -> None:
    """A line that a terminal obeys none of."""
    click.echo(shown(text), err=err)
