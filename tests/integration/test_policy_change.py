"""A policy changes under a real routing model while requests go on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc

from sidecar._generated.llmrouter.v1 import decision_pb2, policy_pb2
from sidecar._generated.llmrouter.v1.policy_pb2_grpc import PolicyServiceStub
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.app import Sidecar
from sidecar.config import load_settings
from sidecar.engines import EngineInfo
from sidecar.local import TritonServer
from sidecar.policies.documents import catalog_document, policy_document, yaml_text
from tests.integration.running_sidecar import answered_by_model, decides_by_model, request
from tests.policies.stores.parts import CATALOG, name_of, policy

NAME = name_of("default")


async def test_no_request_notices_a_change(
    triton: TritonServer, cpu_engine: EngineInfo, tmp_path: Path
) -> None:
    seeds = tmp_path / "seeds.yaml"
    documents = catalog_document(CATALOG.values()), policy_document(policy("default"))
    seeds.write_text(yaml_text(*documents))
    settings = load_settings(
        flags={
            "server": {"grpc_address": "127.0.0.1:0", "http_address": ""},
            "policies": {"paths": (seeds,)},
            "policy_store": {"url": f"sqlite:{tmp_path / 'policies.db'}"},
            # Time enough for any machine: what is tested is that nobody waits for the change.
            "routing": {"decision_budget_ms": 30_000},
            "triton": {"address": triton.grpc_address},
            "routing_model": {"directory": cpu_engine.path},
        },
        environ={},
    )
    sidecar = Sidecar(settings)
    await sidecar.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{sidecar.grpc.port}") as channel:
            routing, policies = RoutingServiceStub(channel), PolicyServiceStub(channel)
            await decides_by_model(routing, "default")
            decisions = await decisions_around_a_change(routing, policies)
    finally:
        await sidecar.stop(1)

    revisions = [each.policy_revision for each in decisions]
    assert revisions == sorted(revisions)
    assert set(revisions) == {1, 2}
    # The model decided every one: the new routes were read before they took over.
    assert all(answered_by_model(each) for each in decisions)
    assert decision_pb2.DECISION_REASON_WARMING not in {each.reason for each in decisions}


async def decisions_around_a_change(
    routing: RoutingServiceStub, policies: PolicyServiceStub
) -> list[decision_pb2.Decision]:
    """Decisions one after the other, until two were made under the second revision."""
    decisions: list[decision_pb2.Decision] = []
    changing: asyncio.Task[policy_pb2.Policy] | None = None
    async with asyncio.timeout(240):
        while [each.policy_revision for each in decisions[-2:]] != [2, 2]:
            text = f"Question number {len(decisions)}: where is my invoice?"
            decisions.append((await routing.Route(request(text))).decision)
            if len(decisions) == 2:
                changing = asyncio.create_task(change(policies))
    assert changing is not None
    assert (await changing).revision == 2
    return decisions


async def change(policies: PolicyServiceStub) -> policy_pb2.Policy:
    present = await policies.GetPolicy(policy_pb2.GetPolicyRequest(name=NAME))
    present.routes[0].description = "Invoices, receipts, charges and every other thing with money."
    return await policies.UpdatePolicy(policy_pb2.UpdatePolicyRequest(policy=present))
