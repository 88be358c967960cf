"""Makes and updates the tables of the SQL stores, by Alembic."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from sidecar.core.errors import ErrorCode, SidecarError

_FOLDER = Path(__file__).parent
HEAD = "0001"
"""The last step of this version; a test compares it with the steps there are."""
_LOCK = 5_271_909_117
"""Any number, the same in every version: it keeps sidecars that start together apart."""


def has_tables(connection: Connection) -> bool:
    """True for those of any version."""
    return _present(connection) is not None


def is_up_to_date(connection: Connection) -> bool:
    return _present(connection) == HEAD


def migrate(connection: Connection, what: str) -> None:
    """Bring the tables up to date, within the transaction of `connection`.

    Raises:
        SidecarError: STORE_UNAVAILABLE if a newer version has updated them.
    """
    if is_up_to_date(connection):
        return
    # Imported only now: it takes longer than all the rest of a store.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["connection"] = connection
    present = _present(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if present is not None and present not in known:
        raise SidecarError(
            ErrorCode.STORE_UNAVAILABLE,
            f"the tables of {what} were updated to {present!r} by a newer version; update this "
            "sidecar",
        )
    command.upgrade(config, "head")


def _present(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.execute(
        text("SELECT version_num FROM alembic_version")
    ).scalar()
    return version
