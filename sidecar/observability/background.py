"""Writes the log in a thread of its own.

Whoever reads standard error may stall: a full pipe holds the writer, and in the event loop that is
every request. What is not taken for too long is dropped and counted.

The thread is not woken for each entry, and writes many at once: each time it runs, the event loop
has to wait until it gets the interpreter back. While entries keep coming it is not woken at all.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

MAX_ENTRIES = 10_000
"""That wait to be written: some tens of megabytes at most, and minutes of decisions."""

_PAUSE_S = 0.02
"""How long entries are collected."""

_AT_ONCE = 64
"""Entries of one write."""

_END_S = 2.0
"""How long the end of the process waits for what is not written yet."""


class _Waiting(logging.Handler):
    """Puts records aside; never blocks."""

    def __init__(self, max_entries: int) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque()
        self.some = threading.Event()
        self.ended = threading.Event()
        self._max_entries = max_entries
        self._dropped = 0

    def handle(self, record: logging.LogRecord) -> bool:
        # Not `emit`, around which there is a lock: the deque needs none.
        if len(self.records) >= self._max_entries:
            with self._lock():
                self._dropped += 1
            return True
        self.records.append(record)
        if not self.some.is_set():
            self.some.set()
        return True

    def rest(self) -> None:
        """Called by who writes: there is nothing to do until `some` is set again."""
        self.some.clear()
        if self.records or self.ended.is_set():
            # Put aside in between, by someone who saw no need to tell.
            self.some.set()

    def take_dropped(self) -> int:
        """How many were dropped since the last call."""
        with self._lock():
            dropped, self._dropped = self._dropped, 0
        return dropped

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


@contextmanager
def logging_in_background(max_entries: int = MAX_ENTRIES) -> Iterator[None]:
    """Within the block the root logger's handlers write in a thread; what waits is written before
    the block ends, if that takes no longer than two seconds."""
    root = logging.getLogger()
    handlers = root.handlers
    waiting = _Waiting(max_entries)
    # A daemon: a reader that has stalled must not keep the process from ending.
    thread = threading.Thread(
        target=_write, args=(waiting, handlers), name="log-writer", daemon=True
    )
    thread.start()
    root.handlers = [waiting]
    try:
        yield
    finally:
        root.handlers = handlers
        waiting.ended.set()
        waiting.some.set()
        thread.join(_END_S)


def _write(waiting: _Waiting, handlers: Sequence[logging.Handler]) -> None:
    ended = False
    while not ended:
        waiting.some.wait()
        # Asked before the entries are taken, so that none put in before the end is left.
        ended = waiting.ended.wait(_PAUSE_S)
        if not waiting.records:
            waiting.rest()
        while count := min(len(waiting.records), _AT_ONCE):
            # They leave when they are written: until then they count as waiting.
            _handle([waiting.records[index] for index in range(count)], handlers)
            for _ in range(count):
                waiting.records.popleft()
            if dropped := waiting.take_dropped():
                _handle([_told(dropped)], handlers)


def _handle(records: Sequence[logging.LogRecord], handlers: Sequence[logging.Handler]) -> None:
    for handler in handlers:
        wanted = [record for record in records if record.levelno >= handler.level]
        if type(handler) is logging.StreamHandler:
            _handle_at_once(wanted, handler)
        else:
            for record in wanted:
                handler.handle(record)


def _handle_at_once(
    records: Sequence[logging.LogRecord], handler: logging.StreamHandler[Any]
) -> None:
    """As the handler does it for each of them."""
    lines: list[str] = []
    for record in records:
        try:
            if handler.filter(record):
                lines.append(handler.format(record) + handler.terminator)
        except Exception:
            handler.handleError(record)
    if not lines:
        return
    try:
        handler.stream.write("".join(lines))
        handler.flush()
    except Exception:
        handler.handleError(records[-1])


def _told(dropped: int) -> logging.LogRecord:
    text = f"{dropped} log entries were dropped: they were not read fast enough"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (), None)
