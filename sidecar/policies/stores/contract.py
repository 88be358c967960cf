"""What a store of policies can do, as capabilities: callers ask for the ones they need.

Stores are synchronous and safe to use from several threads; who has an event loop calls them in a
thread. Names are resource names, `namespaces/{namespace}/policies/{policy}`.

A **change** is one accepted write. Changes of a store are numbered 1, 2, 3, …, without a gap but
for those that were pruned; the number is given under a lock in the transaction that writes, so that
whoever has seen change n has seen all before it. Each makes exactly one revision of one policy, or
of the model catalog.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol, TypeAlias, runtime_checkable

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import (
    Attribution,
    Catalog,
    CatalogRecord,
    ModelList,
    Policy,
    PolicyRecord,
)
from sidecar.policies.stores import refusals

_AT_ONCE = 100
"""Policies that are read together."""


class ChangeKind(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    ROLLBACK = "rollback"
    DELETE = "delete"
    UNDELETE = "undelete"
    CATALOG = "catalog"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything in force at one moment.

    Args:
        change: number of the last change in it.
        records: policies that are not deleted, by resource name, sorted.
        unreadable: policies that this version cannot read, and why, by resource name.
        checked: the rules were found to hold for all of them when they were read.
    """

    change: int
    catalog: CatalogRecord
    records: Mapping[str, PolicyRecord]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    checked: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Change:
    """One accepted write, and the revision that it made: of a policy or of the catalog."""

    number: int
    kind: ChangeKind
    record: PolicyRecord | CatalogRecord


def now() -> datetime:
    """The time in UTC, in whole microseconds, which every store keeps."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class WriteNote:
    """What goes with a write, whatever it writes.

    Args:
        etag: the one the present revision must have; empty: any.
        request_id: a second write with the same id is not made: it gets what the first one made.
            Empty: none.
        request_digest: of what is asked for; a second write with another one is refused.
    """

    attribution: Attribution
    etag: str = ""
    request_id: str = ""
    request_digest: str = ""


@dataclass(frozen=True, slots=True)
class PolicyWrite:
    """A checked write of one policy.

    Args:
        policy: the new content; None keeps that of the present revision.
        catalog_etag: of the catalog that the content was checked against; None if it was not.
    """

    name: str
    kind: ChangeKind
    policy: Policy | None
    note: WriteNote
    catalog_etag: str | None = None


NO_CATALOG_ETAG = "0"
"""Of a database that has never had a model catalog. An empty one means any: of two that write the
first catalog at once, the second would take the place of the other's unseen."""


@dataclass(frozen=True, slots=True)
class CatalogWrite:
    """A checked write of the whole model catalog. `checked_at`: the last change of the snapshot
    whose policies it was checked against; None if it was not."""

    models: Catalog
    note: WriteNote
    checked_at: int | None = None


def blank_policy(name: str) -> Policy:
    """Stands for the content of a deleted policy that cannot be read. `name`: resource name."""
    _, namespace, _, policy = name.split("/")
    return Policy(policy, (), ModelList(()), namespace)


class MovedError(Exception):
    """What a write was checked against has changed since; check it again."""


UNREADABLE, UNREADABLE_ETAG = "unreadable", "unreadable_etag"
"""Facts of such an error for programs: the revision, as `{name}@{revision}`, and its etag."""


class UnreadableRevisionError(SidecarError):
    """A kept revision that this version cannot read: STORE_UNAVAILABLE, whoever asks again.
    `deleted`: it is a deletion."""

    def __init__(
        self,
        name: str,
        message: str,
        revision: int,
        etag: str,
        digest: str,
        deleted: bool = False,
    ) -> None:
        facts = {UNREADABLE: f"{name}@{revision}", UNREADABLE_ETAG: etag}
        super().__init__(ErrorCode.STORE_UNAVAILABLE, message, metadata=facts)
        self.name = name
        self.revision = revision
        self.etag = etag
        self.digest = digest
        self.deleted = deleted


Listed: TypeAlias = PolicyRecord | UnreadableRevisionError
"""One of a list: what cannot be read stands in its place."""


def name_of(listed: Listed) -> str:
    """Resource name."""
    if isinstance(listed, UnreadableRevisionError):
        return listed.name
    return listed.policy.resource_name


class PolicyStore(Protocol):
    """What every store can do.

    Every method raises SidecarError STORE_UNAVAILABLE where the store cannot be reached.
    """

    def snapshot(self) -> Snapshot: ...

    def last_change(self) -> int:
        """Number of the last change; 0 if there has been none."""
        ...

    def policy(self, name: str) -> PolicyRecord:
        """The present revision, also of a deleted policy. Raises SidecarError POLICY_NOT_FOUND."""
        ...

    def policies(
        self, namespace: str | None, after: str, limit: int, deleted: bool = False
    ) -> Sequence[Listed]:
        """The present revisions of up to `limit` policies whose names follow `after`, sorted.

        Args:
            namespace: None for all.
            deleted: include deleted ones.
        """
        ...

    def catalog(self) -> CatalogRecord: ...

    def wait(self, timeout_s: float) -> None:
        """Return when there may have been a change, after `timeout_s` at the latest, and when the
        store is closed."""
        ...

    def changes_after(self, number: int, limit: int) -> Sequence[Change]:
        """The first changes with greater numbers, in order.

        Raises:
            SidecarError: CHANGES_LOST where the store has never had such a number, or cannot tell
                what followed it.
        """
        ...

    @property
    def problem(self) -> str:
        """Why what it gives may be out of date; empty if nothing is known to be wrong."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class PolicyHistory(Protocol):
    """A store that keeps every revision."""

    def revision(self, name: str, revision: int) -> PolicyRecord:
        """Raises SidecarError POLICY_NOT_FOUND or REVISION_NOT_FOUND."""
        ...

    def revisions(self, name: str, before: int | None, limit: int) -> Sequence[Listed]:
        """Up to `limit` revisions below `before` (None: all), the latest first. Raises SidecarError
        POLICY_NOT_FOUND."""
        ...

    def catalog_revision(self, revision: int) -> CatalogRecord:
        """Raises SidecarError REVISION_NOT_FOUND."""
        ...


@runtime_checkable
class PolicyWriting(Protocol):
    """A store that takes writes."""

    def made_by(self, request_id: str, request_digest: str) -> Change | None:
        """What the write with this request id made; None if there has been none.

        Raises:
            SidecarError: INVALID_REQUEST if it asked for something else.
        """
        ...

    def write(self, write: PolicyWrite | CatalogWrite) -> Change:
        """Make one change: all of it or nothing, and durable when this returns.

        Raises:
            SidecarError: POLICY_NOT_FOUND, POLICY_EXISTS, POLICY_CONFLICT; INVALID_REQUEST as
                `made_by`; STORE_UNAVAILABLE, in which case it may have been made or not.
            MovedError: the catalog or a policy that it was checked against has changed.
        """
        ...

    def seed(self, catalog: Catalog, policies: Sequence[Policy], attribution: Attribution) -> int:
        """Fill a store that has never had a change; does nothing to another. How many changes were
        made."""
        ...


@runtime_checkable
class PolicyPruning(Protocol):
    """A store whose history can be shortened."""

    def prune(self, keep: int) -> int:
        """Takes out what is not among the `keep` latest revisions of its policy, or of the model
        catalog: 1 leaves the present ones. Nothing where the present one cannot be read: it may
        have to be rolled back. How many were taken out."""
        ...


@runtime_checkable
class PolicyFiles(Protocol):
    """A store of files, which people edit."""

    def file_of(self, name: str) -> str:
        """The file that holds the policy; empty if none does."""
        ...


def present_policies(store: PolicyStore) -> Iterator[Listed]:
    """All that are not deleted, sorted by name, also where the model catalog cannot be read. Not of
    one moment: what is written meanwhile may be among them or not."""
    after = ""
    while part := store.policies(None, after, _AT_ONCE):
        yield from part
        after = name_of(part[-1])


def change_at(store: PolicyStore, number: int) -> Change | None:
    """The change of that number; None where there is none, or it cannot be read."""
    try:
        found = next(iter(store.changes_after(number - 1, 1)), None) if number else None
    except SidecarError:
        return None
    return found if found is not None and found.number == number else None


def changes_following(
    store: PolicyStore, number: int, seen: Change | None, limit: int
) -> Sequence[Change]:
    """As `PolicyStore.changes_after`; CHANGES_LOST, too, where the change of that number is not
    `seen` any more (None: it is not known): a database that was restored, or has failed over, may
    have another one there."""
    if seen is None:
        return store.changes_after(number, limit)
    found = store.changes_after(number - 1, limit + 1)
    if not found or found[0] != seen:
        raise refusals.changes_lost(number, "is not the change any more that was sent")
    return found[1:]


def with_changes(before: Snapshot, changes: Sequence[Change]) -> Snapshot:
    """The snapshot after `changes`, which are all that followed it."""
    records = dict(before.records)
    unreadable = dict(before.unreadable)
    catalog, number = before.catalog, before.change
    for change in changes:
        number = change.number
        if isinstance(change.record, CatalogRecord):
            catalog = change.record
            continue
        name = change.record.policy.resource_name
        unreadable.pop(name, None)
        if change.record.deleted:
            records.pop(name, None)
        else:
            records[name] = change.record
    ordered = {name: records[name] for name in sorted(records)}
    return Snapshot(number, catalog, MappingProxyType(ordered), unreadable)
