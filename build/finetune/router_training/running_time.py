"""How long a process has been running, the time in which it was stopped left out."""

from __future__ import annotations

import threading
import time
from types import TracebackType

_TICK_S = 1.0
_LONGEST_TICK_S = 5.0
"""A tick that took longer says that the process was stopped (SIGSTOP, a sleeping laptop), for which
the time budget of a training should not pay."""


class RunningTime:
    """Seconds since the block was entered."""

    def __init__(self) -> None:
        self._counted = 0.0
        self._last = 0.0
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> RunningTime:
        self._last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        with self._lock:
            now = time.monotonic()
            self._counted += min(now - self._last, _LONGEST_TICK_S)
            self._last = now
            return self._counted

    def _tick(self) -> None:
        while not self._ended.wait(_TICK_S):
            _ = self.seconds
