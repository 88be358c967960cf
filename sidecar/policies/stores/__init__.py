"""Where policies are kept: files, SQLite, PostgreSQL."""

from __future__ import annotations

from pathlib import Path

from sidecar.policies.stores import refusals
from sidecar.policies.stores.contract import (
    CatalogWrite,
    Change,
    ChangeKind,
    Listed,
    MovedError,
    PolicyFiles,
    PolicyHistory,
    PolicyStore,
    PolicyWrite,
    PolicyWriting,
    Snapshot,
    UnreadableRevisionError,
    WriteNote,
    name_of,
    now,
    with_changes,
)
from sidecar.policies.stores.files import FileStore, InvalidFilesError, read_only
from sidecar.policies.stores.fixed import FixedStore

__all__ = [
    "CatalogWrite",
    "Change",
    "ChangeKind",
    "FileStore",
    "FixedStore",
    "InvalidFilesError",
    "Listed",
    "MovedError",
    "PolicyFiles",
    "PolicyHistory",
    "PolicyStore",
    "PolicyWrite",
    "PolicyWriting",
    "Snapshot",
    "StoreUrlError",
    "UnreadableRevisionError",
    "WriteNote",
    "check_url",
    "name_of",
    "now",
    "open_store",
    "read_only",
    "refusals",
    "with_changes",
]

_SQLITE = "sqlite:"
_POSTGRES = ("postgresql://", "postgres://")
_SECRETS = {"password", "sslpassword"}
"""Parameters of libpq."""


class StoreUrlError(ValueError):
    """An address that no store has; the text says what it should be."""


def check_url(url: str) -> str:
    """`url` in the spelling that `open_store` takes. Raises StoreUrlError."""
    if url.startswith(_SQLITE):
        path = url.removeprefix(_SQLITE).removeprefix("//")
        if not path:
            raise StoreUrlError("sqlite: names no file; write it like sqlite:/var/lib/policies.db")
        if path == ":memory:":
            raise StoreUrlError(
                "sqlite::memory: keeps nothing; write it like sqlite:/var/lib/policies.db"
            )
        return _SQLITE + path
    if url.startswith(_POSTGRES):
        # Imported only where a database is used.
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            address = make_url(url.replace("postgres://", "postgresql://", 1))
            (address.host or "").encode("idna")  # As when it is looked up.
        except (ArgumentError, ValueError):
            # Without the text, which may hold a password.
            raise StoreUrlError(
                "is not an address like postgresql://user@host:5432/database; write several hosts "
                "as postgresql://user@/database?host=one:5432&host=two:5432"
            ) from None
        if address.password is not None or _SECRETS & address.query.keys():
            raise StoreUrlError(
                "has a password, which would show wherever settings do; leave it out and give it "
                "by PGPASSWORD or a password file (PGPASSFILE)"
            )
        if not address.database:
            raise StoreUrlError(
                "names no database; write it like postgresql://user@host:5432/database"
            )
        return address.render_as_string()
    scheme = url.split(":")[0]
    raise StoreUrlError(
        f"{scheme!r} is no kind of store; write sqlite:FILE or postgresql://USER@HOST/DATABASE"
    )


def open_store(url: str, make: bool = True) -> PolicyStore:
    """The database at `url`, updated as needed.

    Args:
        make: also where there is none yet, or one without tables of policies.

    Raises:
        StoreUrlError: `url` is not of the form `sqlite:FILE` or `postgresql://…`.
        SidecarError: STORE_UNAVAILABLE.
    """
    url = check_url(url)
    if url.startswith(_SQLITE):
        from sidecar.policies.stores.sqlite import SqliteStore

        return SqliteStore(Path(url.removeprefix(_SQLITE)), make)
    from sidecar.policies.stores.postgres import PostgresStore

    return PostgresStore(url, make)
