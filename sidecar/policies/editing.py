"""Changes of policies and of the catalog, checked before a store is asked to keep them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from sidecar.core.errors import ErrorCode, FieldViolation, SidecarError
from sidecar.core.policy import (
    Catalog,
    CatalogRecord,
    Model,
    Policy,
    PolicyRecord,
    catalog_digest,
    etag_of,
)
from sidecar.policies.findings import Finding, Severity
from sidecar.policies.rules import check_catalog, check_policy, limited, policy_errors
from sidecar.policies.stores import refusals
from sidecar.policies.stores.contract import (
    CatalogWrite,
    ChangeKind,
    Listed,
    MovedError,
    PolicyHistory,
    PolicyStore,
    PolicyWrite,
    PolicyWriting,
    UnreadableRevisionError,
    WriteNote,
    blank_policy,
    name_of,
    present_policies,
)

_TRIES = 50
"""Of a write without an etag, while others write the same policy."""

_SAID = 5
"""Of what is wrong with one policy, so that others are named as well."""


class WritableStore(PolicyStore, PolicyHistory, PolicyWriting, Protocol):
    """A store that takes writes and keeps them."""


class RefusedPolicyError(SidecarError):
    """A policy or catalog with errors; code INVALID_POLICY."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        first = findings[0]
        more = f" ({len(findings) - 1} more)" if len(findings) > 1 else ""
        text = f"{first.path}: {first.message}{more}" if first.path else f"{first.message}{more}"
        super().__init__(
            ErrorCode.INVALID_POLICY,
            text,
            [FieldViolation(each.path, each.message) for each in findings],
        )
        self.findings = findings


@dataclass(frozen=True, slots=True)
class _Held:
    """What a catalog is checked against. `change`: the last one in it."""

    change: int
    records: Mapping[str, PolicyRecord]
    catalog_etag: str
    catalog_revision: int


class PolicyEditing:
    """Makes changes of one store.

    What was read for the checks is part of the write's conditions, so that two changes, each right
    by itself, never make something wrong together.

    Args:
        compiled: compiles a policy for the routing model in use. Raises SidecarError
            POLICY_TOO_LARGE.
        default: resource name of the policy of requests that name none.

    Every method raises SidecarError: what `PolicyWriting.write` says, and RefusedPolicyError and
    POLICY_TOO_LARGE for content. With `validate_only` it returns what it would have made, and
    makes nothing.
    """

    def __init__(
        self, store: WritableStore, compiled: Callable[[Policy], object], default: str = ""
    ) -> None:
        self._store = store
        self._compiled = compiled
        self._default = default

    def create(self, policy: Policy, note: WriteNote, validate_only: bool = False) -> PolicyRecord:
        """The first revision of a new policy; or the next one of a deleted policy which cannot be
        undeleted as it was, since it names models that have left the catalog, or is too large."""
        name = policy.resource_name

        def plan() -> PolicyWrite:
            present = self._present(name)
            if present is None:
                return self._checked(name, ChangeKind.CREATE, policy, note)
            if not present.deleted or self._can_return(present, note):
                raise refusals.exists(name, present.deleted)
            expecting = _expecting(note, present)
            return self._checked(name, ChangeKind.UNDELETE, policy, expecting)

        return self._policy(plan, None, note, validate_only)

    def update(
        self,
        name: str,
        edit: Callable[[Policy], Policy],
        note: WriteNote,
        validate_only: bool = False,
    ) -> PolicyRecord:
        """The next revision: what `edit` makes of the present one."""

        def plan() -> PolicyWrite:
            present = self._live(name, note)
            expecting = _expecting(note, present)
            return self._checked(name, ChangeKind.UPDATE, edit(present.policy), expecting)

        return self._policy(plan, name, note, validate_only)

    def rollback(
        self, name: str, revision: int, note: WriteNote, validate_only: bool = False
    ) -> PolicyRecord:
        """A new revision with the content of an earlier one, also where the present one is of a
        newer version, which has been taken back itself."""

        def plan() -> PolicyWrite:
            etag = self._live_etag(name, note)
            earlier = self._store.revision(name, revision).policy
            return self._checked(name, ChangeKind.ROLLBACK, earlier, replace(note, etag=etag))

        return self._policy(plan, name, note, validate_only)

    def delete(self, name: str, note: WriteNote, validate_only: bool = False) -> PolicyRecord:
        """Deletes a policy, and keeps its history, also where this version cannot read it. Raises
        SidecarError POLICY_IN_USE for the default policy."""

        def plan() -> PolicyWrite:
            if name == self._default:
                raise SidecarError(
                    ErrorCode.POLICY_IN_USE,
                    f"{name} is the policy of requests that name none; set policies.default_policy "
                    "to another one first",
                )
            self._live_etag(name, note)
            # Whatever is there then, unless the note says otherwise: nothing was made of it here.
            return PolicyWrite(name, ChangeKind.DELETE, None, note)

        return self._policy(plan, None, note, validate_only)

    def undelete(self, name: str, note: WriteNote, validate_only: bool = False) -> PolicyRecord:
        """Brings a deleted policy back; it is checked anew."""

        def plan() -> PolicyWrite:
            present = self._store.policy(name)
            if not present.deleted:
                raise refusals.not_deleted(name)
            _check_etag(name, note, present.etag)
            expecting = _expecting(note, present)
            return self._checked(name, ChangeKind.UNDELETE, present.policy, expecting)

        return self._policy(plan, None, note, validate_only)

    def update_catalog(
        self, models: tuple[Model, ...], note: WriteNote, validate_only: bool = False
    ) -> CatalogRecord:
        """Replaces the catalog, also one that this version cannot read. Raises SidecarError
        POLICY_IN_USE if a policy names a model that is not in it."""
        repeated = self._repeated(note)
        if isinstance(repeated, CatalogRecord):
            return repeated
        _refuse(check_catalog(models))
        catalog = {model.id: model for model in models}
        for _ in range(_TRIES):
            held = self._held()
            try:
                _check_etag("the model catalog", note, held.catalog_etag)
                check_users(held.records, catalog)
                if validate_only:
                    return _as_if_catalog(catalog, held.catalog_revision + 1, note)
                made = self._store.write(CatalogWrite(catalog, note, held.change)).record
            except MovedError:
                continue
            except SidecarError as error:
                repeated = self._repeated_meanwhile(note, error)
                if isinstance(repeated, CatalogRecord):
                    return repeated
                raise
            assert isinstance(made, CatalogRecord)
            return made
        raise refusals.conflict("the model catalog", note.etag, self._held().catalog_etag)

    def _held(self) -> _Held:
        try:
            held = self._store.snapshot()
            return _Held(held.change, held.records, held.catalog.etag, held.catalog.revision)
        except UnreadableRevisionError as catalog:
            etag, revision = catalog.etag, catalog.revision
        # Asked first: a change of what is read next makes the write be checked again.
        change = self._store.last_change()
        present = present_policies(self._store)
        records = {name_of(each): each for each in present if isinstance(each, PolicyRecord)}
        return _Held(change, records, etag, revision)

    def _policy(
        self,
        plan: Callable[[], PolicyWrite],
        retried: str | None,
        note: WriteNote,
        validate_only: bool,
    ) -> PolicyRecord:
        """`retried`: the policy, if the write is planned anew when another one came first."""
        repeated = self._repeated(note)
        if isinstance(repeated, PolicyRecord):
            return repeated
        for attempt in range(_TRIES):
            try:
                write = plan()
                if validate_only:
                    return self._as_if(write)
                made = self._store.write(write).record
            except MovedError:
                continue
            except SidecarError as error:
                repeated = self._repeated_meanwhile(note, error)
                if isinstance(repeated, PolicyRecord):
                    return repeated
                lost = error.code is ErrorCode.POLICY_CONFLICT and not note.etag
                if retried is None or not lost or attempt == _TRIES - 1:
                    raise
                continue
            assert isinstance(made, PolicyRecord)
            return made
        raise refusals.conflict(write.name, note.etag, self._store.policy(write.name).etag)

    def _repeated(self, note: WriteNote) -> PolicyRecord | CatalogRecord | None:
        if not note.request_id:
            return None
        made = self._store.made_by(note.request_id, note.request_digest)
        return None if made is None else made.record

    def _repeated_meanwhile(
        self, note: WriteNote, error: SidecarError
    ) -> PolicyRecord | CatalogRecord | None:
        """What the same request, sent twice at once, has made since it was looked for: it may be
        why this one is refused."""
        if error.code is ErrorCode.STORE_UNAVAILABLE:
            return None
        return self._repeated(note)

    def _present(self, name: str) -> PolicyRecord | None:
        try:
            return self._store.policy(name)
        except SidecarError as error:
            if error.code is ErrorCode.POLICY_NOT_FOUND:
                return None
            raise

    def _can_return(self, deleted: PolicyRecord, note: WriteNote) -> bool:
        try:
            self._checked(deleted.policy.resource_name, ChangeKind.UNDELETE, deleted.policy, note)
        except SidecarError as error:
            if error.code not in (ErrorCode.INVALID_POLICY, ErrorCode.POLICY_TOO_LARGE):
                raise
            return False
        return True

    def _last(self, name: str) -> Listed | None:
        """The last revision; None if there has been no such policy."""
        try:
            return next(iter(self._store.revisions(name, None, 1)))
        except SidecarError as error:
            if error.code is ErrorCode.POLICY_NOT_FOUND:
                return None
            raise

    def _live(self, name: str, note: WriteNote) -> PolicyRecord:
        present = self._store.policy(name)
        if present.deleted:
            raise refusals.deleted(name)
        _check_etag(name, note, present.etag)
        return present

    def _live_etag(self, name: str, note: WriteNote) -> str:
        """Of a policy that need not be read."""
        try:
            return self._live(name, note).etag
        except UnreadableRevisionError as present:
            _check_etag(name, note, present.etag)
            return present.etag

    def _checked(self, name: str, kind: ChangeKind, policy: Policy, note: WriteNote) -> PolicyWrite:
        catalog = self._store.catalog()
        _refuse(check_policy(policy, catalog.models))
        self._compiled(policy)
        return PolicyWrite(name, kind, policy, note, catalog.etag)

    def _as_if(self, write: PolicyWrite) -> PolicyRecord:
        last, policy = self._last(write.name), write.policy
        revision = 1 if last is None else last.revision + 1
        if policy is not None:
            digest = policy.digest()
        else:
            assert last is not None, "content is kept only where there is some"
            digest = last.digest
            policy = last.policy if isinstance(last, PolicyRecord) else blank_policy(write.name)
        return PolicyRecord(
            policy,
            revision,
            etag_of(revision, digest),
            digest,
            write.note.attribution,
            deleted=write.kind is ChangeKind.DELETE,
        )


def _as_if_catalog(catalog: Catalog, revision: int, note: WriteNote) -> CatalogRecord:
    digest = catalog_digest(catalog)
    etag = etag_of(revision, digest)
    return CatalogRecord(catalog, revision, etag, digest, note.attribution)


def _expecting(note: WriteNote, present: PolicyRecord) -> WriteNote:
    """The note of a write that holds for `present` alone, which it was made from."""
    return replace(note, etag=present.etag)


def _check_etag(name: str, note: WriteNote, present: str) -> None:
    if note.etag and note.etag != present:
        raise refusals.conflict(name, note.etag, present)


def _refuse(findings: tuple[Finding, ...]) -> None:
    errors = tuple(each for each in findings if each.severity is Severity.ERROR)
    if errors:
        raise RefusedPolicyError(errors)


def check_users(records: Mapping[str, PolicyRecord], catalog: Catalog) -> None:
    """Raises SidecarError POLICY_IN_USE if one of the policies would be wrong with this catalog."""
    broken = [FieldViolation(each.path, each.message) for each in limited(_users(records, catalog))]
    if broken:
        raise SidecarError(
            ErrorCode.POLICY_IN_USE,
            f"{broken[0].field} would be wrong with this catalog: {broken[0].description}; change "
            "the policies first",
            broken,
        )


def _users(records: Mapping[str, PolicyRecord], catalog: Catalog) -> Iterator[Finding]:
    """What is wrong with which policy, as the finding's path."""
    for name, record in records.items():
        for found in itertools.islice(_made_wrong(record.policy, catalog), _SAID):
            yield replace(found, path=name, message=f"{found.path}: {found.message}")


def _made_wrong(policy: Policy, catalog: Catalog) -> Iterator[Finding]:
    """Errors that the policy has by the catalog. It may have others, from before a rule was made:
    these are no reason to keep a catalog as it is."""
    if next(policy_errors(policy, catalog), None) is not None:
        others = set(policy_errors(policy, None))
        yield from (each for each in policy_errors(policy, catalog) if each not in others)
