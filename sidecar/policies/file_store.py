"""Policies in a folder or in single files, edited by people and kept by Git."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sidecar.core.decision import PolicyName
from sidecar.core.policy import Catalog, PolicyRecord
from sidecar.policies.loading import PolicySet, load_policies


class FileStore:
    """Reads policies and the model catalog from files and folders of *.yaml and *.yml files.

    Files have no history: every policy has revision 1, and its etag changes with its content.
    Reading is explicit: nothing changes until `read` is called again, and a set with errors never
    takes the place of one without.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._accepted = PolicySet({}, {})

    def read(self) -> PolicySet:
        """Reads all files anew and keeps the set if it has no errors. Blocks on the disk."""
        found = load_policies(self._paths)
        if found.valid:
            self._accepted = found
        return found

    @property
    def catalog(self) -> Catalog:
        return self._accepted.catalog

    def get(self, name: PolicyName) -> PolicyRecord | None:
        return self._accepted.record(name)

    def list(self, namespace: str | None = None) -> tuple[PolicyRecord, ...]:
        """Records by resource name; of one namespace, or of all."""
        records = sorted(self._accepted.records.items())
        return tuple(
            record
            for _, record in records
            if namespace is None or record.policy.namespace == namespace
        )
