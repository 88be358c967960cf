"""Progress of an evaluation: how far, how long still, and how right so far."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from sidecar.evaluation.outcomes import Outcome

_LINE_EVERY_S = 15.0


class Progress:
    """A bar on a terminal; elsewhere a line now and then, so that a log shows life."""

    def __init__(self, total: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._total = total
        self._done = 0
        self._right = 0
        self._undecided = 0
        self._started = time.monotonic()
        self._said = -_LINE_EVERY_S
        self._bar = RichProgress(
            TextColumn("Asking"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def took(self, outcome: Outcome) -> None:
        self._done += 1
        self._right += outcome.right
        self._undecided += not outcome.answer
        self._bar.update(self._task, completed=self._done, note=self._note())
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said >= _LINE_EVERY_S:
            self._said = now
            left = (now - self._started) / self._done * (self._total - self._done)
            self._console.print(
                f"{self._done} of {self._total}, {self._note()}, {left:.0f} s left",
                highlight=False,
            )

    def _note(self) -> str:
        note = f"{self._right / self._done:.1%} right"
        return f"{note}, {self._undecided} undecided" if self._undecided else note
