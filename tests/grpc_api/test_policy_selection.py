"""Which policy decides a request that names none: what the metadata of the call says."""

from __future__ import annotations

import grpc
import pytest

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.app_selection import call_selection
from sidecar.config import load_settings
from sidecar.core.decision import PolicyName
from sidecar.core.policy import Policy
from sidecar.grpc_api.server import ServerOptions
from tests.grpc_api.standins import StandInRouter, policy_message, route_request, serving

OPTIONS = ServerOptions(
    selection=call_selection(
        load_settings(
            flags={
                "policies": {
                    "rules": "x-team=search=>search,x-team=ads=>namespaces/ads/policies/main"
                }
            },
            environ={},
        )
    )
)
DEFAULT, SEARCH, TRAVEL = PolicyName(), PolicyName("search"), PolicyName("travel")
Metadata = tuple[tuple[str, str | bytes], ...]


@pytest.mark.parametrize(
    ("metadata", "named", "chosen"),
    [
        ((), "", DEFAULT),
        ((("x-llm-policy", "travel"),), "", TRAVEL),
        (
            (("x-llm-policy", "namespaces/eu/policies/travel"),),
            "",
            PolicyName("travel", "eu"),
        ),
        ((("x-team", "search"),), "", SEARCH),
        ((("x-team", "ads"),), "", PolicyName("main", "ads")),
        ((("x-team", "another"),), "", DEFAULT),
        ((("x-llm-policy", "travel"), ("x-team", "search")), "", TRAVEL),
        ((("x-llm-policy", "travel"),), "search", SEARCH),
        ((("x-llm-policy-bin", b"travel"),), "", DEFAULT),
    ],
    ids=[
        "nothing said",
        "id",
        "resource name",
        "rule",
        "rule with a resource name",
        "no rule fits",
        "name before rules",
        "request before all",
        "binary",
    ],
)
async def test_policy_of_a_call(metadata: Metadata, named: str, chosen: PolicyName) -> None:
    router = StandInRouter()
    request = route_request()
    request.policy = named
    async with serving(router, options=OPTIONS) as (_, channel):
        await RoutingServiceStub(channel).Route(request, metadata=metadata)

    assert [each.policy for each in router.requests] == [chosen]


async def test_batches_and_streams_take_it_too() -> None:
    router = StandInRouter()
    async with serving(router, options=OPTIONS) as (_, channel):
        routing = RoutingServiceStub(channel)
        batch = routing_pb2.BatchRouteRequest(requests=[route_request()] * 2)
        await routing.BatchRoute(batch, metadata=(("x-team", "search"),))
        one = routing_pb2.StreamRouteRequest(request_id="1", request=route_request())
        async for _ in routing.StreamRoute(iter([one]), metadata=(("x-team", "search"),)):
            pass

    assert [each.policy for each in router.requests] == [SEARCH] * 3


async def test_inline_policy_goes_before_it() -> None:
    router = StandInRouter()
    request = route_request()
    request.inline_policy.CopyFrom(policy_message())
    async with serving(router, options=OPTIONS) as (_, channel):
        await RoutingServiceStub(channel).Route(request, metadata=(("x-llm-policy", "travel"),))

    assert isinstance(router.requests[0].policy, Policy)


async def test_wrong_name_is_refused_and_says_where_it_stands() -> None:
    async with serving(options=OPTIONS) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RoutingServiceStub(channel).Route(
                route_request(), metadata=(("x-llm-policy", "No Good"),)
            )

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "metadata x-llm-policy" in str(caught.value.details())
