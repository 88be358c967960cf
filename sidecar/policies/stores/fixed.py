"""Policies that stay as they are."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import MappingProxyType
from typing import Self

from sidecar.core.policy import Catalog, CatalogRecord, PolicyRecord, catalog_digest, etag_of
from sidecar.policies.stores import refusals
from sidecar.policies.stores.contract import (
    Change,
    Listed,
    Snapshot,
    UnreadableRevisionError,
)


class FixedStore:
    """A store of what it is made with: of policies that a program has at hand, or of what another
    store held when it could last be read."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._closed = threading.Event()

    @classmethod
    def of(cls, records: Sequence[PolicyRecord], catalog: Catalog) -> Self:
        """A store that has never had a change."""
        by_name = sorted(records, key=lambda record: record.policy.resource_name)
        digest = catalog_digest(catalog)
        return cls(
            Snapshot(
                0,
                CatalogRecord(catalog, 1, etag_of(1, digest), digest),
                MappingProxyType({each.policy.resource_name: each for each in by_name}),
            )
        )

    @property
    def problem(self) -> str:
        """As `PolicyStore`: there is never one."""
        return ""

    def snapshot(self) -> Snapshot:
        """As `PolicyStore`."""
        return self._snapshot

    def last_change(self) -> int:
        """As `PolicyStore`."""
        return self._snapshot.change

    def policy(self, name: str) -> PolicyRecord:
        """As `PolicyStore`."""
        try:
            return self._snapshot.records[name]
        except KeyError:
            raise refusals.not_found(name) from None

    def policies(
        self, namespace: str | None, after: str, limit: int, deleted: bool = False
    ) -> Sequence[Listed]:
        """As `PolicyStore`."""
        listed: dict[str, Listed] = {
            name: UnreadableRevisionError(name, why, 0, "", "")
            for name, why in self._snapshot.unreadable.items()
        }
        listed |= self._snapshot.records
        within = "" if namespace is None else f"namespaces/{namespace}/"
        names = sorted(name for name in listed if name > after and name.startswith(within))
        return [listed[name] for name in names[:limit]]

    def catalog(self) -> CatalogRecord:
        """As `PolicyStore`."""
        return self._snapshot.catalog

    def wait(self, timeout_s: float) -> None:
        """As `PolicyStore`."""
        self._closed.wait(timeout_s)

    def changes_after(self, number: int, limit: int) -> Sequence[Change]:
        """As `PolicyStore`."""
        if number != self._snapshot.change:
            raise refusals.changes_lost(number, "is not the last change, and no other is known")
        return []

    def close(self) -> None:
        """As `PolicyStore`."""
        self._closed.set()
