"""What every store does, whatever it keeps policies in."""

from __future__ import annotations

import threading
import time

import pytest

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.policies.stores import PolicyHistory, PolicyWriting
from tests.policies.stores.conftest import WRITABLE
from tests.policies.stores.parts import CATALOG, MakeStore, name_of, policy, readable

pytestmark = pytest.mark.parametrize("make", ["files", *WRITABLE], indirect=True)

A, B, TEAM = policy("a"), policy("b"), policy("a", namespace="team")


def test_policies_come_back_as_they_were_given(make: MakeStore) -> None:
    store = make(B, TEAM, A)

    snapshot = store.snapshot()

    assert [record.policy for record in snapshot.records.values()] == [A, B, TEAM]
    assert list(snapshot.records) == sorted(snapshot.records)
    assert snapshot.catalog.models == CATALOG
    assert not snapshot.unreadable
    assert store.catalog() == snapshot.catalog
    assert store.last_change() == snapshot.change
    for name, record in snapshot.records.items():
        assert store.policy(name) == record
        assert (record.revision, record.deleted) == (1, False)
        assert record.digest == record.policy.digest()
        assert record.etag == f"1-{record.digest[7:23]}"


@pytest.mark.parametrize(
    ("namespace", "after", "limit", "names"),
    [
        (None, "", 10, ["default/a", "default/b", "team/a"]),
        (None, name_of("a"), 10, ["default/b", "team/a"]),
        (None, "", 2, ["default/a", "default/b"]),
        ("team", "", 10, ["team/a"]),
        ("default", name_of("b"), 10, []),
        ("none", "", 10, []),
    ],
)
def test_listing(
    make: MakeStore, namespace: str | None, after: str, limit: int, names: list[str]
) -> None:
    listed = readable(make(A, B, TEAM).policies(namespace, after, limit))

    assert [f"{each.policy.namespace}/{each.policy.name}" for each in listed] == names


def test_unknown_policy_is_an_error_that_names_it(make: MakeStore) -> None:
    with pytest.raises(SidecarError, match="namespaces/default/policies/gone") as caught:
        make(A).policy(name_of("gone"))

    assert caught.value.code is ErrorCode.POLICY_NOT_FOUND


def test_change_that_was_never_reached_is_refused(make: MakeStore) -> None:
    store = make(A)

    with pytest.raises(SidecarError) as caught:
        store.changes_after(store.last_change() + 1, 10)

    assert caught.value.code is ErrorCode.CHANGES_LOST
    assert not store.changes_after(store.last_change(), 10)


def test_closing_ends_the_waiting(make: MakeStore) -> None:
    store = make(A)
    # Longer than a test may take: whoever is not woken has failed.
    waiting = threading.Thread(target=store.wait, args=(3600,), daemon=True)
    waiting.start()
    time.sleep(0.05)

    store.close()

    waiting.join(60)
    assert not waiting.is_alive()


def test_capabilities_are_those_of_the_kind(make: MakeStore) -> None:
    store = make(A)

    assert isinstance(store, PolicyWriting) == isinstance(store, PolicyHistory)
    assert isinstance(store, PolicyWriting) == hasattr(store, "seed")
