"""Log setup: one format for the sidecar's own entries and those of its libraries.

Message text stays out of the log unless it is switched on. Entries are written to keep it out; the
one place where it could come in unseen is the text of an unexpected exception (`KeyError: 'my
address is …'`), so that is left out too.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from sidecar.core.errors import SidecarError
from sidecar.core.model import InferenceError

Format = Literal["auto", "json", "pretty"]
Level = Literal["debug", "info", "warning", "error"]

_TEXT_IS_OURS = (SidecarError, InferenceError, OSError, ImportError)
"""Exceptions whose text never holds what a caller sent."""

_WITHHELD = "(text left out, it can hold message text; logging.log_message_text shows it)"


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What is logged and how.

    Args:
        format: `auto` is `pretty` on a terminal, else `json`, one object a line.
        log_message_text: allow the text of messages, and the text of unexpected exceptions.
    """

    level: Level = "info"
    format: Format = "auto"
    log_message_text: bool = False


def configure_logging(options: LogOptions, stream: TextIO = sys.stderr) -> None:
    """Sets up structlog and the standard library's logging, for the whole process."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        ExceptionDescriber(options.log_message_text),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Not cached: loggers are made at import, before this runs, and tests run it again.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter(shared, _renderer(options.format, stream)))
    # Nothing that is written shows them, and each entry would ask the system for them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(options.level.upper())
    limit_libraries()


def limit_libraries() -> None:
    """Leaves out entries of libraries, whatever the level; for the whole process."""
    # It reports every poll of its event loop.
    logging.getLogger("asyncio").setLevel(logging.INFO)
    # A server that is freed without having been started passes itself to a debug entry
    # (AioServer.__dealloc__ in https://github.com/grpc/grpc/blob/v1.85.1/src/python/grpcio/grpc/_cython/_cygrpc/aio/server.pyx.pxi).
    # Whatever keeps that entry, as pytest does, then holds freed memory: sooner or later the
    # process hangs or ends with a segmentation fault, somewhere else.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.INFO)
    # It reports each part of itself that it loads.
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)


def _renderer(format: Format, stream: TextIO) -> Processor:
    if format == "pretty" or (format == "auto" and stream.isatty()):
        return structlog.dev.ConsoleRenderer(colors=stream.isatty())
    return structlog.processors.JSONRenderer(_json)


def _json(entry: EventDict, default: Callable[[Any], Any]) -> str:
    """As `json.dumps`, which takes five times as long."""
    try:
        encoded = msgspec.json.encode(entry, enc_hook=default)
    except (TypeError, ValueError, OverflowError):
        # Lone surrogates, integers beyond 64 bits, keys that are no text.
        return json.dumps(entry, default=default)
    if not encoded.isascii():
        # What reads it may not expect UTF-8.
        return json.dumps(entry, default=default)
    return msgspec.json.format(encoded, indent=0).decode()


class _Entry(logging.LogRecord):
    """An entry of level info that is made a line where it is written: in the log's own thread,
    where there is one."""

    def __init__(self, logger: str, event: str, details: EventDict) -> None:
        super().__init__(logger, logging.INFO, "", 0, event, (), None)
        self._context = copy_context()
        self._details = details

    def entry(self) -> EventDict:
        time = datetime.fromtimestamp(self.created, UTC).isoformat(timespec="microseconds")
        return {
            **self._context.run(structlog.contextvars.get_contextvars),
            **self._details,
            "event": self.msg,
            "level": "info",
            "logger": self.name,
            "timestamp": time.replace("+00:00", "Z"),
        }


class _Formatter(structlog.stdlib.ProcessorFormatter):
    def __init__(self, shared: Sequence[Processor], render: Processor) -> None:
        super().__init__(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record, _Entry):
            return str(self._render(None, "info", record.entry()))
        return super().format(record)


def log_info(logger: logging.Logger, event: str, details: EventDict) -> None:
    """Logs an entry with what is bound, as structlog's own loggers do.

    For what every request logs. structlog's chain finds the caller's frame, copies and wraps before
    the entry is put aside, which takes longer than many a decision.

    Args:
        details: the entry's keys and values, and not what they can be made of: whatever waits to be
            written keeps its memory from the next request.
    """
    logger.handle(_Entry(logger.name, event, details))


class ExceptionDescriber:
    """Replaces `exc_info` by the stack and the types of the exceptions, with the text of those
    that cannot hold message text."""

    def __init__(self, show_text: bool) -> None:
        self._show_text = show_text

    def __call__(self, logger: WrappedLogger, name: str, entry: EventDict) -> EventDict:
        exc_info = entry.pop("exc_info", None)
        if exc_info is True:
            exc_info = sys.exc_info()
        error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
        if isinstance(error, BaseException):
            entry["exception"] = "".join(self._lines(error)).rstrip()
        return entry

    def _lines(self, error: BaseException) -> Iterator[str]:
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is not None:
            yield from self._lines(cause)
            yield "Then:\n"
        yield from traceback.format_tb(error.__traceback__)
        yield f"{type(error).__qualname__}: {self._text(error)}\n"
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                yield "In it:\n"
                yield from self._lines(each)

    def _text(self, error: BaseException) -> str:
        shown = self._show_text or isinstance(error, _TEXT_IS_OURS)
        return str(error) if shown else _WITHHELD
