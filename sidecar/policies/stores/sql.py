"""Policies in a SQL database: what SQLite and PostgreSQL have in common."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, delete, insert, select, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from sidecar.core.errors import SidecarError
from sidecar.core.policy import (
    Attribution,
    Catalog,
    CatalogRecord,
    Policy,
    PolicyRecord,
    catalog_digest,
    etag_of,
)
from sidecar.policies.documents import UnreadableDocumentError
from sidecar.policies.stores import refusals
from sidecar.policies.stores.contract import (
    NO_CATALOG_ETAG,
    CatalogWrite,
    Change,
    ChangeKind,
    Listed,
    MovedError,
    PolicyWrite,
    Snapshot,
    UnreadableRevisionError,
    WriteNote,
)
from sidecar.policies.stores.migrations import has_tables, is_up_to_date, migrate
from sidecar.policies.stores.tables import (
    CATALOG_NAME,
    Row,
    catalog_content,
    catalog_record,
    change_of,
    changes,
    heads,
    microseconds,
    policy_content,
    policy_record,
    state,
)

R = TypeVar("R")


class SqlStore(abc.ABC):
    """All capabilities but those of files.

    Args:
        what: the database as error texts name it; no password.
    """

    _name: ColumnElement[str] = heads.c.name
    """By which policies are sorted: character by character, as Python does."""

    def __init__(self, engine: Engine, what: str) -> None:
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        self._what = what
        self._opened = False

    def open(self, make: bool = True) -> None:
        """Updates the tables, and makes them if it may. Raises SidecarError STORE_UNAVAILABLE."""
        with self._reading() as connection:
            # If so also where another writes, or nothing can be written.
            up_to_date = is_up_to_date(connection)
            if not make and not has_tables(connection):
                raise refusals.not_made(self._what, "it has no tables of policies")
        if not up_to_date:
            with self._writing() as connection:
                migrate(connection, self._what)
        self._opened = True

    def close(self) -> None:
        self._engine.dispose()

    @property
    def problem(self) -> str:
        """Always empty: what a database cannot give, it fails to give."""
        return ""

    @abc.abstractmethod
    def wait(self, timeout_s: float) -> None:
        """As `PolicyStore`."""

    # --- Reading ----------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """As `PolicyStore`."""
        with self._reading() as connection:
            number = _last_change(connection)
            catalog = _catalog(connection)
            query = _present().where(~changes.c.deleted).order_by(self._name)
            rows = connection.execute(query).mappings().all()
        records: dict[str, PolicyRecord] = {}
        unreadable: dict[str, str] = {}
        for row in rows:
            try:
                records[row["name"]] = policy_record(row)
            except UnreadableDocumentError as error:
                unreadable[row["name"]] = str(error)
        return Snapshot(number, catalog, MappingProxyType(records), MappingProxyType(unreadable))

    def last_change(self) -> int:
        """As `PolicyStore`."""
        with self._reading() as connection:
            return _last_change(connection)

    def policy(self, name: str) -> PolicyRecord:
        """As `PolicyStore`."""
        with self._reading() as connection:
            row = _head(connection, name)
        if row is None or _is_lost(row):
            raise refusals.not_found(name)
        return _kept(policy_record, row, ", or roll the policy back, or delete it")

    def policies(
        self, namespace: str | None, after: str, limit: int, deleted: bool = False
    ) -> Sequence[Listed]:
        """As `PolicyStore`."""
        query = _present().where(self._name > after).order_by(self._name).limit(limit)
        if namespace is not None:
            query = query.where(heads.c.namespace == namespace)
        if not deleted:
            query = query.where(~changes.c.deleted)
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [_listed(row) for row in rows]

    def catalog(self) -> CatalogRecord:
        """As `PolicyStore`."""
        with self._reading() as connection:
            return _catalog(connection)

    def changes_after(self, number: int, limit: int) -> Sequence[Change]:
        """As `PolicyStore`."""
        query = select(changes).where(changes.c.change > number)
        query = query.order_by(changes.c.change).limit(limit)
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
            last = rows[-1]["change"] if rows else _last_change(connection)
        if number > last:
            raise refusals.changes_lost(number, f"has not been reached: the last change is {last}")
        return [_kept(change_of, row) for row in rows]

    def revision(self, name: str, revision: int) -> PolicyRecord:
        """As `PolicyHistory`."""
        query = select(changes).where(changes.c.name == name, changes.c.revision == revision)
        with self._reading() as connection:
            head = _head(connection, name)
            row = connection.execute(query).mappings().one_or_none()
        if head is None:
            raise refusals.not_found(name)
        if row is None:
            raise refusals.no_revision(name, revision, head["revision"])
        return _kept(policy_record, row)

    def revisions(self, name: str, before: int | None, limit: int) -> Sequence[Listed]:
        """As `PolicyHistory`."""
        query = select(changes).where(changes.c.name == name)
        if before is not None:
            query = query.where(changes.c.revision < before)
        query = query.order_by(changes.c.revision.desc()).limit(limit)
        with self._reading() as connection:
            if _head(connection, name) is None:
                raise refusals.not_found(name)
            rows = connection.execute(query).mappings().all()
        return [_listed(row) for row in rows]

    def catalog_revision(self, revision: int) -> CatalogRecord:
        """As `PolicyHistory`."""
        query = select(changes).where(
            changes.c.name == CATALOG_NAME, changes.c.revision == revision
        )
        with self._reading() as connection:
            head = _head(connection, CATALOG_NAME)
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            last = 0 if head is None else head["revision"]
            raise refusals.no_revision("the model catalog", revision, last)
        return _kept(catalog_record, row)

    # --- Writing ----------------------------------------------------------------------------------

    def made_by(self, request_id: str, request_digest: str) -> Change | None:
        """As `PolicyWriting`."""
        with self._reading() as connection:
            row = _by_request(connection, request_id, request_digest)
        return None if row is None else _kept(change_of, row)

    def write(self, write: PolicyWrite | CatalogWrite) -> Change:
        """As `PolicyWriting`."""
        with self._writing() as connection:
            # Locks the counter: from here to the commit there is no other writer, so what is read
            # below stays true, and changes become visible in the order of their numbers.
            number = self._next_change(connection)
            repeated = _by_request(connection, write.note.request_id, write.note.request_digest)
            if repeated is not None:
                connection.rollback()
                return _kept(change_of, repeated)
            row = _policy_row if isinstance(write, PolicyWrite) else _catalog_row
            made = {**row(connection, write), **_note_values(write.note), "change": number}  # type: ignore[arg-type]
            self._insert(connection, made)
            self._announce(connection, number)
        return _kept(change_of, made)

    def seed(self, catalog: Catalog, policies: Sequence[Policy], attribution: Attribution) -> int:
        """As `PolicyWriting`."""
        note = _note_values(WriteNote(attribution))
        with self._writing() as connection:
            if self._next_change(connection) != 1:
                connection.rollback()
                return 0
            rows = [_new_catalog(catalog, 1)]
            rows += [_new_policy(policy, ChangeKind.CREATE, 1) for policy in policies]
            for number, row in enumerate(rows, 1):
                self._insert(connection, {**row, **note, "change": number})
            connection.execute(update(state).values(last_change=len(rows)))
            self._announce(connection, len(rows))
        return len(rows)

    def prune(self, keep: int) -> int:
        """As `PolicyPruning`; of one policy after the other, so that no writer waits for long."""
        joined = heads.join(changes, heads.c.change == changes.c.change)
        present = select(changes).select_from(joined).where(changes.c.revision > keep)
        with self._reading() as connection:
            longer = connection.execute(present).mappings().all()
        pruned = 0
        for row in filter(_is_readable, longer):
            # Nothing of it is present: there can only be later ones by now.
            last = row["revision"] - keep
            old = (changes.c.name == row["name"]) & (changes.c.revision <= last)
            with self._writing() as connection:
                pruned += connection.execute(delete(changes).where(old)).rowcount
        return pruned

    def _next_change(self, connection: Connection) -> int:
        counted = (
            update(state)
            .where(state.c.id == 1)
            .values(last_change=state.c.last_change + 1)
            .returning(state.c.last_change)
        )
        return int(connection.execute(counted).scalar_one())

    def _insert(self, connection: Connection, row: Mapping[str, Any]) -> None:
        namespace = row["name"].split("/")[1] if row["name"] != CATALOG_NAME else ""
        connection.execute(insert(changes).values(dict(row)))
        moved = update(heads).where(heads.c.name == row["name"]).values(change=row["change"])
        if connection.execute(moved).rowcount == 0:
            connection.execute(
                insert(heads).values(name=row["name"], namespace=namespace, change=row["change"])
            )

    def _announce(self, connection: Connection, number: int) -> None:  # noqa: B027 -- may be nothing
        """Tell other processes, when the transaction is committed."""

    # --- Connections ------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """All reads of the block see the same moment."""
        with self._reaching(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """Committed at the end of the block, and rolled back if it raises."""
        with self._reaching(), self._writer.connect() as connection:
            transaction = connection.begin()
            try:
                yield connection
                if transaction.is_active:
                    transaction.commit()
            finally:
                if transaction.is_active:
                    transaction.rollback()

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Raises SidecarError STORE_UNAVAILABLE for whatever the database says."""
        try:
            yield
        except PoolTimeoutError:
            raise self._unavailable("all its connections are in use") from None
        except DBAPIError as error:
            # Without the statement, which may hold what people wrote.
            raise self._unavailable(_first_line(str(error.orig)), error.orig) from error
        except SQLAlchemyError as error:
            raise self._unavailable(type(error).__name__) from error

    def _unavailable(self, why: str, error: BaseException | None = None) -> SidecarError:
        if self._opened:
            return refusals.unavailable(self._what, why, self._instead(error))
        return refusals.not_opened(self._what, why, self._remedy(error))

    def _instead(self, error: BaseException | None) -> str:
        """What to do where the database was opened, and fails now; `error` is the driver's."""
        return "try again"

    @abc.abstractmethod
    def _remedy(self, error: BaseException | None) -> str:
        """What to do where the database cannot be opened; `error` is the driver's."""


def _kept(read: Callable[[Row], R], row: Row, instead: str = "") -> R:
    """What a row holds. Raises UnreadableRevisionError. `instead`: what else to do."""
    try:
        return read(row)
    except UnreadableDocumentError as error:
        raise UnreadableRevisionError(
            row["name"],
            f"{row['name']}, revision {row['revision']}, cannot be read: {error}; if a newer "
            f"version wrote it, update this sidecar{instead}",
            row["revision"],
            row["etag"],
            row["digest"],
            row["deleted"],
        ) from None


def _is_lost(head: Row) -> bool:
    """True for a deleted policy that this version cannot read: nothing is left to be undeleted, and
    another one may have the name."""
    if not head["deleted"]:
        return False
    return isinstance(_listed(head), UnreadableRevisionError)


def _is_readable(row: Row) -> bool:
    try:
        change_of(row)
    except UnreadableDocumentError:
        return False
    return True


def _listed(row: Row) -> Listed:
    try:
        return _kept(policy_record, row)
    except UnreadableRevisionError as error:
        return error


def _present() -> Any:
    """The present revisions of all policies."""
    joined = heads.join(changes, heads.c.change == changes.c.change)
    return select(changes).select_from(joined).where(heads.c.name != CATALOG_NAME)


def _last_change(connection: Connection) -> int:
    return int(connection.execute(select(state.c.last_change)).scalar_one())


def _head(connection: Connection, name: str) -> RowMapping | None:
    joined = heads.join(changes, heads.c.change == changes.c.change)
    query = select(changes).select_from(joined).where(heads.c.name == name)
    return connection.execute(query).mappings().one_or_none()


def _catalog(connection: Connection) -> CatalogRecord:
    row = _head(connection, CATALOG_NAME)
    if row is None:
        return CatalogRecord(MappingProxyType({}), etag=NO_CATALOG_ETAG)
    return _kept(catalog_record, row, ", or apply another model catalog")


def _by_request(connection: Connection, request_id: str, digest: str) -> RowMapping | None:
    if not request_id:
        return None
    query = select(changes).where(changes.c.request_id == request_id)
    row = connection.execute(query).mappings().one_or_none()
    if row is not None and row["request_digest"] != digest:
        raise refusals.reused_request_id(request_id)
    return row


def _policy_row(connection: Connection, write: PolicyWrite) -> dict[str, Any]:
    """The row that `write` makes; raises what `PolicyWriting.write` says."""
    head = _head(connection, write.name)
    _check_presence(write, head)
    if head is not None and write.note.etag and write.note.etag != head["etag"]:
        raise refusals.conflict(write.name, write.note.etag, head["etag"])
    asked = write.catalog_etag
    if asked is not None and asked != _catalog_etag(_head(connection, CATALOG_NAME)):
        raise MovedError
    revision = 1 if head is None else head["revision"] + 1
    if write.policy is not None:
        return _new_policy(write.policy, write.kind, revision)
    assert head is not None, "content is kept only where there is some"
    return {
        "name": write.name,
        "revision": revision,
        "kind": write.kind.value,
        "deleted": write.kind is ChangeKind.DELETE,
        "digest": head["digest"],
        "etag": etag_of(revision, head["digest"]),
        "content": head["content"],
    }


def _check_presence(write: PolicyWrite, head: RowMapping | None) -> None:
    if write.kind is ChangeKind.CREATE:
        if head is not None and not _is_lost(head):
            raise refusals.exists(write.name, head["deleted"])
    elif head is None:
        raise refusals.not_found(write.name)
    elif write.kind is ChangeKind.UNDELETE:
        if not head["deleted"]:
            raise refusals.not_deleted(write.name)
    elif head["deleted"]:
        raise refusals.deleted(write.name)


def _catalog_row(connection: Connection, write: CatalogWrite) -> dict[str, Any]:
    head = _head(connection, CATALOG_NAME)
    etag = _catalog_etag(head)
    if write.note.etag and write.note.etag != etag:
        raise refusals.conflict("the model catalog", write.note.etag, etag)
    # The counter was raised by this transaction already.
    if write.checked_at is not None and write.checked_at != _last_change(connection) - 1:
        raise MovedError
    return _new_catalog(write.models, 1 if head is None else head["revision"] + 1)


def _catalog_etag(head: RowMapping | None) -> str:
    return NO_CATALOG_ETAG if head is None else str(head["etag"])


def _new_policy(policy: Policy, kind: ChangeKind, revision: int) -> dict[str, Any]:
    digest = policy.digest()
    return {
        "name": policy.resource_name,
        "revision": revision,
        "kind": kind.value,
        "deleted": False,
        "digest": digest,
        "etag": etag_of(revision, digest),
        "content": policy_content(policy),
    }


def _new_catalog(models: Catalog, revision: int) -> dict[str, Any]:
    digest = catalog_digest(models)
    return {
        "name": CATALOG_NAME,
        "revision": revision,
        "kind": ChangeKind.CATALOG.value,
        "deleted": False,
        "digest": digest,
        "etag": etag_of(revision, digest),
        "content": catalog_content(models),
    }


def _note_values(note: WriteNote) -> dict[str, Any]:
    return {
        "author": note.attribution.author,
        "author_verified": note.attribution.verified,
        "message": note.attribution.message,
        "time": microseconds(note.attribution.time),
        "request_id": note.request_id or None,
        "request_digest": note.request_digest or None,
    }


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0]
