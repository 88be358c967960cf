"""Policies in PostgreSQL: one truth for a fleet of sidecars."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import weakref
from typing import Any

import psycopg
from psycopg import errors
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.engine import URL, make_url

from sidecar.policies.stores.sql import SqlStore
from sidecar.policies.stores.tables import heads

_CHANNEL = "llmrouter_policies"
_CONNECT_S = 3
_POOL_S = 30
_STATEMENT_MS = 10_000
_SLICE_S = 0.2
"""How long closing waits for a thread that listens."""

_CONNECT: dict[str, Any] = {
    "connect_timeout": _CONNECT_S,
    "application_name": "llm-routing-sidecar",
    # Else that of the database: of SQL_ASCII, initdb's own where no language is set, texts come as
    # bytes.
    "client_encoding": "utf8",
    # A server that vanished without a word is noticed within seconds, not after two hours.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    # A writer waits for the others' lock, but not for ever: one that stops in the middle, with the
    # lock, is thrown out.
    "options": f"-c statement_timeout={_STATEMENT_MS} -c lock_timeout={_STATEMENT_MS} "
    f"-c idle_in_transaction_session_timeout={_STATEMENT_MS}",
}


class PostgresStore(SqlStore):
    """A store in the database `url` (`postgresql://user@host:port/database`).

    The password comes from where libpq looks for it: `PGPASSWORD` or a password file. Raises
    SidecarError STORE_UNAVAILABLE when made, for a database that cannot be reached.
    """

    # A database's own order may leave hyphens out, and a page of a list begins by name wherever it
    # comes from: here, from another sidecar, or from memory while the database is away.
    _name = heads.c.name.collate("C")

    def __init__(self, url: str, make: bool = True) -> None:
        address = make_url(url)
        engine = create_engine(
            address.set(drivername="postgresql+psycopg"),
            connect_args=_arguments(address),
            # Connections that a restart of the server has cut are found before they are used.
            pool_pre_ping=True,
            pool_size=4,
            max_overflow=4,
            pool_timeout=_POOL_S,
            # All reads of a transaction see the same moment; a writer's see what the last one did.
            isolation_level="REPEATABLE READ",
        )
        self._connections: weakref.WeakSet[psycopg.Connection[Any]] = weakref.WeakSet()
        event.listen(engine, "connect", lambda connection, _: self._connections.add(connection))
        super().__init__(engine, _shown(address))
        _, target = engine.dialect.create_connect_args(engine.url)
        self._target = {**target, **_arguments(address)}
        self._writer = engine.execution_options(isolation_level="READ COMMITTED", writes=True)
        self._listener: psycopg.Connection[Any] | None = None
        self._closed = threading.Event()
        self.open(make)

    def wait(self, timeout_s: float) -> None:
        """Returns early when any sidecar has written."""
        end = time.monotonic() + timeout_s
        try:
            listener = self._listening()
            while not self._closed.is_set() and (rest := end - time.monotonic()) > 0:
                for _ in listener.notifies(timeout=min(rest, _SLICE_S), stop_after=1):
                    return
        except psycopg.Error:
            # Whoever looks next finds out what is wrong; until then this is only a clock.
            self._stop_listening()
            self._closed.wait(max(0.0, end - time.monotonic()))

    def close(self) -> None:
        """As `PolicyStore`; ends threads that wait for a server which hangs, too."""
        self._closed.set()
        for connection in list(self._connections):
            _cut_off(connection)
        super().close()

    def _instead(self, error: BaseException | None) -> str:
        if isinstance(error, errors.ReadOnlySqlTransaction):
            return "name the server that takes writes, as by target_session_attrs=read-write"
        if isinstance(error, errors.UntranslatableCharacter):
            return "make the database anew, with ENCODING 'UTF8'"
        return super()._instead(error)

    def _remedy(self, error: BaseException | None) -> str:
        if isinstance(error, errors.InsufficientPrivilege | errors.InvalidSchemaName):
            return "let its user make tables in the schema, and use them"
        return (
            "see that the server runs, that its address, the user and the database are right, and "
            "that PGPASSWORD or a password file (PGPASSFILE) has the user's password"
        )

    def _listening(self) -> psycopg.Connection[Any]:
        if self._listener is None or self._listener.closed:
            # As the engine does, which has a spelling of its own for several hosts.
            listener = psycopg.connect(autocommit=True, **self._target)
            listener.execute(f"LISTEN {_CHANNEL}")
            self._connections.add(listener)
            self._listener = listener
        return self._listener

    def _stop_listening(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(psycopg.Error):
                self._listener.close()
            self._listener = None

    def _announce(self, connection: Connection, number: int) -> None:
        # Delivered at the commit, and only if there is one.
        connection.execute(
            text("SELECT pg_notify(:channel, :number)"),
            {"channel": _CHANNEL, "number": str(number)},
        )


def _arguments(address: URL) -> dict[str, Any]:
    """How to connect. What the address says of it counts more; of `options` the last one does."""
    given: dict[str, Any] = {key: address.query[key] for key in _CONNECT if key in address.query}
    if "options" in given:
        given["options"] = f"{_CONNECT['options']} {given['options']}"
    return {**_CONNECT, **given}


def _cut_off(connection: psycopg.Connection[Any]) -> None:
    """Whoever waits for an answer gets an error instead: libpq has no time limit for that."""
    with contextlib.suppress(OSError, psycopg.Error):
        duplicate = socket.socket(fileno=os.dup(connection.fileno()))
        with duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)


def _shown(address: URL) -> str:
    if (hosts := address.query.get("host")) is not None:
        return f"{hosts if isinstance(hosts, str) else ','.join(hosts)}/{address.database}"
    return f"{address.host or 'localhost'}:{address.port or 5432}/{address.database}"
