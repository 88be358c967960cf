"""Requests of more fields than anyone sends are refused before they are decoded."""

from __future__ import annotations

import threading
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar._generated.llmrouter.v1 import policy_pb2, routing_pb2
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.grpc_api.convert.requests import RequestLimits
from sidecar.grpc_api.wire import (
    BATCH,
    MAX_BATCH_POLICY_FIELDS,
    MAX_FIELDS,
    ROUTE,
    STREAM,
    Fields,
    batch_refusal,
    has_too_many,
)
from tests.grpc_api.standins import route_request, serving

MESSAGE, PART = b"\x0a\x00", b"\x12\x00"
TOO_MANY = MAX_FIELDS + 1


def request(*messages: routing_pb2.Message) -> routing_pb2.RouteRequest:
    return routing_pb2.RouteRequest(messages=messages)


def of_parts(count: int) -> routing_pb2.RouteRequest:
    return request(routing_pb2.Message.FromString(PART * count))


def with_policy(policy: bytes) -> bytes:
    message = policy_pb2.Policy.FromString(policy)
    return routing_pb2.RouteRequest(inline_policy=message).SerializeToString()


def routes(encoded: list[bytes]) -> bytes:
    made = [policy_pb2.Route.FromString(each) for each in encoded]
    return policy_pb2.Policy(routes=made).SerializeToString()


def batch(*requests: routing_pb2.RouteRequest) -> bytes:
    return routing_pb2.BatchRouteRequest(requests=requests).SerializeToString()


def streamed(each: routing_pb2.RouteRequest) -> bytes:
    return routing_pb2.StreamRouteRequest(request_id="a", request=each).SerializeToString()


def largest() -> routing_pb2.RouteRequest:
    """As many messages as are read, each with several parts."""
    part = routing_pb2.Part(text="x" * 30)
    each = routing_pb2.Message(role=routing_pb2.ROLE_USER, parts=[part] * 8, tool_call_id="c")
    return request(*[each] * RequestLimits().max_messages)


TEXT = request(routing_pb2.Message(parts=[routing_pb2.Part(text="\n" * 1_000_000)]))
REQUESTS: dict[str, tuple[bytes, Fields, bool]] = {
    "messages": (MESSAGE * TOO_MANY, ROUTE, True),
    "as many as are read": (MESSAGE * MAX_FIELDS, ROUTE, False),
    "parts": (of_parts(TOO_MANY).SerializeToString(), ROUTE, True),
    "fields that the API does not have": (b"\x98\x06\x01" * TOO_MANY, ROUTE, True),
    "behind a group": (b"\x9b\x06\x9c\x06" + MESSAGE * TOO_MANY, ROUTE, True),
    "numbers of other sizes": (b"\x9d\x06aaaa" * TOO_MANY, ROUTE, True),
    "parts, in all requests of a batch": (batch(*[of_parts(MAX_FIELDS // 2)] * 2), BATCH, True),
    "parts, on a stream": (streamed(of_parts(TOO_MANY)), STREAM, True),
    "routes of a policy": (with_policy(b"\x1a\x00" * TOO_MANY), ROUTE, True),
    "examples of a route": (with_policy(routes([b"\x32\x00" * TOO_MANY])), ROUTE, True),
    "the largest policy": (with_policy(routes([b"\x32\x01x" * 100] * 512)), ROUTE, False),
    "a long text": (TEXT.SerializeToString(), ROUTE, False),
    "the largest request": (largest().SerializeToString(), ROUTE, False),
    "the largest request, in a batch": (batch(largest()), BATCH, False),
    "no message": (b"\xff" * 1_000_000, ROUTE, False),
    "cut off": (MESSAGE * 10 + b"\x0a\xff\xff\x7f" + b"x" * 200_000, ROUTE, False),
}


@pytest.mark.parametrize(("data", "within", "too_many"), REQUESTS.values(), ids=REQUESTS.keys())
def test_fields_are_counted(data: bytes, within: Fields, too_many: bool) -> None:
    assert has_too_many(data, within) is too_many


def with_policies(policy: policy_pb2.Policy, count: int) -> bytes:
    return batch(*[routing_pb2.RouteRequest(inline_policy=policy)] * count)


def of_routes(count: int) -> policy_pb2.Policy:
    return policy_pb2.Policy.FromString(b"\x1a\x00" * count)


def of_examples(count: int) -> policy_pb2.Policy:
    return policy_pb2.Policy.FromString(routes([b"\x32\x00" * count]))


def several(count: int) -> bytes:
    """Each with another policy."""
    return batch(
        *(
            routing_pb2.RouteRequest(inline_policy=of_routes(MAX_FIELDS + number))
            for number in range(count)
        )
    )


NAMED = b"\x0a\x03abc" + b"\x32\x1e" + b"x" * 30
OF_512_ROUTES = policy_pb2.Policy.FromString(routes([NAMED] * 512))
BATCHES: dict[str, tuple[bytes, str]] = {
    "routes": (with_policies(of_routes(MAX_BATCH_POLICY_FIELDS), 1), "inline policies"),
    "examples": (with_policies(of_examples(MAX_BATCH_POLICY_FIELDS), 1), "inline policies"),
    "one policy, again and again": (with_policies(of_routes(2048), 256), "inline policies"),
    "one policy, as often as is read": (with_policies(of_routes(2000), 256), ""),
    "several policies": (several(8), "inline policies"),
    "several policies, as many as are read": (several(7), ""),
    "512 routes in every request": (with_policies(OF_512_ROUTES, 256), ""),
    "messages, as many as policies have": (batch(of_parts(TOO_MANY)), "oldest messages"),
}


@pytest.mark.parametrize(("data", "says"), BATCHES.values(), ids=BATCHES.keys())
def test_policies_of_a_batch_are_counted(data: bytes, says: str) -> None:
    refused = batch_refusal(data)

    assert (refused is not None) is bool(says)
    assert says in str(refused)


async def test_batch_of_too_many_fields_in_policies_is_refused() -> None:
    async with serving() as (_, channel):
        call: Any = channel.unary_unary("/llmrouter.v1.RoutingService/BatchRoute")
        code, details = await ended_by(call(with_policies(of_routes(2048), 256)))

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "inline policies" in details


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=40))
def test_any_bytes_are_counted(some: bytes) -> None:
    assert has_too_many(some * (200_000 // len(some)), BATCH) in (True, False)


async def ended_by(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


@pytest.mark.parametrize(
    ("method", "data"),
    [("Route", MESSAGE * TOO_MANY), ("BatchRoute", batch(of_parts(TOO_MANY)))],
)
async def test_call_of_too_many_fields_is_refused(method: str, data: bytes) -> None:
    async with serving() as (_, channel):
        call: Any = channel.unary_unary(f"/llmrouter.v1.RoutingService/{method}")
        code, details = await ended_by(call(data))

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details.startswith(f"the request has more than the {MAX_FIELDS} fields")


@pytest.mark.parametrize(("requests", "aside"), [(1, False), (4, True)], ids=["small", "large"])
async def test_large_requests_are_counted_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, requests: int, aside: bool
) -> None:
    threads: list[str] = []

    def refusal(data: bytes) -> None:
        threads.append(threading.current_thread().name)

    monkeypatch.setattr("sidecar.grpc_api.wire.batch_refusal", refusal)
    message = routing_pb2.BatchRouteRequest(
        requests=[route_request("x" * 300_000) for _ in range(requests)]
    )
    async with serving() as (_, channel):
        answer = await RoutingServiceStub(channel).BatchRoute(message)

    assert len(answer.results) == requests
    assert [each != threading.current_thread().name for each in threads] == [aside]


async def test_stream_ends_at_a_request_of_too_many_fields() -> None:
    async with serving() as (_, channel):
        call: Any = channel.stream_stream("/llmrouter.v1.RoutingService/StreamRoute")()
        await call.write(streamed(of_parts(TOO_MANY)))
        code, _ = await ended_by(call.read())

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
