"""Two sidecars on one PostgreSQL, while it works and while it is away.

The routing model is a stand-in: how policies reach a sidecar does not depend on it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.local import PostgresServer
from sidecar.policies.stores import PolicyStore, open_store
from tests.grpc_api.policy_calls import NAME, get, update
from tests.grpc_api.refusals import refused
from tests.grpc_api.standins import route_request
from tests.grpc_api.stored import Stored, stored
from tests.grpc_api.watchers import Received, numbers, watching
from tests.policies.stores import parts
from tests.policies.stores.parts import policy
from tests.waiting import until

PROVE = bool(os.environ.get("SIDECAR_PROVE"))

Fleet = tuple[Stored, Stored]

_CALLERS = 2
_PAUSE_S = 0.02
_AWAY_S = 60 if PROVE else 0


@pytest.fixture
async def fleet(postgres: PostgresServer) -> AsyncIterator[Fleet]:
    """Leaves the server running, whatever a test did to it."""
    parts.empty_tables(postgres.url)
    stores: list[PolicyStore] = [open_store(postgres.url) for _ in range(2)]
    parts.seeded(stores[0], policy())
    try:
        async with AsyncExitStack() as stack:
            one, other = [await stack.enter_async_context(stored(each)) for each in stores]
            yield one, other
    finally:
        await asyncio.to_thread(postgres.resume)


async def until_in_force(api: Stored, description: str) -> float:
    """When it was seen, by `time.perf_counter`."""
    async with asyncio.timeout(60):
        while True:
            compiled = api.registry.find(NAME)
            if compiled is not None and compiled.policy.description == description:
                return time.perf_counter()
            await asyncio.sleep(0.002)


@asynccontextmanager
async def calls_going_on(fleet: Fleet) -> AsyncIterator[list[str]]:
    """Steady decisions by both sidecars; yields the routes they gave."""
    routes: list[str] = []

    async def call_on(api: Stored) -> None:
        while True:
            routes.append((await api.routing.Route(route_request())).decision.route)
            await asyncio.sleep(_PAUSE_S)

    callers = [asyncio.create_task(call_on(api)) for api in fleet for _ in range(_CALLERS)]
    yield routes
    for caller in callers:
        caller.cancel()
    ended = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended)


async def test_change_through_either_is_used_by_both(fleet: Fleet) -> None:
    changes = 200 if PROVE else 6
    waited: list[float] = []
    started = time.perf_counter()
    async with calls_going_on(fleet) as routes:
        for number in range(changes):
            text = f"change {number}"
            written = await fleet[number % 2].policies.UpdatePolicy(update(text))
            begun = time.perf_counter()
            seen = await asyncio.gather(*(until_in_force(api, text) for api in fleet))
            waited += [at - begun for at in seen]
            assert written.revision == number + 2
    assert set(routes) == {"billing"}
    if PROVE:
        rate = len(routes) / (time.perf_counter() - started)
        waited.sort()
        p50, p99 = (waited[int(len(waited) * share)] * 1000 for share in (0.5, 0.99))
        print(  # noqa: T201
            f"\n{changes} changes through two sidecars at {rate:.0f} decisions/s, none failed: in "
            f"force after p50 {p50:.0f} ms, p99 {p99:.0f} ms, at most {waited[-1] * 1000:.0f} ms"
        )
        assert p99 <= 1000


async def test_each_watcher_of_either_gets_every_change_once(fleet: Fleet) -> None:
    async with watching(fleet[0]) as one, watching(fleet[1], after=1) as other:
        for number in range(6):
            await fleet[number % 2].policies.UpdatePolicy(update(f"change {number}"))

        assert numbers(await one.until(8)) == list(range(1, 9))
        assert numbers(await other.until(8)) == list(range(2, 9))


async def test_writers_on_both_sides_never_overwrite_each_other(fleet: Fleet) -> None:
    etag = (await get(fleet[0])).etag

    async def attempt(number: int) -> str:
        try:
            made = await fleet[number % 2].policies.UpdatePolicy(update(f"w{number}", etag=etag))
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return made.description

    outcomes = await asyncio.gather(*(attempt(number) for number in range(16)))

    won = [outcome for outcome in outcomes if outcome != "ABORTED"]
    assert len(won) == 1
    assert (await get(fleet[1])).description == won[0]


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_decisions_go_on_while_postgres_is_away_and_nothing_is_missed(
    fleet: Fleet, postgres: PostgresServer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(fleet[1]) as watcher:
        await fleet[0].policies.UpdatePolicy(update("before"))
        await asyncio.gather(*(until_in_force(api, "before") for api in fleet))
        # Not for the time afterwards: the first write to a database that is back may take longer.
        with monkeypatch.context() as impatient:
            impatient.setattr("sidecar.grpc_api.policy_access._LONGEST_S", 1.0)
            for api in fleet:
                impatient.setattr(api.live, "_longest_s", 1.0)
            await asyncio.to_thread(postgres.kill if how == "killed" else postgres.pause)
            await while_away(fleet)

        if how == "killed":
            # In this thread, at whose end it would be asked to end.
            postgres.spawn()
            await asyncio.to_thread(postgres.wait_ready)
        else:
            await asyncio.to_thread(postgres.resume)
        await asyncio.gather(*(until_problem(api, there=False) for api in fleet))
        # A write that a frozen server had taken already may have been made after all.
        written = await fleet[1].policies.UpdatePolicy(update("after"))
        await asyncio.gather(*(until_in_force(api, "after") for api in fleet))
        received = await watcher.until(written.revision_info.change_number)

    assert numbers(received) == list(range(1, written.revision_info.change_number + 1))
    assert described(received)[-1] == "after"
    if how == "killed":
        assert described(received) == ["first", "before", "after"]


async def while_away(fleet: Fleet) -> None:
    await asyncio.gather(*(until_problem(api, there=True) for api in fleet))
    async with calls_going_on(fleet) as routes:
        await asyncio.sleep(_AWAY_S)
        await until(lambda: bool(routes))
    assert set(routes) == {"billing"}

    for api in fleet:
        assert (await api.routing.Route(route_request())).decision.route == "billing"
        error = await refused(api.policies.UpdatePolicy(update("lost")))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert (await get(api)).description == "before"
    assert {api.registry.records()[0].revision for api in fleet} == {2}


def described(received: list[Received]) -> list[str]:
    return [each.policy.description for each in received if each.HasField("policy")]


async def until_problem(api: Stored, there: bool) -> None:
    await until(lambda: bool(api.live.problem) is there)


async def test_sidecar_that_starts_beside_another_has_the_same(
    fleet: Fleet, postgres: PostgresServer
) -> None:
    await fleet[0].policies.UpdatePolicy(update("second"))

    store = open_store(postgres.url)
    parts.seeded(store, policy(description="from files"))
    async with stored(store) as late:
        assert late.live.snapshot.records[NAME].policy.description == "second"
        listed = await late.policies.ListPolicies(
            policy_pb2.ListPoliciesRequest(parent="namespaces/-")
        )
        assert [each.revision for each in listed.policies] == [2]
