"""Progress of a start, step by step with times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape


class Steps:
    """On a terminal each step has a spinner that becomes a mark; elsewhere a line when it ends,
    and one for each thing it reports, so that a log shows life."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        ascii_only = self.console.options.ascii_only
        self._done, self._failed = ("ok", "failed") if ascii_only else ("✓", "✗")

    @contextmanager
    def step(self, doing: str) -> Iterator[Callable[[str], None]]:
        """Runs a block as one step; yields a function that takes what the step does now."""
        started = time.monotonic()
        if not self.console.is_terminal:
            with self._ending(doing, started):
                yield lambda line: self._line(f"  {escape(line)}")
            return
        with (
            self._ending(doing, started),
            self.console.status(doing, spinner_style="default") as status,
        ):
            yield lambda line: status.update(f"{doing}: {escape(line)}")

    @contextmanager
    def _ending(self, doing: str, started: float) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._line(f"[red]{self._failed}[/red] {doing}")
            raise
        self._line(
            f"[green]{self._done}[/green] {doing} [dim]{time.monotonic() - started:.1f} s[/dim]"
        )

    def _line(self, markup: str) -> None:
        self.console.print(markup, highlight=False, soft_wrap=True)
