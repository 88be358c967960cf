"""A server whose policies are kept in a real store and followed while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from sidecar._generated.llmrouter.v1.policy_pb2_grpc import PolicyServiceStub
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.core.decision import PolicyName
from sidecar.grpc_api.policy_access import Policies
from sidecar.grpc_api.server import GrpcServer
from sidecar.policies.stores import PolicyStore
from sidecar.routing import CompiledPolicy, PolicyRegistry
from sidecar.routing.live import LivePolicies
from tests.doubles import StubPrompt
from tests.grpc_api.standins import StandInRouter, serving


@dataclass(frozen=True)
class Stored:
    server: GrpcServer
    channel: grpc.aio.Channel
    policies: PolicyServiceStub
    routing: RoutingServiceStub
    store: PolicyStore
    live: LivePolicies
    registry: PolicyRegistry
    router: StandInRouter


async def _cold(compiled: CompiledPolicy) -> None:
    """There is no model server to warm anything in."""


@asynccontextmanager
async def stored(
    store: PolicyStore,
    router: StandInRouter | None = None,
    writes_refused: str = "",
    sockets_write: bool = True,
) -> AsyncIterator[Stored]:
    router = router or StandInRouter()
    registry = PolicyRegistry(
        (), {}, StubPrompt, default_policy=PolicyName("support"), max_prompt_tokens=512
    )
    live = LivePolicies(store, registry, _cold, lambda compiled: False, poll_s=0.05)
    live.begin()
    following = asyncio.create_task(live.follow())
    policies = Policies(store, live, writes_refused, sockets_write)
    try:
        async with serving(router, registry, policies=policies) as (server, channel):
            yield Stored(
                server,
                channel,
                PolicyServiceStub(channel),
                RoutingServiceStub(channel),
                store,
                live,
                registry,
                router,
            )
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await live.close()
        store.close()
