"""Policies in one SQLite file: the embedded store of a sidecar, or of several on one machine."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from sidecar.policies.stores import refusals
from sidecar.policies.stores.contract import CatalogWrite, Change, PolicyWrite
from sidecar.policies.stores.sql import SqlStore

_BUSY_MS = 5_000
"""How long a writer waits for another process; a write takes milliseconds."""
_AGAIN_S = 0.01
_LASTING = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_READONLY,
}


class SqliteStore(SqlStore):
    """A store in the file `path`, which `make` lets it make.

    The file must be on a local disk: SQLite's write-ahead log needs memory that processes share
    (https://sqlite.org/wal.html). Raises SidecarError STORE_UNAVAILABLE when made, for a file that
    cannot be used.
    """

    def __init__(self, path: Path, make: bool = True) -> None:
        if not make and os.path.isdir(path.absolute().parent) and _kind(path) == 0:
            raise refusals.not_made(str(path), "there is no such file")
        engine = create_engine(
            URL.create("sqlite", database=str(path)), connect_args={"timeout": _BUSY_MS / 1000}
        )
        event.listen(engine, "do_connect", self._find)
        event.listen(engine, "connect", self._prepare)
        event.listen(engine, "checkout", self._check)
        event.listen(engine, "begin", _begin)
        super().__init__(engine, str(path))
        self._path = path
        self._make = make
        self._written = threading.Event()
        self.open(make)

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

    def _find(self, *_: object) -> None:
        # SQLite would make an empty one in its place.
        # Looked at once: another process may be making it.
        kind = _kind(self._path)
        if kind in (None, stat.S_IFREG, stat.S_IFDIR):
            return
        if kind:
            raise sqlite3.OperationalError("it is a pipe, a socket or a device")
        if self._opened:
            raise sqlite3.OperationalError("the file is gone; put it back, or restart to make one")
        if not self._make:
            raise sqlite3.OperationalError("there is no such file")

    def _instead(self, error: BaseException | None) -> str:
        # Nothing that passes by itself.
        return self._remedy(error) if _code(error) in _LASTING else super()._instead(error)

    def _remedy(self, error: BaseException | None) -> str:
        code = _code(error)
        folder = self._path.absolute().parent
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return "name another file, or put a sound database in its place"
        if code == sqlite3.SQLITE_BUSY:
            return "another process holds it; try again when that has ended"
        if code == sqlite3.SQLITE_FULL:
            return f"make room on the disk of {folder}"
        if os.path.isdir(self._path):
            return "it is a folder; name a file in it"
        if _kind(self._path) not in (0, None, stat.S_IFREG):
            return "name a regular file on a local disk"
        if not os.path.isdir(folder):
            return f"{folder} is no folder that this process can see; make it, or name another"
        return f"put it on a local disk, and let this process write it and the folder {folder}"

    def _prepare(self, connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        # The log is for good: another program's file is to be left as it is.
        _prepare(connection, write_ahead=self._make)
        record.info["file"] = _identity(self._path)

    def _check(self, _: object, record: ConnectionPoolEntry, __: object) -> None:
        # With a file that was removed, or replaced by a backup, SQLite goes on as if it were still
        # there: what it is given to keep is lost.
        if record.info["file"] != _identity(self._path):
            raise DisconnectionError("another file has taken the place of the database")


class MemoryStore(SqlStore):
    """An empty store that keeps nothing: stands for a database that is still to be made."""

    def __init__(self) -> None:
        super().__init__(create_engine("sqlite://"), "in memory")
        self.open()

    def wait(self, timeout_s: float) -> None:
        """Returns at once: nobody else can write."""

    def _remedy(self, error: BaseException | None) -> str:
        return "free some memory"


def _code(error: BaseException | None) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _kind(path: Path) -> int | None:
    """0 where there is no file, None where that cannot be told."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError:
        return None


def _identity(path: Path) -> tuple[int, int] | None:
    """None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _prepare(connection: sqlite3.Connection, write_ahead: bool) -> None:
    # The driver would begin transactions by itself, too late and of the wrong kind
    # (https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-serializable).
    connection.isolation_level = None
    execute: Callable[[str], Any] = connection.execute
    if write_ahead:
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
