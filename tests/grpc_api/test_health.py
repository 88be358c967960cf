"""grpc.health.v1 over a real socket."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.grpc_api.drain import Drain
from sidecar.grpc_api.health import ROUTING_MODEL, HealthService
from sidecar.grpc_api.server import POLICIES, ROUTING, GrpcServer, ServerOptions
from tests.grpc_api.standins import Gate, StandInRouter, route_request, serving
from tests.waiting import until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
def health(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


def asking(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


@pytest.mark.parametrize("service", ["", ROUTING, POLICIES, ROUTING_MODEL])
async def test_service_is_serving(health: Any, service: str) -> None:
    assert (await health.Check(asking(service))).status == SERVING


async def test_unknown_service_is_not_found(health: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(asking("gone"))

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_lost_routing_model_shows_under_its_own_name_alone(
    health: Any, router: StandInRouter
) -> None:
    watch = health.Watch(asking(ROUTING_MODEL))
    assert (await watch.read()).status == SERVING

    router.degraded = "Triton cannot be reached"

    assert (await watch.read()).status == NOT_SERVING
    for service in ("", ROUTING, POLICIES):
        assert (await health.Check(asking(service))).status == SERVING
    router.degraded = ""
    assert (await watch.read()).status == SERVING
    watch.cancel()


async def test_watchers_are_told_of_the_drain_and_end(health: Any, server: GrpcServer) -> None:
    watches = [health.Watch(asking(service)) for service in ("", "", ROUTING, ROUTING_MODEL)]
    for watch in watches:
        assert (await watch.read()).status == SERVING

    server.begin_drain()

    for watch in watches:
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
    assert (await health.Check(asking(""))).status == NOT_SERVING


async def test_watcher_is_told_of_a_drain_that_begins_while_it_is_told_of_something_else() -> None:
    drain = Drain()
    service = HealthService((ROUTING,), drain)
    service.serve()
    told: list[int] = []

    class Context:
        """A fault that a real connection shows only now and then: the first write is slow."""

        async def write(self, response: health_pb2.HealthCheckResponse) -> None:
            told.append(response.status)
            if len(told) == 1:
                drain.begin()
                service.stop_serving()

    context: Any = Context()
    await service.Watch(asking(ROUTING), context)

    assert told == [SERVING, NOT_SERVING]


async def test_watcher_that_leaves_does_not_take_the_others_with_it(
    health: Any, server: GrpcServer
) -> None:
    leaving, staying = health.Watch(asking("")), health.Watch(asking(""))
    assert (await leaving.read()).status == SERVING
    assert (await staying.read()).status == SERVING
    leaving.cancel()
    # A call after the cancel, so that the server has seen it.
    await health.Check(asking(""))

    server.begin_drain()

    assert (await staying.read()).status == NOT_SERVING


async def test_health_is_answered_at_the_limit_of_calls_and_not_counted(
    router: StandInRouter,
) -> None:
    router.behavior = Gate()
    async with serving(router, options=ServerOptions(max_concurrent_calls=1)) as (_, channel):
        health: Any = health_pb2_grpc.HealthStub(channel)
        before = health.Watch(asking(""))
        assert (await before.read()).status == SERVING
        call = RoutingServiceStub(channel).Route(route_request())
        await until(lambda: router.running == 1)

        answer = await health.Check(asking(""))
        within = health.Watch(asking(""))

        assert answer.status == (await within.read()).status == SERVING
        for each in (call, before, within):
            each.cancel()


async def test_unknown_service_is_watched_as_unknown(health: Any) -> None:
    watch = health.Watch(asking("gone"))

    assert (await watch.read()).status == UNKNOWN
    watch.cancel()
