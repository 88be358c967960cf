"""The tables of the SQL stores, and rows to records.

Every accepted write is a row of `changes`, which is never changed afterwards until it is pruned;
`heads` points at the present revision of each policy, `state` counts. Migrations are in
`migrations`, and a test compares their result with these tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    MetaData,
    RowMapping,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from sidecar.core.policy import Attribution, CatalogRecord, Model, Policy, PolicyRecord
from sidecar.policies.documents import (
    UnreadableDocumentError,
    catalog_document,
    catalog_from,
    policy_document,
    policy_from,
)
from sidecar.policies.stores.contract import Change, ChangeKind, blank_policy

CATALOG_NAME = "modelCatalog"
"""Stands for the model catalog where rows have names of policies; no resource name is like it."""

metadata = MetaData()

changes = Table(
    "changes",
    metadata,
    Column("change", BigInteger, primary_key=True, autoincrement=False),
    Column("name", String(200), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("digest", String(80), nullable=False),
    Column("etag", String(64), nullable=False),
    # The document as JSON text: its bytes are what was accepted.
    Column("content", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("author_verified", Boolean, nullable=False),
    Column("message", Text, nullable=False),
    # Microseconds since 1970 in UTC: the same in every database.
    Column("time", BigInteger, nullable=False),
    Column("request_id", String(64), nullable=True),
    Column("request_digest", String(80), nullable=True),
    UniqueConstraint("name", "revision", name="changes_name_revision"),
    UniqueConstraint("request_id", name="changes_request_id"),
)

heads = Table(
    "heads",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("namespace", String(63), nullable=False),
    Column("change", BigInteger, ForeignKey("changes.change"), nullable=False),
    Index("heads_namespace_name", "namespace", "name"),
)

state = Table(
    "state",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("last_change", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="state_one_row"),
)

Row = RowMapping | Mapping[str, Any]


def policy_content(policy: Policy) -> str:
    return json.dumps(policy_document(policy), ensure_ascii=False, separators=(",", ":"))


def catalog_content(models: Mapping[str, Model]) -> str:
    return json.dumps(catalog_document(models.values()), ensure_ascii=False, separators=(",", ":"))


def policy_record(row: Row) -> PolicyRecord:
    """Raises UnreadableDocumentError."""
    with _undamaged():
        return _policy_record(row, policy_from(_document(row)))


def _policy_record(row: Row, policy: Policy) -> PolicyRecord:
    return PolicyRecord(
        policy,
        revision=row["revision"],
        etag=row["etag"],
        digest=row["digest"],
        attribution=_attribution(row),
        deleted=row["deleted"],
        change=row["change"],
    )


def catalog_record(row: Row) -> CatalogRecord:
    """Raises UnreadableDocumentError."""
    with _undamaged():
        models = catalog_from(_document(row))
        return CatalogRecord(
            MappingProxyType({model.id: model for model in models}),
            revision=row["revision"],
            etag=row["etag"],
            digest=row["digest"],
            attribution=_attribution(row),
            change=row["change"],
        )


def change_of(row: Row) -> Change:
    """Raises UnreadableDocumentError."""
    record = catalog_record(row) if row["name"] == CATALOG_NAME else _changed_policy(row)
    with _undamaged():
        return Change(row["change"], ChangeKind(row["kind"]), record)


def _changed_policy(row: Row) -> PolicyRecord:
    """Of a deletion its content is of no account. Raises UnreadableDocumentError."""
    try:
        return policy_record(row)
    except UnreadableDocumentError:
        if not row["deleted"]:
            raise
    with _undamaged():
        return _policy_record(row, blank_policy(row["name"]))


@contextmanager
def _undamaged() -> Iterator[None]:
    """Raises UnreadableDocumentError for whatever else a row holds that no version has written: it
    must not take the other rows along."""
    try:
        yield
    except (OSError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UnreadableDocumentError(f"it is damaged ({error})") from None


def _document(row: Row) -> dict[str, object]:
    """Raises UnreadableDocumentError."""
    try:
        document = json.loads(row["content"])
    except ValueError as error:
        raise UnreadableDocumentError(f"its content is no JSON ({error})") from None
    if not isinstance(document, dict):
        raise UnreadableDocumentError("its content is no JSON object")
    return document


def microseconds(time: datetime) -> int:
    return int(time.timestamp()) * 1_000_000 + time.microsecond


def _attribution(row: Row) -> Attribution:
    seconds, rest = divmod(row["time"], 1_000_000)
    time = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)
    return Attribution(row["author"], row["message"], time, row["author_verified"])
