"""Writes the log in a thread of its own.

Whoever reads standard error may stall: a full pipe holds the writer, and in the event loop that is
every request. What is not taken for too long is dropped and counted.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

MAX_ENTRIES = 10_000
"""That wait to be written: some megabytes, and minutes of decisions."""

_END_S = 2.0
"""How long the end of the process waits for what is not written yet."""


class _Waiting(logging.Handler):
    """Puts records aside; never blocks."""

    def __init__(self, max_entries: int) -> None:
        super().__init__()
        self.records: queue.Queue[logging.LogRecord | None] = queue.Queue(max_entries)
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.records.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def take_dropped(self) -> int:
        """How many were dropped since the last call."""
        self.acquire()  # as around every `emit`
        try:
            dropped, self.dropped = self.dropped, 0
        finally:
            self.release()
        return dropped


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
        try:
            waiting.records.put(None, timeout=_END_S)
            thread.join(_END_S)
        except queue.Full:
            pass


def _write(waiting: _Waiting, handlers: list[logging.Handler]) -> None:
    while (record := waiting.records.get()) is not None:
        _handle(record, handlers)
        if waiting.dropped:
            _handle(_told(waiting.take_dropped()), handlers)


def _handle(record: logging.LogRecord, handlers: list[logging.Handler]) -> None:
    for handler in handlers:
        if record.levelno >= handler.level:
            handler.handle(record)


def _told(dropped: int) -> logging.LogRecord:
    text = f"{dropped} log entries were dropped: they were not read fast enough"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (), None)
