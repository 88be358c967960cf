"""Policies in one SQLite file: the embedded store of a sidecar, or of several on one machine."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL

from sidecar.policies.stores.contract import CatalogWrite, Change, PolicyWrite
from sidecar.policies.stores.sql import SqlStore

_BUSY_MS = 5_000
"""How long a writer waits for another process; a write takes milliseconds."""
_AGAIN_S = 0.01


class SqliteStore(SqlStore):
    """A store in the file `path`, which is made if it is not there.

    The file must be on a local disk: SQLite's write-ahead log needs memory that processes share
    (https://sqlite.org/wal.html). Raises SidecarError STORE_UNAVAILABLE when made, for a file that
    cannot be used.
    """

    def __init__(self, path: Path) -> None:
        engine = create_engine(
            URL.create("sqlite", database=str(path)), connect_args={"timeout": _BUSY_MS / 1000}
        )
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
        super().__init__(engine, str(path))
        self._written = threading.Event()
        self.open()

    def wait(self, timeout_s: float) -> None:
        """Returns early for writes of this process alone; others' are found by looking again."""
        self._written.wait(timeout_s)
        self._written.clear()

    def write(self, write: PolicyWrite | CatalogWrite) -> Change:
        """As `PolicyWriting`."""
        change = super().write(write)
        self._written.set()
        return change

    def close(self) -> None:
        self._written.set()
        super().close()


def _prepare(connection: sqlite3.Connection, _: object) -> None:
    # The driver would begin transactions by itself, too late and of the wrong kind
    # (https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-serializable).
    connection.isolation_level = None
    execute: Callable[[str], Any] = connection.execute
    _write_ahead(execute)
    # The log is synced at every commit: what was acknowledged survives a power failure.
    execute("PRAGMA synchronous = FULL")
    execute("PRAGMA foreign_keys = ON")


def _write_ahead(execute: Callable[[str], Any]) -> None:
    # Who makes the file's first log needs it for themselves, and of several who try SQLite refuses
    # all but one at once, however long a timeout is set (https://sqlite.org/c3ref/busy_handler.html).
    end = time.monotonic() + _BUSY_MS / 1000
    while True:
        try:
            execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > end:
                raise
            time.sleep(_AGAIN_S)


def _begin(connection: Connection) -> None:
    # A writer takes its lock first: one that reads before it writes would fail, rather than wait,
    # when another has written in between.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
