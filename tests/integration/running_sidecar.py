"""A whole sidecar on an ephemeral port, for tests of all parts together."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from sidecar._generated.llmrouter.v1 import decision_pb2, routing_pb2, routing_pb2_grpc
from sidecar.app import Sidecar
from sidecar.config import load_settings
from sidecar.engines import EngineInfo

POLICIES = Path(__file__).parents[2] / "examples" / "policies"


@asynccontextmanager
async def sidecar_on(
    triton_address: str,
    engine: EngineInfo,
    *,
    budget_s: float,
    policies: Path = POLICIES,
    prompt_format: str | None = None,
    others: tuple[str, ...] = (),
    interface: str = "tensorrt_llm",
    model: str = "tensorrt_llm",
    encoder_alone_from: float = 0.9,
    collector: str = "",
) -> AsyncIterator[routing_pb2_grpc.RoutingServiceStub]:
    """A stub of a sidecar that asks the Triton at `triton_address`.

    Args:
        prompt_format: instead of the engine's.
        others: addresses of further Tritons.
        interface, model: what the model in Triton takes, and its name.
        collector: where spans are exported to; empty: nowhere.
    """
    settings = load_settings(
        flags={
            "server": {"grpc_address": "127.0.0.1:0", "http_address": ""},
            "policies": {"paths": (policies,)},
            "routing": {"decision_budget_ms": int(budget_s * 1000)},
            "triton": {
                "addresses": (*others, triton_address),
                "interface": interface,
                "model": model,
            },
            "routing_model": {
                "directory": engine.path,
                "prompt_format": prompt_format,
                "encoder_alone_from": encoder_alone_from,
            },
            "tracing": {"endpoint": collector},
        },
        environ={},
    )
    sidecar = Sidecar(settings)
    await sidecar.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{sidecar.grpc.port}") as channel:
            stub: routing_pb2_grpc.RoutingServiceStub = routing_pb2_grpc.RoutingServiceStub(channel)
            yield stub
    finally:
        await sidecar.stop(1)


def answered_by_model(decision: decision_pb2.Decision) -> bool:
    """True if the routing model's answer was read, now or before, whatever it led to. The step
    `model` says no more than that it was asked."""
    return any(step.step == "answer" for step in decision.steps)


_NOT_CLEAR = (
    "hello",
    "the first one or rather the other, what would you take?",
    "a train there, then somewhere to sleep and to eat, and what it costs",
    "my order came, but the invoice and my password are wrong",
    "explain it, then write the code and a poem about it",
)
"""Of several routes or none, so that no encoder is sure of all of them."""


async def decides_by_model(
    stub: routing_pb2_grpc.RoutingServiceStub, policy: str, or_encoder: bool = False
) -> decision_pb2.Decision:
    """Wait until the policy is warm; the first decision that the language model had a part in.

    Args:
        or_encoder: one of an encoder that is sure counts as well, which decides about a cold
            policy, too.
    """
    async with asyncio.timeout(60):
        # Another text each time: the same one would be answered from the cache.
        for number, text in enumerate(itertools.cycle(_NOT_CLEAR)):
            decision = (await stub.Route(request(f"{text} {number}", policy))).decision
            steps = {step.step for step in decision.steps}
            if answered_by_model(decision) and (or_encoder or "model" in steps):
                return decision
            await asyncio.sleep(0.05)
    raise AssertionError("counting does not end")


def request(text: str, policy: str = "", explain: bool = False) -> routing_pb2.RouteRequest:
    """One user message."""
    part = routing_pb2.Part(text=text)
    message = routing_pb2.Message(role=routing_pb2.ROLE_USER, parts=[part])
    return routing_pb2.RouteRequest(messages=[message], policy=policy, explain=explain)
