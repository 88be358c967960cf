"""A router whose answers, delays and faults the test sets, and requests to send.

Only the router is a stand-in, because tests of the edge need to hold decisions back and to break
them; the registry, the server and the sockets are real.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from sidecar._generated.llmrouter.v1 import policy_pb2, routing_pb2
from sidecar.core.decision import (
    Candidate,
    Decision,
    PolicyName,
    PolicyRef,
    Reason,
    RoutingRequest,
    Source,
    StepTime,
)
from sidecar.core.policy import (
    Catalog,
    Model,
    ModelList,
    Policy,
    PolicyRecord,
    Route,
    WeightedModel,
)
from sidecar.grpc_api.interceptors import Layer
from sidecar.grpc_api.policy_access import Policies
from sidecar.grpc_api.server import GrpcServer, ServerOptions
from sidecar.observability.metrics import Metrics
from sidecar.policies import file_record
from sidecar.routing import PolicyRegistry
from tests.doubles import StubPrompt

FAST = Model("acme/fast", "fast-1", "acme", "api.acme.example")
LARGE = Model("acme/large", "large-1", "acme", "api.acme.example")
CATALOG = {model.id: model for model in (FAST, LARGE)}


def policy(name: str = "support", namespace: str = "default") -> Policy:
    models = ModelList((WeightedModel(FAST.id), WeightedModel(LARGE.id)))
    return Policy(
        name=name,
        namespace=namespace,
        routes=(Route("billing", "questions about invoices and payments", models),),
        default=models,
    )


def registry(*policies: Policy, catalog: Catalog = CATALOG) -> PolicyRegistry:
    records: list[PolicyRecord] = [file_record(each) for each in policies or (policy(),)]
    return PolicyRegistry(
        records,
        catalog,
        StubPrompt,
        default_policy=PolicyName("support"),
        max_prompt_tokens=512,
    )


def decision(request: RoutingRequest | None = None) -> Decision:
    return Decision(
        id=uuid.uuid4().hex,
        route="billing",
        model=FAST,
        fallbacks=(LARGE,),
        source=Source.MODEL,
        reason=Reason.MATCHED,
        detail="The routing model chose billing.",
        policy=PolicyRef("namespaces/default/policies/support", 1, policy().digest()),
        prompt_format="compact-v1",
        routing_model="stub",
        confidence=0.75,
        candidates=(Candidate("billing", 0.75), Candidate("other", 0.25)),
        steps=(StepTime("model", 1.25), StepTime("total", 1.5)),
    )


class StandInRouter:
    """Answers at once with `decision()`, unless the test sets `behavior`."""

    def __init__(self) -> None:
        self.degraded = ""
        self.requests: list[RoutingRequest] = []
        self.running = 0
        self.most_running = 0
        self.cancelled = 0
        self.behavior: Callable[[RoutingRequest], Awaitable[None]] | None = None

    async def decide(self, request: RoutingRequest) -> Decision:
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.behavior is not None:
                await self.behavior(request)
            return decision(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


class Gate:
    """A behavior that holds every decision until the gate opens."""

    def __init__(self) -> None:
        self._open = asyncio.Event()

    async def __call__(self, request: RoutingRequest) -> None:
        await self._open.wait()

    def open(self) -> None:
        self._open.set()


@asynccontextmanager
async def serving(
    router: StandInRouter | None = None,
    registry_: PolicyRegistry | None = None,
    options: ServerOptions | None = None,
    metrics: Metrics | None = None,
    policies: Policies | None = None,
    layers: Sequence[Layer] = (),
) -> AsyncIterator[tuple[GrpcServer, grpc.aio.Channel]]:
    """A server on a free port, and a channel to it."""
    server = GrpcServer(
        router or StandInRouter(),
        registry_ or registry(),
        metrics or Metrics(),
        options or ServerOptions(),
        policies=policies,
        layers=layers,
    )
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield server, channel
    finally:
        await server.stop(0)


def user(text: str) -> routing_pb2.Message:
    return routing_pb2.Message(role=routing_pb2.ROLE_USER, parts=[routing_pb2.Part(text=text)])


def route_request(text: str = "where is my invoice?") -> routing_pb2.RouteRequest:
    return routing_pb2.RouteRequest(messages=[user(text)])


def policy_message() -> policy_pb2.Policy:
    models = policy_pb2.ModelList(models=[policy_pb2.WeightedModel(model=FAST.id)])
    return policy_pb2.Policy(
        routes=[policy_pb2.Route(name="billing", description="invoices", models=models)],
        default_models=models,
    )


def call_tasks() -> set[asyncio.Task[Any]]:
    """All tasks but those with which a gRPC server waits for the next call."""
    return {
        task
        for task in asyncio.all_tasks()
        if not str(getattr(task.get_coro(), "__qualname__", "")).startswith("AioServer.")
    }
