"""Policies in YAML files that people edit: read again when they change."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import CatalogRecord, PolicyRecord, catalog_digest, etag_of
from sidecar.policies.loading import PolicySet, is_policy_file, load_policies
from sidecar.policies.stores import refusals
from sidecar.policies.stores.contract import Change, ChangeKind, Snapshot

_LOOK_S = 0.1
_CHANGES_KEPT = 1000
_AGAIN_S = 5.0
"""After which files that could not be read are tried again, though they look the same: what keeps
them from being read, such as a limit of open files, need not leave a trace on them."""

_Signature = tuple[tuple[str, int, int, int, int], ...]


class InvalidFilesError(Exception):
    """Files that cannot be used; `found.findings` says why."""

    def __init__(self, found: PolicySet) -> None:
        super().__init__("\n".join(str(finding) for finding in found.findings))
        self.found = found


class FileStore:
    """The policies and catalogs of files and folders. Reads only; history is left to what keeps the
    files.

    Looks by polling, which works on every file system: Kubernetes replaces the folder that a
    mounted ConfigMap's links point to (pkg/volume/util/atomic_writer.go), and network file systems
    tell nobody of changes. What is being written is not read: the files must have been the same for
    two looks, with some time in between.

    Changes are counted from a number taken from the clock when the store is made, since a process
    does not know what another one before it has counted.

    Raises:
        InvalidFilesError: when made. Later, files with errors leave the last good ones in force.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._paths = tuple(Path(path) for path in paths)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._signature = self._seen = _signature(self._paths)
        found = load_policies(self._paths, pipes=False)
        if not found.valid:
            raise InvalidFilesError(found)
        self._problem = ""
        self._again = math.inf
        self._seen_at = -math.inf
        self.findings = found.findings
        self._origins = found.origins
        self._oldest = time.time_ns() // 1_000
        self._changes: deque[Change] = deque(maxlen=_CHANGES_KEPT)
        self._snapshot = _snapshot_of(found, self._oldest, CatalogRecord({}), {})

    @property
    def problem(self) -> str:
        """What is wrong with the files as they are now; empty if nothing is."""
        return self._problem

    def snapshot(self) -> Snapshot:
        """As `PolicyStore`."""
        return self._snapshot

    def last_change(self) -> int:
        """As `PolicyStore`; reads the files if they have changed."""
        with self._lock:
            self._look()
            return self._snapshot.change

    def policy(self, name: str) -> PolicyRecord:
        """As `PolicyStore`."""
        try:
            return self._snapshot.records[name]
        except KeyError:
            raise refusals.not_found(name) from None

    def policies(
        self, namespace: str | None, after: str, limit: int, deleted: bool = False
    ) -> Sequence[PolicyRecord]:
        """As `PolicyStore`."""
        records = self._snapshot.records
        wanted = (
            record
            for name, record in records.items()
            if name > after and namespace in (None, record.policy.namespace)
        )
        return [record for record, _ in zip(wanted, range(limit), strict=False)]

    def catalog(self) -> CatalogRecord:
        """As `PolicyStore`."""
        return self._snapshot.catalog

    def wait(self, timeout_s: float) -> None:
        """As `PolicyStore`."""
        end = time.monotonic() + timeout_s
        while (rest := end - time.monotonic()) > 0:
            if self._closed.wait(min(rest, _LOOK_S)):
                return
            if _signature(self._paths) != self._signature:
                self._closed.wait(_LOOK_S)
                return

    def changes_after(self, number: int, limit: int) -> Sequence[Change]:
        """As `PolicyStore`."""
        with self._lock:
            kept = list(self._changes)
            oldest = kept[0].number - 1 if len(kept) == _CHANGES_KEPT else self._oldest
            if not oldest <= number <= self._snapshot.change:
                raise refusals.changes_lost(number, "is not a change that this sidecar knows of")
        return [change for change in kept if change.number > number][:limit]

    def file_of(self, name: str) -> str:
        """As `PolicyFiles`."""
        return self._origins.get(name, "")

    def close(self) -> None:
        """As `PolicyStore`."""
        self._closed.set()

    def _look(self) -> None:
        present, now = _signature(self._paths), time.monotonic()
        if present != self._seen:
            self._seen, self._seen_at = present, now
        # Looks of callers may come right behind each other.
        settled = now - self._seen_at >= _LOOK_S
        if not settled or (present == self._signature and now < self._again):
            return
        found = load_policies(self._paths, pipes=False)
        if _signature(self._paths) != present:
            return  # Changed while it was read: the next look reads it again.
        self._signature = present
        self._again = time.monotonic() + _AGAIN_S if found.unread else math.inf
        if not found.valid:
            self._problem = str(next(iter(found.findings)))
            return
        if (emptied := next(filter(_is_empty, self._origins.values()), None)) is not None:
            self._problem = (
                f"{emptied}: error: held policies and is empty now, as after a write that found no "
                "space; delete it if they are to go"
            )
            return
        self._problem, self.findings, self._origins = "", found.findings, found.origins
        self._take(found)

    def _take(self, found: PolicySet) -> None:
        before = self._snapshot
        after = _snapshot_of(found, before.change, before.catalog, before.records)
        number = before.change
        if after.catalog.etag != before.catalog.etag:
            number += 1
            catalog = replace(after.catalog, change=number)
            after = replace(after, catalog=catalog)
            self._changes.append(Change(number, ChangeKind.CATALOG, catalog))
        records = dict(after.records)
        for kind, record in _differences(before, after):
            number += 1
            counted = replace(record, change=number)
            self._changes.append(Change(number, kind, counted))
            if not counted.deleted:
                records[counted.policy.resource_name] = counted
        self._snapshot = replace(after, change=number, records=MappingProxyType(records))


def _differences(before: Snapshot, after: Snapshot) -> Iterator[tuple[ChangeKind, PolicyRecord]]:
    for name, record in after.records.items():
        if name not in before.records:
            yield ChangeKind.CREATE, record
        elif record.etag != before.records[name].etag:
            yield ChangeKind.UPDATE, record
    for name, record in before.records.items():
        if name not in after.records:
            yield ChangeKind.DELETE, replace(record, deleted=True)


def _snapshot_of(
    found: PolicySet,
    change: int,
    catalog: CatalogRecord,
    known: Mapping[str, PolicyRecord],
) -> Snapshot:
    """Records that are the same as before keep the number of the change that made them."""
    digest = catalog_digest(found.catalog)
    if digest != catalog.digest:
        catalog = CatalogRecord(found.catalog, 1, etag_of(1, digest), digest, change=change)
    records = {}
    for name in sorted(found.records):
        record = found.records[name]
        same = known.get(name)
        if same is not None and same.etag == record.etag:
            records[name] = same
        else:
            records[name] = replace(record, change=change)
    return Snapshot(change, catalog, MappingProxyType(records), checked=True)


def _signature(paths: Iterable[Path]) -> _Signature:
    """Changes with the files' content and with where links lead; what cannot be looked at is left
    out, which is a change as well."""
    found: list[tuple[str, int, int, int, int]] = []
    for path in paths:
        real = os.path.realpath(path)
        try:
            if not path.is_dir():
                found.append((real, *_state(path.stat())))
                continue
            with os.scandir(path) as folder:
                # What else is there, such as a log, may never be the same twice.
                read = (file for file in folder if is_policy_file(file.name))
                files = sorted(read, key=lambda file: file.name)
        except OSError:
            continue
        for file in files:
            try:
                # Only a link leads elsewhere, and to look where takes longer than all the rest.
                linked = file.is_symlink()
                place = os.path.realpath(file) if linked else os.path.join(real, file.name)
                found.append((place, *_state(file.stat())))
            except OSError:
                continue
    return tuple(found)


def _is_empty(file: str) -> bool:
    try:
        return os.path.getsize(file) == 0
    except OSError:
        return False


def _state(status: os.stat_result) -> tuple[int, int, int, int]:
    # A copy may keep the time of what was written elsewhere; nobody sets that of the change.
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def read_only(name: str, file: str) -> SidecarError:
    """The refusal of a write."""
    what = f"{name} comes from {file}" if file else "the policies come from files"
    return SidecarError(
        ErrorCode.POLICY_READ_ONLY,
        f"{what}: edit the file, the sidecar takes the change by itself; or set policy_store.url "
        "to keep policies in a database that takes writes",
    )
