"""The text of messages stays out of logs and errors."""

from __future__ import annotations

import io
import logging
from typing import Any

import grpc

from sidecar._generated.llmrouter.v1 import policy_pb2, routing_pb2
from sidecar._generated.llmrouter.v1.policy_pb2_grpc import PolicyServiceStub
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.core.decision import RoutingRequest
from sidecar.observability.decisions import DecisionLog
from tests.grpc_api.standins import StandInRouter, decision, user

CANARY = "canary-7f3a"


async def misbehave(request: RoutingRequest) -> None:
    """What a defect can look like: the exception quotes what it was working on."""
    text = request.conversation.messages[0].text
    DecisionLog().record(request, decision(request))
    if "defect" in text:
        raise KeyError(text)


def wrong_requests() -> list[routing_pb2.RouteRequest]:
    canary = user(CANARY)
    no_role = routing_pb2.Message(parts=canary.parts)
    calls = [routing_pb2.ToolCall(id=CANARY, arguments=CANARY)]
    misplaced = routing_pb2.Message(role=routing_pb2.ROLE_USER, tool_calls=calls)
    return [
        routing_pb2.RouteRequest(messages=[canary]),
        routing_pb2.RouteRequest(messages=[user(f"defect {CANARY}")]),
        routing_pb2.RouteRequest(messages=[no_role]),
        routing_pb2.RouteRequest(messages=[canary, misplaced]),
        routing_pb2.RouteRequest(messages=[user(CANARY * 100)] * 5000),
        routing_pb2.RouteRequest(messages=[canary], min_confidence=7),
        routing_pb2.RouteRequest(messages=[canary], inline_policy=policy_pb2.Policy()),
    ]


def everything_in(error: grpc.aio.AioRpcError) -> str:
    return repr((error.details(), error.trailing_metadata(), error.debug_error_string()))


async def test_message_text_is_in_no_error_and_no_log_entry(
    router: StandInRouter, channel: grpc.aio.Channel, log: io.StringIO
) -> None:
    router.behavior = misbehave
    stub: Any = RoutingServiceStub(channel)
    said = ""
    for request in wrong_requests():
        try:
            await stub.Route(request)
        except grpc.aio.AioRpcError as error:
            said += everything_in(error)
        try:
            said += str(await stub.BatchRoute(routing_pb2.BatchRouteRequest(requests=[request])))
        except grpc.aio.AioRpcError as error:
            said += everything_in(error)
        streamed = routing_pb2.StreamRouteRequest(request_id="1", request=request)
        said += str([each async for each in stub.StreamRoute(iter([streamed]))])

    assert "INVALID_REQUEST" in said
    assert '"event": "decision"' in log.getvalue()
    assert "KeyError" in log.getvalue()
    assert CANARY not in said
    assert CANARY not in log.getvalue()


async def test_policy_text_is_in_no_log_entry(channel: grpc.aio.Channel, log: io.StringIO) -> None:
    answer = await PolicyServiceStub(channel).ValidatePolicy(
        policy_pb2.ValidatePolicyRequest(yaml=f"kind: Policy\n{CANARY}: [")
    )
    logging.getLogger("test").debug("after it")

    assert not answer.valid
    assert "after it" in log.getvalue()
    assert CANARY not in log.getvalue()
