"""What happens around every call."""

from __future__ import annotations

import io
import json
from typing import Any

import grpc
import pytest
import structlog

from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.core.decision import RoutingRequest
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.grpc_api.errors import DEFECT
from sidecar.grpc_api.server import GrpcServer
from sidecar.observability.decisions import DecisionLog, DecisionSinks
from sidecar.observability.metrics import Metrics
from tests.grpc_api.standins import StandInRouter, decision, route_request, serving


async def say_something(request: RoutingRequest) -> None:
    structlog.get_logger("inside").info("deciding")


def entries(log: io.StringIO, event: str) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in log.getvalue().splitlines()]
    return [entry for entry in read if entry["event"] == event]


@pytest.mark.parametrize(
    ("sent", "logged"),
    [("r-17", "r-17"), ("x" * 500, "x" * 128), (None, None)],
    ids=["sent", "too long", "none"],
)
async def test_entries_of_a_call_carry_method_and_request_id(
    router: StandInRouter,
    routing: RoutingServiceStub,
    log: io.StringIO,
    sent: str | None,
    logged: str | None,
) -> None:
    router.behavior = say_something
    metadata = grpc.aio.Metadata(*([("x-request-id", sent)] if sent else []))

    await routing.Route(route_request(), metadata=metadata)

    (entry,) = entries(log, "deciding")
    assert entry["method"] == "llmrouter.v1.RoutingService/Route"
    assert entry.get("request_id") == logged


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_decision_of_a_call_carries_its_request_and_trace_id(
    router: StandInRouter, routing: RoutingServiceStub, log: io.StringIO
) -> None:
    sinks = DecisionSinks(DecisionLog())

    async def recorded(request: RoutingRequest) -> None:
        sinks.record(request, decision(request))

    router.behavior = recorded
    metadata = grpc.aio.Metadata(("x-request-id", "r-17"), ("traceparent", TRACEPARENT))
    await routing.Route(route_request(), metadata=metadata)
    await routing.Route(route_request())

    first, second = entries(log, "decision")
    assert first["request_id"] == "r-17"
    assert first["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert not {"request_id", "trace_id"} & second.keys()


async def test_refused_call_is_logged_with_its_code(
    router: StandInRouter, routing: RoutingServiceStub, log: io.StringIO
) -> None:
    async def refuse(request: RoutingRequest) -> None:
        raise SidecarError(ErrorCode.MODEL_NOT_FOUND, "no such model")

    router.behavior = refuse
    with pytest.raises(grpc.aio.AioRpcError):
        await routing.Route(route_request())

    (entry,) = entries(log, "call refused")
    assert (entry["code"], entry["why"]) == ("model_not_found", "no such model")


class BrokenMetrics(Metrics):
    def call_started(self, method: str) -> None:
        raise ZeroDivisionError


async def test_defect_of_an_interceptor_is_an_internal_error_too() -> None:
    async with serving(metrics=BrokenMetrics()) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RoutingServiceStub(channel).Route(route_request())

    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == DEFECT.message


async def test_call_during_the_drain_is_told_to_go_elsewhere(
    server: GrpcServer, routing: RoutingServiceStub
) -> None:
    server.begin_drain()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await routing.Route(route_request())

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in str(caught.value.details())
