from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from sidecar._generated.llmrouter.v1.policy_pb2_grpc import PolicyServiceStub
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.grpc_api.server import GrpcServer
from tests.grpc_api.standins import StandInRouter, serving


@pytest.fixture
def router() -> StandInRouter:
    return StandInRouter()


@pytest.fixture
async def served(router: StandInRouter) -> AsyncIterator[tuple[GrpcServer, grpc.aio.Channel]]:
    async with serving(router) as (server, channel):
        yield server, channel


@pytest.fixture
def server(served: tuple[GrpcServer, grpc.aio.Channel]) -> GrpcServer:
    return served[0]


@pytest.fixture
def channel(served: tuple[GrpcServer, grpc.aio.Channel]) -> grpc.aio.Channel:
    return served[1]


@pytest.fixture
def routing(channel: grpc.aio.Channel) -> RoutingServiceStub:
    return RoutingServiceStub(channel)


@pytest.fixture
def policies(channel: grpc.aio.Channel) -> PolicyServiceStub:
    return PolicyServiceStub(channel)
