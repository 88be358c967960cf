"""WatchPolicies: no change is missed and none comes twice."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.policies.stores import ChangeKind, PolicyStore
from tests.grpc_api.refusals import refused
from tests.grpc_api.stored import Stored, stored
from tests.grpc_api.watchers import numbers, watching
from tests.policies.stores import parts
from tests.policies.stores.parts import FAST, LARGE, policy, write, write_catalog
from tests.waiting import until


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Stored]:
    async with stored(parts.sqlite(tmp_path, policy())) as running:
        yield running


async def test_sends_what_was_and_what_comes(api: Stored) -> None:
    async with watching(api) as watcher:
        await watcher.until(2)
        write(api.store, ChangeKind.UPDATE, policy(description="second"))
        write(api.store, ChangeKind.DELETE, "support")
        write_catalog(api.store, FAST, LARGE)

        received = await watcher.until(5)

    assert numbers(received) == [1, 2, 3, 4, 5]
    kinds = [each.WhichOneof("change") for each in received]
    assert kinds == ["model_catalog", "policy", "policy", "policy", "model_catalog"]
    assert [each.policy.description for each in received[1:4]] == ["first", "second", "second"]
    assert [each.policy.HasField("delete_time") for each in received[1:4]] == [False, False, True]


async def test_from_now_on_leaves_out_what_was(api: Stored) -> None:
    async with watching(api, after=-1) as watcher:
        write(api.store, ChangeKind.UPDATE, policy(description="second"))

        assert numbers(await watcher.until(3)) == [3]


async def test_namespace_limits_policies(api: Stored) -> None:
    async with watching(api, after=2, parent="namespaces/team") as watcher:
        write(api.store, ChangeKind.UPDATE, policy(description="second"))
        write(api.store, ChangeKind.CREATE, policy("new", namespace="team"))

        assert numbers(await watcher.until(4)) == [4]


async def test_more_than_is_read_at_once_comes_whole(
    api: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.grpc_api.policy_watch._AT_ONCE", 3)
    write_many(api.store, 9)

    async with watching(api) as watcher:
        assert numbers(await watcher.until(11)) == list(range(1, 12))


async def test_resuming_anywhere_gives_each_change_once(api: Stored) -> None:
    total = 120
    writing = asyncio.create_task(asyncio.to_thread(write_many, api.store, total - 2))
    seen: list[int] = []
    while len(seen) < total:
        async with watching(api, after=seen[-1] if seen else 0) as watcher:
            # Cut off after a few, wherever the writer is.
            step = min(len(seen) + 17, total)
            seen += numbers(await watcher.until(step))
    await writing

    assert seen == list(range(1, total + 1))


def write_many(store: PolicyStore, count: int) -> None:
    for number in range(count):
        write(store, ChangeKind.UPDATE, policy(description=str(number)))


async def test_number_that_was_never_reached_is_refused(api: Stored) -> None:
    request = policy_pb2.WatchPoliciesRequest(parent="namespaces/-", after_change=99)

    error = await refused(api.policies.WatchPolicies(request).read())

    assert (error.code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CHANGES_LOST")


async def test_number_below_minus_one_is_refused(api: Stored) -> None:
    request = policy_pb2.WatchPoliciesRequest(parent="namespaces/-", after_change=-2)

    assert (await refused(api.policies.WatchPolicies(request).read())).fields == ("after_change",)


@pytest.mark.parametrize("last", [2, 3])
async def test_store_that_goes_back_ends_the_stream(api: Stored, tmp_path: Path, last: int) -> None:
    """As when a backup is restored: changes that were seen are gone, and their numbers come again
    for others."""
    async with watching(api, after=2) as watcher:
        write(api.store, ChangeKind.UPDATE, policy(description="second"))
        write(api.store, ChangeKind.UPDATE, policy(description="third"))
        await watcher.until(4)
        await until(lambda: api.live.snapshot.change == 4)
        with sqlite3.connect(tmp_path / "policies.db") as database:
            database.execute("UPDATE heads SET change = ? WHERE change = 4", (last,))
            database.execute("DELETE FROM changes WHERE change > ?", (last,))
            database.execute("UPDATE state SET last_change = ?", (last,))

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watcher.end()

    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_change_that_has_the_number_of_one_that_was_sent_ends_the_stream(
    api: Stored, tmp_path: Path
) -> None:
    """As after a failover to a replica that was behind, where others have written since."""
    async with watching(api, after=2) as watcher:
        write(api.store, ChangeKind.UPDATE, policy(description="lost"))
        await watcher.until(3)
        with sqlite3.connect(tmp_path / "policies.db") as database:
            database.execute("UPDATE changes SET etag = '2-another' WHERE change = 3")
        database.close()
        write(api.store, ChangeKind.UPDATE, policy(description="third"))

        error = await refused(watcher.end())

    assert (error.code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CHANGES_LOST")


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("after", [2, -1])
async def test_database_that_was_replaced_before_anything_was_sent_ends_the_stream(
    api: Stored, tmp_path: Path, more: bool, after: int
) -> None:
    """Whether it has more changes than the caller has seen or as many."""
    async with watching(api, after=after) as watcher:
        with sqlite3.connect(tmp_path / "policies.db") as database:
            database.execute("UPDATE changes SET etag = '1-another' WHERE change = 2")
        database.close()
        if more:
            write(api.store, ChangeKind.UPDATE, policy(description="third"))

        error = await refused(watcher.end())

    assert (error.code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CHANGES_LOST")


async def test_drain_ends_the_stream_in_order(api: Stored) -> None:
    async with watching(api, after=2) as watcher:
        api.server.begin_drain()

        assert await watcher.end() is grpc.aio.EOF


async def test_store_that_is_away_for_a_while_loses_nothing(
    api: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is made to fail; PostgreSQL really goes away in the integration tests."""
    monkeypatch.setattr("sidecar.grpc_api.policy_watch._AGAIN_S", 0.01)
    there = api.store.changes_after
    failures = 0

    def away(number: int, limit: int) -> object:
        nonlocal failures
        failures += 1
        raise SidecarError(ErrorCode.STORE_UNAVAILABLE, "away")

    # Before the watch begins: its first question may still be on its way when the caller is told.
    monkeypatch.setattr(api.store, "changes_after", away)
    async with watching(api, after=2) as watcher:
        write(api.store, ChangeKind.UPDATE, policy(description="second"))
        await until(lambda: failures >= 3)
        monkeypatch.setattr(api.store, "changes_after", there)

        assert numbers(await watcher.until(3)) == [3]


async def test_change_of_a_newer_version_is_named_behind_those_before_it(
    api: Stored, tmp_path: Path
) -> None:
    write(api.store, ChangeKind.UPDATE, policy(description="second"))
    write(api.store, ChangeKind.UPDATE, policy(description="third"))
    with sqlite3.connect(tmp_path / "policies.db") as connection:
        newer = "replace(content, 'description', 'colour')"
        connection.execute(f"UPDATE changes SET content = {newer} WHERE change = 3")
    connection.close()

    async with watching(api) as watcher:
        assert numbers(await watcher.until(2)) == [1, 2]
        error = await refused(watcher.end())

    assert error.reason == "STORE_UNAVAILABLE"
    assert "support, revision 2, cannot be read" in error.text
    async with watching(api, after=3) as watcher:
        assert numbers(await watcher.until(4)) == [4]


async def test_catalog_of_a_newer_version_is_named_to_who_waits_for_the_next_change(
    api: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is brought into force from then on, and so no number is reached."""
    waiting, beyond = asyncio.Event(), api.live.beyond

    async def waited(number: int) -> None:
        waiting.set()
        await beyond(number)

    monkeypatch.setattr(api.live, "beyond", waited)
    rest = "author, author_verified, message, time, NULL, NULL FROM changes"
    async with watching(api, after=2) as watcher:
        await waiting.wait()
        # At once, as far as a look can tell.
        with sqlite3.connect(tmp_path / "policies.db") as connection:
            connection.execute(
                "INSERT INTO changes SELECT 3, name, 2, 'update', deleted, digest, 'etag', content,"
                f" {rest} WHERE change = 2"
            )
            connection.execute(
                "INSERT INTO changes SELECT 4, name, 2, kind, deleted, digest, 'etag',"
                f" replace(content, 'models', 'colours'), {rest} WHERE change = 1"
            )
            connection.execute("UPDATE heads SET change = CASE change WHEN 1 THEN 4 ELSE 3 END")
            connection.execute("UPDATE state SET last_change = 4")
        connection.close()

        assert numbers(await watcher.until(3)) == [3]
        error = await refused(watcher.end())

    assert error.reason == "STORE_UNAVAILABLE"
    assert "modelCatalog, revision 2, cannot be read" in error.text
    async with watching(api, after=4) as watcher:
        waiting.clear()
        await waiting.wait()
        write(api.store, ChangeKind.UPDATE, policy(description="third"))

        assert numbers(await watcher.until(5)) == [5]


async def test_files_are_watched_from_the_number_of_the_list(tmp_path: Path) -> None:
    async with stored(parts.files(tmp_path, policy())) as api:
        listed = await api.policies.ListPolicies(
            policy_pb2.ListPoliciesRequest(parent="namespaces/-")
        )
        async with watching(api, after=listed.change_number) as watcher:
            parts.write_files(tmp_path / "policies", policy(description="edited"), policy("new"))

            received = await watcher.until(listed.change_number + 2)

    assert sorted(each.policy.description for each in received) == ["edited", "first"]
