"""The rules of writes, as cases for every store that takes them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import pytest

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import Model, ModelList, Policy, PolicyRecord, WeightedModel
from sidecar.policies.editing import PolicyEditing, WritableStore
from sidecar.policies.stores import (
    CatalogWrite,
    Change,
    ChangeKind,
    MovedError,
    PolicyHistory,
    PolicyPruning,
    PolicyStore,
    PolicyWrite,
    PolicyWriting,
    WriteNote,
    change_at,
    changes_following,
)
from tests.policies.stores.conftest import WRITABLE
from tests.policies.stores.parts import (
    CATALOG,
    FAST,
    LARGE,
    MakeStore,
    name_of,
    note,
    policy,
    readable,
    write,
    write_catalog,
)

pytestmark = pytest.mark.parametrize("make", WRITABLE, indirect=True)

CREATE, UPDATE, ROLLBACK, DELETE, UNDELETE = (
    ChangeKind.CREATE,
    ChangeKind.UPDATE,
    ChangeKind.ROLLBACK,
    ChangeKind.DELETE,
    ChangeKind.UNDELETE,
)
FIRST, SECOND = policy(description="first"), policy(description="second")
SUPPORT = name_of("support")


@dataclass(frozen=True)
class Step:
    """A write and what comes of it: the revision, or the error. `etag`: of that revision."""

    kind: ChangeKind
    content: Any
    result: int | ErrorCode
    etag: int | str = ""


CASES: dict[str, list[Step]] = {
    "create": [Step(CREATE, FIRST, 1)],
    "create twice": [Step(CREATE, FIRST, 1), Step(CREATE, SECOND, ErrorCode.POLICY_EXISTS)],
    "update": [Step(CREATE, FIRST, 1), Step(UPDATE, SECOND, 2), Step(UPDATE, SECOND, 3)],
    "update of none": [Step(UPDATE, FIRST, ErrorCode.POLICY_NOT_FOUND)],
    "update with the etag": [Step(CREATE, FIRST, 1), Step(UPDATE, SECOND, 2, etag=1)],
    "update with an old etag": [
        Step(CREATE, FIRST, 1),
        Step(UPDATE, SECOND, 2),
        Step(UPDATE, FIRST, ErrorCode.POLICY_CONFLICT, etag=1),
        Step(UPDATE, FIRST, 3, etag=2),
    ],
    "update with an invented etag": [
        Step(CREATE, FIRST, 1),
        Step(UPDATE, SECOND, ErrorCode.POLICY_CONFLICT, etag="7-abc"),
    ],
    "rollback": [Step(CREATE, FIRST, 1), Step(UPDATE, SECOND, 2), Step(ROLLBACK, FIRST, 3)],
    "delete": [Step(CREATE, FIRST, 1), Step(DELETE, "support", 2)],
    "delete with an old etag": [
        Step(CREATE, FIRST, 1),
        Step(UPDATE, SECOND, 2),
        Step(DELETE, "support", ErrorCode.POLICY_CONFLICT, etag=1),
    ],
    "delete twice": [
        Step(CREATE, FIRST, 1),
        Step(DELETE, "support", 2),
        Step(DELETE, "support", ErrorCode.POLICY_NOT_FOUND),
    ],
    "create after delete": [
        Step(CREATE, FIRST, 1),
        Step(DELETE, "support", 2),
        Step(CREATE, FIRST, ErrorCode.POLICY_EXISTS),
        Step(UPDATE, FIRST, ErrorCode.POLICY_NOT_FOUND),
    ],
    "undelete": [
        Step(CREATE, FIRST, 1),
        Step(DELETE, "support", 2),
        Step(UNDELETE, "support", 3),
        Step(UPDATE, SECOND, 4),
    ],
    "undelete of what is there": [
        Step(CREATE, FIRST, 1),
        Step(UNDELETE, "support", ErrorCode.POLICY_EXISTS),
    ],
    "undelete of none": [Step(UNDELETE, "support", ErrorCode.POLICY_NOT_FOUND)],
}


@pytest.mark.parametrize("case", CASES)
def test_case(make: MakeStore, case: str) -> None:
    store = make()
    begun = store.last_change()
    made: list[PolicyRecord] = []
    for step in CASES[case]:
        etag = made[step.etag - 1].etag if isinstance(step.etag, int) else step.etag
        given = note(etag=etag)
        if isinstance(step.result, ErrorCode):
            with pytest.raises(SidecarError) as caught:
                write(store, step.kind, step.content, given)
            assert caught.value.code is step.result
            if step.result is ErrorCode.POLICY_CONFLICT:
                assert caught.value.metadata == {"current_etag": made[-1].etag}
            continue
        change = write(store, step.kind, step.content, given)
        record = change.record
        assert isinstance(record, PolicyRecord)
        assert record.revision == step.result
        assert (change.kind, change.number) == (step.kind, begun + len(made) + 1)
        made.append(record)

    assert [change.record for change in store.changes_after(begun, 100)] == made
    assert store.last_change() == begun + len(made)
    if made:
        assert store.policy(SUPPORT) == made[-1]
        assert (SUPPORT in store.snapshot().records) != made[-1].deleted
        assert isinstance(store, PolicyHistory)
        assert list(store.revisions(SUPPORT, None, 100)) == made[::-1]


def test_everything_survives_closing(make: MakeStore) -> None:
    store = make(FIRST)
    write(store, UPDATE, SECOND, note("grace", "a better wording ✓"))
    before, changes = store.snapshot(), store.changes_after(0, 10)
    store.close()

    again = make()

    assert again.snapshot() == before
    assert again.changes_after(0, 10) == changes
    attribution = again.policy(SUPPORT).attribution
    assert attribution is not None
    assert (attribution.author, attribution.message) == ("grace", "a better wording ✓")
    assert not attribution.verified


def test_revision_that_does_not_exist_is_refused(make: MakeStore) -> None:
    store = make(FIRST)
    assert isinstance(store, PolicyHistory)

    assert store.revision(SUPPORT, 1).policy == FIRST
    with pytest.raises(SidecarError, match=r"no revision 2; its only one is 1$") as caught:
        store.revision(SUPPORT, 2)
    assert caught.value.code is ErrorCode.REVISION_NOT_FOUND
    write(store, ChangeKind.UPDATE, SECOND)
    with pytest.raises(SidecarError, match=r"no revision 3; its revisions are 1 to 2$"):
        store.revision(SUPPORT, 3)
    with pytest.raises(SidecarError) as caught:
        store.revision(name_of("gone"), 1)
    assert caught.value.code is ErrorCode.POLICY_NOT_FOUND


def test_revisions_come_in_pages_from_the_latest(make: MakeStore) -> None:
    store = make(FIRST)
    for number in range(4):
        write(store, UPDATE, policy(description=str(number)))
    assert isinstance(store, PolicyHistory)

    pages = [store.revisions(SUPPORT, before, 2) for before in (None, 4, 2)]

    assert [[each.revision for each in page] for page in pages] == [[5, 4], [3, 2], [1]]


def test_deleted_policies_are_listed_on_demand(make: MakeStore) -> None:
    store = make(FIRST, policy("other"))
    write(store, DELETE, "support")

    assert [each.policy.name for each in readable(store.policies(None, "", 10))] == ["other"]
    listed = readable(store.policies(None, "", 10, deleted=True))
    assert [(each.policy.name, each.deleted) for each in listed] == [
        ("other", False),
        ("support", True),
    ]


def test_request_that_comes_twice_is_made_once(make: MakeStore) -> None:
    store = make(FIRST)
    given = note(request_id="id-1", request_digest="x")

    first = write(store, UPDATE, SECOND, given)
    write(store, UPDATE, FIRST)
    second = write(store, UPDATE, SECOND, given)

    assert second == first
    assert store.policy(SUPPORT).revision == 3
    assert isinstance(store, PolicyWriting)
    assert store.made_by("id-1", "x") == first
    assert store.made_by("id-2", "x") is None


def test_request_id_of_another_request_is_refused(make: MakeStore) -> None:
    store = make(FIRST)
    write(store, UPDATE, SECOND, note(request_id="id-1", request_digest="x"))

    with pytest.raises(SidecarError) as caught:
        write(store, DELETE, "support", note(request_id="id-1", request_digest="y"))

    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert caught.value.violations[0].field == "request_id"
    assert store.policy(SUPPORT).revision == 2


def test_catalog_has_revisions_and_etags(make: MakeStore) -> None:
    store = make(FIRST)
    before = store.catalog()
    assert (before.revision, dict(before.models)) == (1, CATALOG)

    change = write_catalog(store, FAST, replace(LARGE, input_price=9.0))

    after = store.catalog()
    assert change.record == after
    assert (after.revision, after.models[LARGE.id].input_price) == (2, 9.0)
    assert after.etag != before.etag
    assert isinstance(store, PolicyWriting)
    with pytest.raises(SidecarError) as caught:
        store.write(CatalogWrite(CATALOG, note(etag=before.etag)))
    assert caught.value.code is ErrorCode.POLICY_CONFLICT


def test_policy_checked_against_another_catalog_is_not_taken(make: MakeStore) -> None:
    store = make(FIRST)
    etag = store.catalog().etag
    write_catalog(store, FAST, LARGE, replace(FAST, id="new"))
    assert isinstance(store, PolicyWriting)

    with pytest.raises(MovedError):
        store.write(PolicyWrite(SUPPORT, UPDATE, SECOND, note(), catalog_etag=etag))

    assert store.policy(SUPPORT).revision == 1
    assert store.last_change() == 3


def test_catalog_checked_against_other_policies_is_not_taken(make: MakeStore) -> None:
    store = make(FIRST)
    checked = store.last_change()
    write(store, UPDATE, SECOND)
    assert isinstance(store, PolicyWriting)

    with pytest.raises(MovedError):
        store.write(CatalogWrite({}, note(), checked_at=checked))

    store.write(CatalogWrite(CATALOG, note(), checked_at=checked + 1))


def test_seeds_go_into_an_empty_store_alone(make: MakeStore) -> None:
    store = make(FIRST)

    again = make(SECOND)

    assert again.snapshot() == store.snapshot()
    assert store.policy(SUPPORT).policy == FIRST
    assert [change.number for change in store.changes_after(0, 10)] == [1, 2]


def test_waiting_ends_with_a_write(make: MakeStore) -> None:
    store = make(FIRST)
    store.wait(0)
    # Longer than a test may take: whoever is not woken has failed.
    waiting = threading.Thread(target=store.wait, args=(3600,), daemon=True)
    waiting.start()

    write(store, UPDATE, SECOND)

    waiting.join(60)
    assert not waiting.is_alive()


@pytest.mark.parametrize("writers", [64])
def test_of_concurrent_writers_one_wins_each_revision(make: MakeStore, writers: int) -> None:
    store = make(FIRST)
    rounds = 3
    outcomes: list[list[PolicyRecord | SidecarError]] = []
    for _ in range(rounds):
        given = note(etag=store.policy(SUPPORT).etag)
        outcomes.append(together(writers, partial(update, store, given)))

    for number, outcome in enumerate(outcomes):
        won = [each for each in outcome if isinstance(each, PolicyRecord)]
        lost = [each for each in outcome if isinstance(each, SidecarError)]
        assert [each.revision for each in won] == [number + 2]
        assert {each.code for each in lost} == {ErrorCode.POLICY_CONFLICT}
        assert {each.metadata["current_etag"] for each in lost} == {won[0].etag}
    assert [each.number for each in store.changes_after(0, 100)] == list(range(1, rounds + 3))


def test_an_edit_is_made_anew_of_what_another_has_written_meanwhile(
    make: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(FIRST)
    meanwhile(store, lambda: write(store, UPDATE, SECOND), monkeypatch)
    record = editing(store).update(SUPPORT, surer, note())

    assert (record.revision, record.policy) == (3, surer(SECOND))


def test_an_edit_is_checked_anew_where_the_catalog_has_changed_meanwhile(
    make: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(FIRST)
    meanwhile(store, lambda: write_catalog(store, FAST), monkeypatch)

    with pytest.raises(SidecarError, match="acme/large") as caught:
        editing(store).update(SUPPORT, surer, note())

    assert caught.value.code is ErrorCode.INVALID_POLICY


def editing(store: PolicyStore) -> PolicyEditing:
    return PolicyEditing(cast(WritableStore, store), lambda policy: None)


def surer(now: Policy) -> Policy:
    return replace(now, switch_confidence=0.9)


def meanwhile(store: Any, happens: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, between the reading and the writing of an edit."""
    made = store.write

    def after_another(wanted: PolicyWrite) -> Change:
        monkeypatch.setattr(store, "write", made)
        happens()
        change: Change = made(wanted)
        return change

    monkeypatch.setattr(store, "write", after_another)


def update(store: PolicyStore, given: WriteNote, writer: int) -> Change:
    return write(store, UPDATE, policy(description=f"writer {writer}"), given)


def together(count: int, attempt: Callable[[int], Change]) -> list[PolicyRecord | SidecarError]:
    outcomes: list[PolicyRecord | SidecarError] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait()
        try:
            made = attempt(number).record
            assert isinstance(made, PolicyRecord)
            outcomes.append(made)
        except SidecarError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == count
    return outcomes


def test_two_stores_on_one_database_see_each_others_writes(make: MakeStore) -> None:
    one, other = make(FIRST), make()

    write(one, UPDATE, SECOND)
    write(other, UPDATE, FIRST)

    assert one.policy(SUPPORT) == other.policy(SUPPORT)
    assert one.policy(SUPPORT).revision == 3


def test_last_change_is_what_the_snapshot_has_of_it(make: MakeStore) -> None:
    """By that a database which was replaced is told from one that was not."""
    store = make(policy("b"), policy("a"))
    snapshot = store.snapshot()

    (last,) = store.changes_after(snapshot.change - 1, 1)

    assert last.record in (snapshot.catalog, *snapshot.records.values())


def with_history(make: MakeStore) -> PolicyStore:
    """Changes 1 and 7 are the catalog's, 3 another policy's, 6 and 8 its deletion and its return;
    the others `support`'s."""
    store = make(FIRST, policy("zeta"))
    write(store, UPDATE, SECOND)
    write(store, UPDATE, policy(description="third"))
    write(store, DELETE, "zeta")
    write_catalog(store, LARGE, FAST)
    write(store, UNDELETE, "zeta")
    return store


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (1, {"support": [3], "zeta": [3], "catalog": [2]}),
        (2, {"support": [3, 2], "zeta": [3, 2], "catalog": [2, 1]}),
        (3, {"support": [3, 2, 1], "zeta": [3, 2, 1], "catalog": [2, 1]}),
    ],
)
def test_latest_revisions_are_kept_and_the_others_pruned(
    make: MakeStore, keep: int, kept: dict[str, list[int]]
) -> None:
    store = with_history(make)
    assert isinstance(store, PolicyHistory)
    assert isinstance(store, PolicyPruning)
    before, made = store.snapshot(), store.last_change()

    pruned = store.prune(keep)

    assert pruned == made - sum(map(len, kept.values()))
    assert store.snapshot() == before
    for name in ("support", "zeta"):
        listed = readable(store.revisions(name_of(name), None, 10))
        assert [each.revision for each in listed] == kept[name]
    changes = store.changes_after(0, 100)
    catalogs = [each.record.revision for each in changes if each.kind is ChangeKind.CATALOG]
    assert catalogs == sorted(kept["catalog"])
    assert store.prune(keep) == 0
    assert write(store, UPDATE, FIRST).number == made + 1


def test_pruned_revision_is_told_from_one_that_has_never_been(make: MakeStore) -> None:
    store = with_history(make)
    assert isinstance(store, PolicyHistory)
    assert isinstance(store, PolicyPruning)
    store.prune(1)

    for revision, why in ((1, "revision 1, was pruned"), (4, "has no revision 4")):
        with pytest.raises(SidecarError, match=why) as caught:
            store.revision(SUPPORT, revision)
        assert caught.value.code is ErrorCode.REVISION_NOT_FOUND


def test_earlier_catalogs_are_kept_until_they_are_pruned(make: MakeStore) -> None:
    store = with_history(make)
    assert isinstance(store, PolicyHistory)
    assert isinstance(store, PolicyPruning)

    assert list(store.catalog_revision(1).models) == [FAST.id, LARGE.id]
    assert store.catalog_revision(2) == store.catalog()
    store.prune(1)
    for revision, why in ((1, "revision 1, was pruned"), (3, "has no revision 3")):
        with pytest.raises(SidecarError, match=f"the model catalog.* {why}") as caught:
            store.catalog_revision(revision)
        assert caught.value.code is ErrorCode.REVISION_NOT_FOUND


def test_whoever_has_seen_a_pruned_change_misses_none_that_follows(make: MakeStore) -> None:
    store = with_history(make)
    assert isinstance(store, PolicyPruning)
    sent = change_at(store, 4)
    store.prune(1)

    assert change_at(store, 4) is None
    following = changes_following(store, 4, None, 10)
    assert [each.number for each in following] == [5, 7, 8]
    with pytest.raises(SidecarError) as caught:
        changes_following(store, 4, sent, 10)
    assert caught.value.code is ErrorCode.CHANGES_LOST


@pytest.mark.parametrize("catalog", [(FAST,), (FAST, LARGE)], ids=["without", "with"])
def test_deleted_policy_whose_models_are_gone_is_created_anew(
    make: MakeStore, catalog: tuple[Model, ...]
) -> None:
    """It cannot be undeleted, and nothing else would give its name back."""
    store = cast(WritableStore, make(FIRST))
    editing = PolicyEditing(store, lambda _: None)
    write(store, DELETE, "support")
    write_catalog(store, *catalog)
    new = Policy("support", (), ModelList((WeightedModel(FAST.id),)))

    if LARGE in catalog:
        with pytest.raises(SidecarError, match="was deleted; undelete it"):
            editing.create(new, note())
        return
    with pytest.raises(SidecarError, match="unknown model"):
        editing.undelete(SUPPORT, note())
    foreseen = editing.create(new, note(), validate_only=True)
    made = editing.create(new, note())

    assert (foreseen.revision, made.revision, made.policy, made.deleted) == (3, 3, new, False)
    assert store.policy(SUPPORT) == made


def test_deleted_policy_that_is_too_large_by_now_is_created_anew(make: MakeStore) -> None:
    """As where a routing model with a shorter prompt has come."""
    store = cast(WritableStore, make(FIRST))
    write(store, DELETE, "support")

    def compiled(content: Policy) -> None:
        if content.routes:
            raise SidecarError(ErrorCode.POLICY_TOO_LARGE, "the routes take 600 tokens of 512")

    editing = PolicyEditing(store, compiled)
    new = replace(FIRST, routes=())

    with pytest.raises(SidecarError, match="600 tokens"):
        editing.undelete(SUPPORT, note())

    assert editing.create(new, note()).policy == new
