"""What stands in users' files is shown as it is; Rich would take brackets for its markup."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sidecar.cli.demo_gateway import Reached, print_reached
from sidecar.cli.steps import Steps


@pytest.mark.parametrize("text", ["[/INST] Thanks.", "[bold] or not"])
def test_the_demo_shows_a_conversation_as_it_is(text: str) -> None:
    shown = io.StringIO()
    reached = Reached(text, "OpenAI", "openai", "mini", "code", "model")
    print_reached([reached], Console(file=shown, width=200))
    assert text in shown.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("text", ["/home/me/[/old] is up to date", "/home/me/[new] is up to date"])
def test_a_step_shows_a_path_as_it_is(text: str, terminal: bool) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=200, force_terminal=terminal)
    with Steps(console).step("Preparing") as report:
        report(text)
    assert text in shown.getvalue()
