"""Random writes: every store does what a plain model of the rules says."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import Policy, PolicyRecord
from sidecar.local import PostgresServer
from sidecar.policies.stores import (
    CatalogWrite,
    ChangeKind,
    PolicyHistory,
    PolicyStore,
    PolicyWriting,
    open_store,
)
from sidecar.policies.stores.contract import with_changes
from tests.policies.stores import parts
from tests.policies.stores.parts import CATALOG, FAST, name_of, note, policy, write

NAMES = ("a", "b")


@dataclass(frozen=True)
class Revision:
    kind: ChangeKind
    policy: Policy
    deleted: bool


@dataclass
class Model:
    """The rules in the plainest form: lists of revisions, and answers to request ids."""

    history: dict[str, list[Revision]] = field(default_factory=dict)
    answers: dict[str, tuple[str, int]] = field(default_factory=dict)
    changes: int = 1
    catalog: int = 1

    def apply(
        self, kind: ChangeKind, name: str, content: Policy | None, conflict: bool, request_id: str
    ) -> int | ErrorCode:
        """The revision that is made, or the error."""
        asked = f"{kind} {name} {content}"
        if request_id in self.answers:
            before, revision = self.answers[request_id]
            return revision if before == asked else ErrorCode.INVALID_REQUEST
        revisions = self.history.get(name, [])
        error = self._error(kind, revisions, conflict)
        if error is not None:
            return error
        kept = content if content is not None else revisions[-1].policy
        self.history[name] = [*revisions, Revision(kind, kept, kind is ChangeKind.DELETE)]
        self.changes += 1
        if request_id:
            self.answers[request_id] = (asked, len(self.history[name]))
        return len(self.history[name])

    def _error(
        self, kind: ChangeKind, revisions: list[Revision], conflict: bool
    ) -> ErrorCode | None:
        if kind is ChangeKind.CREATE:
            return ErrorCode.POLICY_EXISTS if revisions else None
        if not revisions:
            return ErrorCode.POLICY_NOT_FOUND
        if kind is ChangeKind.UNDELETE:
            if not revisions[-1].deleted:
                return ErrorCode.POLICY_EXISTS
        elif revisions[-1].deleted:
            return ErrorCode.POLICY_NOT_FOUND
        return ErrorCode.POLICY_CONFLICT if conflict else None


class StoresFollowTheModel(RuleBasedStateMachine):
    """Each write goes to the model and to every store."""

    urls: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.folder = TemporaryDirectory()
        self.stores: list[PolicyStore] = []
        self.opened = (f"sqlite:{Path(self.folder.name) / 'policies.db'}", *self.urls)
        for url in self.opened:
            if url.startswith("postgresql:"):
                parts.empty_tables(url)
            self.stores.append(parts.seeded(open_store(url)))
        self.followed = [store.snapshot() for store in self.stores]

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        self.folder.cleanup()

    @rule(
        kind=st.sampled_from([k for k in ChangeKind if k is not ChangeKind.CATALOG]),
        name=st.sampled_from(NAMES),
        text=st.sampled_from(["one", "two"]),
        etag=st.sampled_from(["", "", "right", "old", "invented"]),
        request_id=st.sampled_from(["", "", "", "id-1", "id-2"]),
    )
    def change(self, kind: ChangeKind, name: str, text: str, etag: str, request_id: str) -> None:
        kept = kind in (ChangeKind.DELETE, ChangeKind.UNDELETE)
        content = None if kept else policy(name, description=text)
        revisions = self.model.history.get(name, [])
        conflict = etag == "invented" or (etag == "old" and len(revisions) > 1)
        expected = self.model.apply(kind, name, content, conflict, request_id)
        for store in self.stores:
            digest = hashlib.sha256(f"{kind} {name} {content}".encode()).hexdigest()
            given = note(request_id=request_id, request_digest=digest if request_id else "")
            given = replace(given, etag=etag_of(store, name, etag, len(revisions)))
            assert outcome(store, kind, content or name, given) == expected

    @rule(price=st.sampled_from([1.0, 2.0]), etag=st.sampled_from(["", "right", "invented"]))
    def change_catalog(self, price: float, etag: str) -> None:
        models = {**CATALOG, FAST.id: replace(FAST, input_price=price)}
        refused = etag == "invented"
        if not refused:
            self.model.catalog += 1
            self.model.changes += 1
        for store in self.stores:
            assert isinstance(store, PolicyWriting)
            etags = {"": "", "right": store.catalog().etag, "invented": "9-invented"}
            made: int | ErrorCode
            try:
                made = store.write(CatalogWrite(models, note(etag=etags[etag]))).record.revision
            except SidecarError as error:
                made = error.code
            assert made == (ErrorCode.POLICY_CONFLICT if refused else self.model.catalog)

    @rule()
    def open_anew(self) -> None:
        for store in self.stores:
            store.close()
        self.stores = [open_store(url) for url in self.opened]

    @invariant()
    def stores_hold_what_the_model_does(self) -> None:
        for store in self.stores:
            assert store.last_change() == self.model.changes
            assert store.catalog().revision == self.model.catalog
            listed = parts.readable(store.policies(None, "", 10, deleted=True))
            assert {
                each.policy.name: (each.revision, each.deleted, each.policy) for each in listed
            } == {
                name: (len(revisions), revisions[-1].deleted, revisions[-1].policy)
                for name, revisions in self.model.history.items()
            }
            assert isinstance(store, PolicyHistory)
            for name, revisions in self.model.history.items():
                kept = parts.readable(store.revisions(name_of(name), None, 100))
                assert [(e.policy, e.deleted) for e in kept[::-1]] == [
                    (e.policy, e.deleted) for e in revisions
                ]

    @invariant()
    def following_the_changes_gives_the_snapshot(self) -> None:
        for index, store in enumerate(self.stores):
            before = self.followed[index]
            after = with_changes(before, store.changes_after(before.change, 100))
            assert after == store.snapshot()
            self.followed[index] = after


def etag_of(store: PolicyStore, name: str, which: str, revisions: int) -> str:
    if which == "invented":
        return "9-invented"
    if not which or not revisions:
        return ""
    assert isinstance(store, PolicyHistory)
    return store.revision(name_of(name), 1 if which == "old" else revisions).etag


def outcome(store: PolicyStore, kind: ChangeKind, content: Policy | str, given: object) -> object:
    try:
        record = write(store, kind, content, given).record  # type: ignore[arg-type]
    except SidecarError as error:
        return error.code
    assert isinstance(record, PolicyRecord)
    return record.revision


@pytest.mark.timeout(1800 if os.environ.get("SIDECAR_PROVE") else 900)
def test_stores_do_not_diverge_from_the_model(postgres: PostgresServer) -> None:
    StoresFollowTheModel.urls = (postgres.url,)

    run_state_machine_as_test(
        StoresFollowTheModel,
        settings=settings(
            max_examples=200 if os.environ.get("SIDECAR_PROVE") else 6,
            stateful_step_count=12,
            suppress_health_check=list(HealthCheck),
        ),
    )
