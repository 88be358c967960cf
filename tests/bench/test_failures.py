"""Calls without an answer are counted as such, and end no measurement."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import pytest

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import (
    RoutingServiceServicer,
    add_RoutingServiceServicer_to_server,
)
from sidecar.bench import own, traffic
from sidecar.bench.application import _post
from sidecar.local import free_ports

REQUESTS = [traffic.request(number, 15, "p") for number in range(8)]


class Failing(RoutingServiceServicer):
    """Answers with an error for its request, then not at all."""

    async def Route(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    async def BatchRoute(self, request: Any, context: Any) -> routing_pb2.BatchRouteResponse:  # noqa: N802
        if len(request.requests) > 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        error = routing_pb2.RouteError(reason="POLICY_NOT_FOUND")
        return routing_pb2.BatchRouteResponse(results=[routing_pb2.BatchRouteResult(error=error)])

    async def StreamRoute(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for each in requests:
            error = routing_pb2.RouteError(reason="POLICY_NOT_FOUND")
            yield routing_pb2.StreamRouteResponse(request_id=each.request_id, error=error)
            break
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


@pytest.fixture
async def routes() -> AsyncIterator[own.Routes]:
    server = grpc.aio.server()
    add_RoutingServiceServicer_to_server(Failing(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with own.calling(f"127.0.0.1:{port}") as made:
        yield made
    await server.stop(None)


async def test_batch_that_fails_is_a_failure_of_each_request(routes: own.Routes) -> None:
    samples = await routes.batch(REQUESTS)

    assert [each.source for each in samples] == ["failed:UNAVAILABLE"] * len(REQUESTS)


async def test_error_within_a_batch_is_a_failure(routes: own.Routes) -> None:
    (sample,) = await routes.batch(REQUESTS[:1])

    assert sample.source == "failed:POLICY_NOT_FOUND"
    assert sample.failed


async def test_stream_that_breaks_is_a_failure_of_what_it_did_not_answer(
    routes: own.Routes,
) -> None:
    samples = await routes.stream(REQUESTS, in_flight=2)

    rest = ["failed:UNAVAILABLE"] * (len(REQUESTS) - 1)
    assert [each.source for each in samples] == ["failed:POLICY_NOT_FOUND", *rest]


async def test_provider_that_is_not_there_is_a_failure() -> None:
    (port,) = free_ports(1)
    async with aiohttp.ClientSession() as session:
        failure = await _post(session, f"http://127.0.0.1:{port}/", b"{}")

    assert failure.startswith("failed:ClientConnector")
