"""Where policies are kept: files, SQLite, PostgreSQL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.policies.findings import quoted
from sidecar.policies.stores import refusals
from sidecar.policies.stores.contract import (
    UNREADABLE,
    UNREADABLE_ETAG,
    CatalogWrite,
    Change,
    ChangeKind,
    Listed,
    MovedError,
    PolicyFiles,
    PolicyHistory,
    PolicyPruning,
    PolicyStore,
    PolicyWrite,
    PolicyWriting,
    Snapshot,
    UnreadableRevisionError,
    WriteNote,
    change_at,
    changes_following,
    name_of,
    now,
    with_changes,
)
from sidecar.policies.stores.files import FileStore, InvalidFilesError, read_only
from sidecar.policies.stores.fixed import FixedStore

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

__all__ = [
    "UNREADABLE",
    "UNREADABLE_ETAG",
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
    "PolicyPruning",
    "PolicyStore",
    "PolicyWrite",
    "PolicyWriting",
    "Snapshot",
    "StoreUrlError",
    "UnreadableRevisionError",
    "WriteNote",
    "change_at",
    "changes_following",
    "check_url",
    "name_of",
    "now",
    "open_store",
    "read_only",
    "refusals",
    "with_changes",
]

_SURROGATE = re.compile("[\ud800-\udfff]")
_SQLITE = "sqlite:"
_POSTGRES = ("postgresql://", "postgres://")
_SECRETS = {"password", "sslpassword"}
"""Parameters of libpq."""
_SEVERAL = "write several hosts as postgresql://user@/database?host=one:5432&host=two:5432"


class StoreUrlError(ValueError):
    """An address that no store has; the text says what it should be."""


def check_url(url: str) -> str:
    """`url` in the spelling that `open_store` takes. Raises StoreUrlError."""
    if "\0" in url or _SURROGATE.search(url):
        raise StoreUrlError("has a NUL or a byte that is not UTF-8; write it without")
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
                f"is not an address like postgresql://user@host:5432/database; {_SEVERAL}"
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
        _check_parameters(address)
        return address.render_as_string()
    scheme = url.split(":")[0]
    raise StoreUrlError(
        f"{scheme!r} is no kind of store; write sqlite:FILE or postgresql://USER@HOST/DATABASE"
    )


def _check_parameters(address: URL) -> None:
    from psycopg import pq
    from sqlalchemy.exc import ArgumentError

    # What libpq does not know would be SQLAlchemy's, such as `plugin`, or Python's.
    known = {each.keyword.decode() for each in pq.Conninfo.get_defaults()}
    for name, value in address.query.items():
        if name not in known:
            raise StoreUrlError(f"has {quoted(name)}, which is no parameter of libpq; leave it out")
        if not isinstance(value, str) and name not in ("host", "port"):
            raise StoreUrlError(f"has {quoted(name)} more than once; leave one")
    try:
        dialect = address.set(drivername="postgresql+psycopg").get_dialect()
        dialect().create_connect_args(address)
    except ArgumentError as error:
        raise StoreUrlError(f"has hosts or ports of no use: {error}; {_SEVERAL}") from None


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
