"""Policies that stay as they are."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import MappingProxyType

from sidecar.core.policy import Catalog, CatalogRecord, PolicyRecord, catalog_digest, etag_of
from sidecar.policies.stores import refusals
from sidecar.policies.stores.contract import Change, Snapshot


class FixedStore:
    """A store of what it is made with, for programs that have their policies at hand."""

    def __init__(self, records: Sequence[PolicyRecord], catalog: Catalog) -> None:
        by_name = sorted(records, key=lambda record: record.policy.resource_name)
        digest = catalog_digest(catalog)
        self._snapshot = Snapshot(
            0,
            CatalogRecord(catalog, 1, etag_of(1, digest), digest),
            MappingProxyType({each.policy.resource_name: each for each in by_name}),
        )
        self._closed = threading.Event()

    @property
    def problem(self) -> str:
        """As `PolicyStore`: there is never one."""
        return ""

    def snapshot(self) -> Snapshot:
        """As `PolicyStore`."""
        return self._snapshot

    def last_change(self) -> int:
        """As `PolicyStore`: 0."""
        return 0

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
        return [
            record
            for name, record in self._snapshot.records.items()
            if name > after and namespace in (None, record.policy.namespace)
        ][:limit]

    def catalog(self) -> CatalogRecord:
        """As `PolicyStore`."""
        return self._snapshot.catalog

    def wait(self, timeout_s: float) -> None:
        """As `PolicyStore`."""
        self._closed.wait(timeout_s)

    def changes_after(self, number: int, limit: int) -> Sequence[Change]:
        """As `PolicyStore`."""
        if number != 0:
            raise refusals.changes_lost(number, "has not been reached: there are no changes")
        return []

    def close(self) -> None:
        """As `PolicyStore`."""
        self._closed.set()
