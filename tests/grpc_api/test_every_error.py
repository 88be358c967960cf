"""Each error of the list in docs/api.md is asserted by its name in a test that gets it over a real
socket; those that no other test gets stand here."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.policies.stores import PolicyStore
from tests.grpc_api.refusals import refused
from tests.grpc_api.standins import route_request, serving
from tests.grpc_api.stored import stored
from tests.policies.stores import parts

TESTS = Path(__file__).parents[1]
NAME = "namespaces/default/policies/support"
DELETE = policy_pb2.DeletePolicyRequest(name=NAME)


@pytest.mark.parametrize("code", ErrorCode)
def test_error_is_asserted_by_name(code: ErrorCode) -> None:
    # Nobody is there to read that a call was cancelled: it is a label of the metrics alone.
    folder, name = (
        ("observability", code.label)
        if code is ErrorCode.CANCELLED
        else (
            "grpc_api",
            code.name,
        )
    )
    texts = [path.read_text() for path in (TESTS / folder).glob("test_*.py")]

    assert any(f'"{name}"' in text for text in texts)


async def test_call_during_a_drain_is_draining() -> None:
    async with serving() as (server, channel):
        server.begin_drain()

        error = await refused(RoutingServiceStub(channel).Route(route_request()))

    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


async def test_write_where_writes_are_off_is_refused(tmp_path: Path) -> None:
    store: PolicyStore = parts.sqlite(tmp_path, parts.policy())
    async with stored(store, writes_refused="policy_store.writes is off") as api:
        error = await refused(api.policies.DeletePolicy(DELETE))

    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "WRITES_REFUSED")


async def test_write_while_the_store_is_away_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is made to fail; PostgreSQL really goes away in the integration tests."""

    def away(*_: object) -> object:
        raise SidecarError(ErrorCode.STORE_UNAVAILABLE, "the database is away")

    async with stored(parts.sqlite(tmp_path, parts.policy())) as api:
        monkeypatch.setattr(api.store, "policy", away)
        monkeypatch.setattr(api.store, "write", away)
        update = policy_pb2.UndeletePolicyRequest(name=NAME)
        error = await refused(api.policies.UndeletePolicy(update))

    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")


async def test_what_is_not_known_while_the_store_is_away_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is made to fail; PostgreSQL really goes away in the integration tests."""

    def away(*_: object) -> object:
        raise SidecarError(ErrorCode.STORE_UNAVAILABLE, "the database is away")

    listing = policy_pb2.ListPoliciesRequest(parent="namespaces/-")
    async with stored(parts.sqlite(tmp_path, parts.policy())) as api:
        for method in ("policy", "policies", "last_change"):
            monkeypatch.setattr(api.store, method, away)
        known = await api.policies.GetPolicy(policy_pb2.GetPolicyRequest(name=NAME))
        listed = await api.policies.ListPolicies(listing)
        unknown = await refused(
            api.policies.GetPolicy(policy_pb2.GetPolicyRequest(name=f"{NAME}-2"))
        )
        listing.show_deleted = True
        deleted = await refused(api.policies.ListPolicies(listing))

    assert [each.name for each in listed.policies] == [known.name]
    assert (unknown.reason, deleted.reason) == ("STORE_UNAVAILABLE", "STORE_UNAVAILABLE")
