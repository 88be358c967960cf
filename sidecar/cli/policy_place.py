"""Where `sidecar policy` finds policies: a running sidecar, a store, or files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

import click

from sidecar.cli.failures import Failure
from sidecar.cli.tls_options import Tls
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import CatalogRecord, Model, Policy, PolicyRecord
from sidecar.policies.editing import PolicyEditing
from sidecar.policies.findings import quoted
from sidecar.policies.stores import (
    Change,
    FileStore,
    InvalidFilesError,
    Listed,
    PolicyFiles,
    PolicyHistory,
    PolicyPruning,
    PolicyStore,
    PolicyWriting,
    StoreUrlError,
    UnreadableRevisionError,
    WriteNote,
    change_at,
    changes_following,
    name_of,
    open_store,
    read_only,
    refusals,
)

CONFLICT, NOT_FOUND, UNREACHABLE = 3, 4, 5
"""Exit statuses beside 1, for what is refused otherwise."""

_STATUSES = {
    ErrorCode.POLICY_CONFLICT: CONFLICT,
    ErrorCode.POLICY_NOT_FOUND: NOT_FOUND,
    ErrorCode.REVISION_NOT_FOUND: NOT_FOUND,
    ErrorCode.STORE_UNAVAILABLE: UNREACHABLE,
    ErrorCode.DRAINING: UNREACHABLE,
}
_ID = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"namespaces/{_ID}/policies/{_ID}")
_SIDECAR = re.compile(r"unix:.+|dns:.+|(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]):\d{1,5}")
_AT_ONCE = 100
_LOOK_S = 0.5


class PlaceFailure(Failure):
    """What a place refused; `exit_code` says of which kind it is. `unreadable`: the revision that
    it cannot read, now or later, and `etag` that one's; 0 where that is not why."""

    def __init__(
        self, code: ErrorCode | None, message: str, unreadable: int = 0, etag: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.unreadable = unreadable
        self.etag = etag
        status = _STATUSES.get(code, 1) if code is not None else UNREACHABLE
        # click declares it for the class, and reads it from the instance.
        self.exit_code = status  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Found:
    """A list. `unreadable`: what belongs in it and cannot be read, a sentence each."""

    records: Sequence[PolicyRecord]
    unreadable: Sequence[str] = ()


class PolicyPlace(Protocol):
    """Policies that commands read and change. Methods raise PlaceFailure."""

    def get(self, name: str, revision: int = 0) -> PolicyRecord: ...

    def list(self, namespace: str, text: str = "", deleted: bool = False) -> Found: ...

    def history(self, name: str, limit: int) -> Found: ...

    def catalog(self, revision: int = 0) -> CatalogRecord: ...

    def create(
        self, policy: Policy, note: WriteNote, dry_run: bool, examples_pass: bool = False
    ) -> PolicyRecord:
        """`examples_pass`: refuse the policy unless each of its examples goes to its route."""
        ...

    def update(
        self, policy: Policy, note: WriteNote, dry_run: bool, examples_pass: bool = False
    ) -> PolicyRecord:
        """As `create`."""
        ...

    def delete(self, name: str, note: WriteNote, dry_run: bool) -> PolicyRecord: ...

    def undelete(self, name: str, note: WriteNote, dry_run: bool) -> PolicyRecord: ...

    def rollback(
        self, name: str, revision: int, note: WriteNote, dry_run: bool
    ) -> PolicyRecord: ...

    def update_catalog(
        self, models: Sequence[Model], note: WriteNote, dry_run: bool
    ) -> CatalogRecord: ...

    def watch(self, after: int | None, tell: Callable[[str], None]) -> Iterator[Change]:
        """Without end.

        Args:
            after: None: from now on.
            tell: is told of what keeps changes from being seen, and of its end.
        """
        ...

    def close(self) -> None: ...


def resource_name(name: str) -> str:
    """`name` itself, or the policy of that id in the namespace `default`. Raises click.UsageError
    if it can be neither."""
    if _NAME.fullmatch(name):
        return name
    if re.fullmatch(_ID, name):
        return f"namespaces/default/policies/{name}"
    raise click.UsageError(
        f"{quoted(name)} names no policy; give an id, which has 1 to 63 lower-case letters, digits "
        "and inner hyphens, or namespaces/NAMESPACE/policies/ID"
    )


def namespace_id(namespace: str) -> str:
    """`namespace` itself, or `-` for all. Raises click.UsageError if it is neither."""
    if namespace == "-" or re.fullmatch(_ID, namespace):
        return namespace
    raise click.UsageError(
        f"--namespace: {quoted(namespace)} is no id, which has 1 to 63 lower-case letters, digits "
        "and inner hyphens; give - for all"
    )


def is_sidecar(at: str) -> bool:
    """True for what can be the address of a running sidecar. Raises Failure as `is_path`."""
    return _SIDECAR.fullmatch(at) is not None and not is_path("--at", at)


def is_path(option: str, value: str) -> bool:
    """True for a file or folder that is there. Raises Failure for what cannot be looked at."""
    try:
        return Path(value).exists()
    except OSError as error:
        raise Failure(f"{option} {value}: {error.strerror}; name another") from None


class Missing(Enum):
    """What becomes of a database that is not there yet."""

    REFUSED = auto()
    MADE = auto()
    FORESEEN = auto()
    """It is left so, and an empty one stands for it."""


def open_place(
    at: str, timeout_s: float, tls: Tls | None = None, missing: Missing = Missing.REFUSED
) -> PolicyPlace:
    """The place that `--at` names; a sidecar's address is reached by `tls`. Raises Failure."""
    if at.startswith(("sqlite:", "postgresql:", "postgres:")):
        try:
            return StorePlace(open_store(at, make=missing is Missing.MADE))
        except StoreUrlError as error:
            raise Failure(f"--at {error}") from None
        except SidecarError as error:
            if missing is Missing.FORESEEN and isinstance(error, refusals.NotMadeError):
                return StorePlace(_empty_store())
            raise PlaceFailure(error.code, f"--at: {error.message}") from None
    if not at:
        # As a path it would be the working folder.
        raise Failure("--at is empty; name a sidecar (host:port), a database, a file or a folder")
    if is_path("--at", at):
        try:
            return StorePlace(FileStore([at]))
        except InvalidFilesError as error:
            raise Failure(str(error)) from None
    if not _SIDECAR.fullmatch(at):
        raise Failure(
            f"--at {at}: there is no such file, and it is not the address of a sidecar (host:port "
            "or unix:path) or of a database (sqlite:FILE, postgresql://…)"
        )
    # Imported only now: files and databases need no gRPC.
    from sidecar.cli.policy_remote import SidecarPlace

    return SidecarPlace(at, timeout_s, tls)


def _empty_store() -> PolicyStore:
    from sidecar.policies.stores.sqlite import MemoryStore

    return MemoryStore()


class StorePlace:
    """A store that this process opens itself.

    What needs the routing model is not checked: whether a policy leaves room in its prompt is for
    the sidecars to say, which keep the last good revision if it does not.
    """

    def __init__(self, store: PolicyStore) -> None:
        self._store = store

    def get(self, name: str, revision: int = 0) -> PolicyRecord:
        with failing():
            if not revision:
                return self._store.policy(name)
            if isinstance(self._store, PolicyHistory):
                return self._store.revision(name, revision)
            present = self._store.policy(name)
            if revision != present.revision:
                raise refusals.no_history(name)
            return present

    def list(self, namespace: str, text: str = "", deleted: bool = False) -> Found:
        from sidecar.grpc_api.policy_filter import policy_filter

        space = None if namespace == "-" else namespace
        with failing():
            matches = policy_filter(text)
            listed: list[Listed] = []
            after = ""
            while part := self._store.policies(space, after, _AT_ONCE, deleted):
                listed += part
                after = name_of(part[-1])
            found = _found(listed)
            return replace(found, records=[each for each in found.records if matches(each)])

    def history(self, name: str, limit: int) -> Found:
        with failing():
            if not isinstance(self._store, PolicyHistory):
                return Found([self._store.policy(name)])
            return _found(self._store.revisions(name, None, limit))

    def catalog(self, revision: int = 0) -> CatalogRecord:
        with failing():
            if not revision:
                return self._store.catalog()
            if isinstance(self._store, PolicyHistory):
                return self._store.catalog_revision(revision)
            present = self._store.catalog()
            if revision != present.revision:
                raise refusals.no_history("the model catalog")
            return present

    def create(
        self, policy: Policy, note: WriteNote, dry_run: bool, examples_pass: bool = False
    ) -> PolicyRecord:
        _refuse_examples(examples_pass)
        with failing():
            return self._editing(policy.resource_name).create(policy, note, dry_run)

    def update(
        self, policy: Policy, note: WriteNote, dry_run: bool, examples_pass: bool = False
    ) -> PolicyRecord:
        _refuse_examples(examples_pass)
        name = policy.resource_name
        with failing():
            return self._editing(name).update(name, lambda _: policy, note, dry_run)

    def delete(self, name: str, note: WriteNote, dry_run: bool) -> PolicyRecord:
        with failing():
            return self._editing(name).delete(name, note, dry_run)

    def undelete(self, name: str, note: WriteNote, dry_run: bool) -> PolicyRecord:
        with failing():
            return self._editing(name).undelete(name, note, dry_run)

    def rollback(self, name: str, revision: int, note: WriteNote, dry_run: bool) -> PolicyRecord:
        with failing():
            return self._editing(name).rollback(name, revision, note, dry_run)

    def update_catalog(
        self, models: Sequence[Model], note: WriteNote, dry_run: bool
    ) -> CatalogRecord:
        with failing():
            editing = self._editing("the model catalog")
            return editing.update_catalog(tuple(models), note, dry_run)

    def watch(self, after: int | None, tell: Callable[[str], None]) -> Iterator[Change]:
        number, wrong = after, ""
        try:
            if number is None:
                number = self._store.last_change()
            seen = change_at(self._store, number)
            limit = _AT_ONCE
            while True:
                try:
                    changes = changes_following(self._store, number, seen, limit)
                except UnreadableRevisionError:
                    if limit == 1:
                        raise
                    limit = 1  # Those before it can be read.
                    continue
                for change in changes:
                    number, seen = change.number, change
                    yield change
                if len(changes) < limit:
                    self._store.wait(_LOOK_S)
                    # Files are looked at when they are asked.
                    self._store.last_change()
                    if (found := self._store.problem) != wrong:
                        wrong = found
                        stay = "; policies and models stay as they were"
                        tell(f"{found}{stay}" if found else "the files can be used again")
        except SidecarError as error:
            raise ended(_failure(error), number) from None

    def prune(self, keep: int) -> int:
        """As `PolicyPruning`. Raises PlaceFailure."""
        if not isinstance(self._store, PolicyPruning):
            raise Failure("files have no history to prune; name a database with --at")
        with failing():
            return self._store.prune(keep)

    def close(self) -> None:
        self._store.close()

    def _editing(self, name: str) -> PolicyEditing:
        store = self._store
        if not isinstance(store, PolicyWriting):
            raise read_only(name, store.file_of(name) if isinstance(store, PolicyFiles) else "")
        assert isinstance(store, PolicyHistory)
        return PolicyEditing(store, lambda policy: None)


def _found(listed: Sequence[Listed]) -> Found:
    return Found(
        [each for each in listed if isinstance(each, PolicyRecord)],
        [each.message for each in listed if isinstance(each, UnreadableRevisionError)],
    )


def present(record: PolicyRecord) -> Policy:
    """The policy of a record. Raises PlaceFailure if it is deleted: nothing is routed by it, and
    its models may have left the catalog."""
    if record.deleted:
        error = refusals.deleted(record.policy.resource_name)
        raise PlaceFailure(error.code, error.message)
    return record.policy


def ended(failure: PlaceFailure, seen: int | None) -> PlaceFailure:
    """What ended a watch, with where to go on. `seen`: number of the last change that was shown, or
    of the last one before the first; None if it is not known."""
    if seen is None or failure.exit_code != UNREACHABLE:
        return failure
    if failure.unreadable:
        return PlaceFailure(failure.code, f"{failure}; go on behind it with --after {seen + 1}")
    return PlaceFailure(failure.code, f"{failure}; go on with --after {seen}")


def _refuse_examples(examples_pass: bool) -> None:
    if examples_pass:
        raise Failure(
            "a database and files have no routing model to route examples with; name a running "
            "sidecar with --at"
        )


class failing:  # noqa: N801 -- reads as a statement
    """Turns errors of a store into failures."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, SidecarError):
            raise _failure(error) from None


def _failure(error: SidecarError) -> PlaceFailure:
    if isinstance(error, UnreadableRevisionError):
        return PlaceFailure(error.code, said(error), error.revision, error.etag)
    return PlaceFailure(error.code, said(error))


def said(error: SidecarError) -> str:
    """The text of an error, with all the wrong fields it names."""
    return with_fields(error.message, [(e.field, e.description) for e in error.violations])


def with_fields(message: str, wrong: Sequence[tuple[str, str]]) -> str:
    """`message`, and below it what is wrong with each field, if that is more than one."""
    lines = [f"  {': '.join(filter(None, each))}" for each in wrong] if len(wrong) > 1 else []
    return "\n".join([message, *lines])
