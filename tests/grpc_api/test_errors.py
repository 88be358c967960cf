"""Every documented error, once, over a real socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from sidecar._generated.llmrouter.v1 import policy_pb2, routing_pb2
from sidecar._generated.llmrouter.v1.policy_pb2_grpc import PolicyServiceStub
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.core.decision import PolicyName, RoutingRequest
from sidecar.core.errors import ErrorCode, FieldViolation, SidecarError
from sidecar.grpc_api.convert.requests import RequestLimits
from sidecar.grpc_api.errors import shortened
from sidecar.grpc_api.server import ServerOptions
from sidecar.policies import MAX_BYTES
from tests.grpc_api.refusals import refused
from tests.grpc_api.standins import (
    StandInRouter,
    policy_message,
    registry,
    route_request,
    serving,
    user,
)

Call = Callable[[RoutingServiceStub, PolicyServiceStub], Awaitable[Any]]
Status = grpc.StatusCode


def raising(error: Exception) -> Callable[[RoutingRequest], Awaitable[None]]:
    async def behavior(request: RoutingRequest) -> None:
        raise error

    return behavior


async def find_policy(request: RoutingRequest) -> None:
    assert isinstance(request.policy, PolicyName)
    registry().get(request.policy)


def inline_without_default() -> routing_pb2.RouteRequest:
    message = route_request()
    message.inline_policy.CopyFrom(policy_message())
    message.inline_policy.ClearField("default_models")
    return message


# Call, status, name of the error, fields that BadRequest names.
DOCUMENTED: dict[str, tuple[Call, grpc.StatusCode, str, list[str]]] = {
    "nothing to decide": (
        lambda r, p: r.Route(routing_pb2.RouteRequest()),
        Status.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        ["messages"],
    ),
    "inline policy": (
        lambda r, p: r.Route(inline_without_default()),
        Status.INVALID_ARGUMENT,
        "INVALID_POLICY",
        ["inline_policy.default_models.models"],
    ),
    "unknown policy": (
        lambda r, p: r.Route(
            routing_pb2.RouteRequest(messages=[user("hi")], policy="namespaces/x/policies/y")
        ),
        Status.NOT_FOUND,
        "POLICY_NOT_FOUND",
        [],
    ),
    "too many messages": (
        lambda r, p: r.Route(routing_pb2.RouteRequest(messages=[user("hi")] * 11)),
        Status.RESOURCE_EXHAUSTED,
        "REQUEST_TOO_LARGE",
        [],
    ),
    "empty batch": (
        lambda r, p: r.BatchRoute(routing_pb2.BatchRouteRequest()),
        Status.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        ["requests"],
    ),
    "large batch": (
        lambda r, p: r.BatchRoute(routing_pb2.BatchRouteRequest(requests=[route_request()] * 257)),
        Status.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        ["requests"],
    ),
    "policy of a malformed name": (
        lambda r, p: p.GetPolicy(policy_pb2.GetPolicyRequest(name="support")),
        Status.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        ["name"],
    ),
    "policy that is not there": (
        lambda r, p: p.GetPolicy(
            policy_pb2.GetPolicyRequest(name="namespaces/default/policies/gone")
        ),
        Status.NOT_FOUND,
        "POLICY_NOT_FOUND",
        [],
    ),
    "list without parent": (
        lambda r, p: p.ListPolicies(policy_pb2.ListPoliciesRequest()),
        Status.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        ["parent"],
    ),
    "negative page": (
        lambda r, p: p.ListPolicies(
            policy_pb2.ListPoliciesRequest(parent="namespaces/-", page_size=-1)
        ),
        Status.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        ["page_size"],
    ),
    "foreign page token": (
        lambda r, p: p.ListPolicies(
            policy_pb2.ListPoliciesRequest(parent="namespaces/-", page_token="zzz")
        ),
        Status.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        ["page_token"],
    ),
    "nothing to validate": (
        lambda r, p: p.ValidatePolicy(policy_pb2.ValidatePolicyRequest()),
        Status.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        ["source"],
    ),
}

# Errors of the router itself, which the stand-in raises.
OF_THE_ROUTER: dict[str, tuple[Exception, grpc.StatusCode, str]] = {
    "unknown model": (
        SidecarError(ErrorCode.MODEL_NOT_FOUND, "no such model"),
        Status.NOT_FOUND,
        "MODEL_NOT_FOUND",
    ),
    "inline policy too large": (
        SidecarError(ErrorCode.POLICY_TOO_LARGE, "600 tokens"),
        Status.INVALID_ARGUMENT,
        "POLICY_TOO_LARGE",
    ),
    "not supported": (
        SidecarError(ErrorCode.UNSUPPORTED, "not here"),
        Status.UNIMPLEMENTED,
        "UNSUPPORTED",
    ),
    "defect": (ZeroDivisionError("canary-secret"), Status.INTERNAL, "INTERNAL"),
}


@pytest.mark.parametrize("name", DOCUMENTED)
async def test_wrong_request_has_its_status_and_names_the_field(name: str) -> None:
    call, code, reason, fields = DOCUMENTED[name]
    router = StandInRouter()
    router.behavior = find_policy
    options = ServerOptions(limits=RequestLimits(max_messages=10))
    async with serving(router, options=options) as (_, channel):
        error = await refused(call(RoutingServiceStub(channel), PolicyServiceStub(channel)))

    assert (error.code, error.reason, list(error.fields)) == (code, reason, fields)
    assert error.text


@pytest.mark.parametrize("name", OF_THE_ROUTER)
async def test_error_of_the_router_has_its_status(
    name: str, router: StandInRouter, routing: RoutingServiceStub
) -> None:
    raised, code, reason = OF_THE_ROUTER[name]
    router.behavior = raising(raised)

    error = await refused(routing.Route(route_request()))

    assert (error.code, error.reason) == (code, reason)
    assert "canary-secret" not in error.text


async def test_bytes_that_are_no_message_are_an_invalid_request(channel: grpc.aio.Channel) -> None:
    call: Any = channel.unary_unary("/llmrouter.v1.RoutingService/Route")

    error = await refused(call(b"\xff\xff\xff"))

    assert (error.code, error.reason) == (Status.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_bytes_that_are_no_message_end_a_stream_as_an_invalid_request(
    channel: grpc.aio.Channel,
) -> None:
    call: Any = channel.stream_stream("/llmrouter.v1.RoutingService/StreamRoute")

    async def read_all() -> None:
        async for _ in call(iter([b"\xff\xff\xff"])):
            pass

    error = await refused(read_all())

    assert (error.code, error.reason) == (Status.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_message_over_the_size_limit_is_resource_exhausted() -> None:
    options = ServerOptions(max_message_bytes=64 * 1024)
    async with serving(options=options) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RoutingServiceStub(channel).Route(route_request("x" * 70_000))

    assert caught.value.code() is Status.RESOURCE_EXHAUSTED


async def test_thousands_of_wrong_fields_still_reach_the_caller(
    routing: RoutingServiceStub,
) -> None:
    """A status travels in HTTP/2 trailers, whose size clients limit."""
    message = routing_pb2.RouteRequest(messages=[routing_pb2.Message()] * 4000)

    error = await refused(routing.Route(message))

    assert error.code is Status.INVALID_ARGUMENT
    assert error.fields[0] == "messages[0].role"
    assert len(error.fields) < 100


def test_violations_are_cut_to_what_fits_and_the_rest_is_counted() -> None:
    violations = [FieldViolation(f"f{n}", "x" * 300) for n in range(10)]

    kept = shortened(violations)

    assert [each.field for each in kept] == ["f0", "f1", "f2", "f3"]
    assert kept[-1].description == "7 more wrong fields are not listed"


def test_long_violation_is_cut_between_characters() -> None:
    (kept,) = shortened([FieldViolation("f", "ä" * 2000)])

    assert kept.description == "ä" * 512 + "…"


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_code_names_a_grpc_status(code: ErrorCode) -> None:
    assert grpc.StatusCode[code.grpc_status].name == code.grpc_status


@pytest.mark.parametrize(
    ("method", "most"),
    [
        ("RoutingService/Route", RequestLimits().max_request_bytes),
        ("PolicyService/ValidatePolicy", 2 * MAX_BYTES),
        ("PolicyService/UpdateModelCatalog", 2 * MAX_BYTES),
    ],
)
async def test_a_request_that_is_too_large_is_refused_before_it_is_decoded(
    method: str, most: int
) -> None:
    # Not a message at all: whoever decoded it would have answered INVALID_ARGUMENT.
    garbage = b"\xff" * (most + 1)
    async with serving() as (_, channel):
        call: Any = channel.unary_unary(f"/llmrouter.v1.{method}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(garbage)

    assert caught.value.code() is Status.RESOURCE_EXHAUSTED
    assert f"the request has {len(garbage)} bytes" in (caught.value.details() or "")
