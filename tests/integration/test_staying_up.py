"""What keeps decisions coming, with a real Triton: kept decisions, a second address, large cold
policies."""

from __future__ import annotations

import asyncio

from sidecar._generated.llmrouter.v1 import decision_pb2, routing_pb2, routing_pb2_grpc
from sidecar.bench import traffic
from sidecar.engines import EngineInfo
from sidecar.local import TritonServer
from tests.integration.running_sidecar import (
    answered_by_model,
    decides_by_model,
    request,
    sidecar_on,
)

NOBODY = "127.0.0.1:1"
MODEL = "openai/gpt-5.4-mini"
SOURCE = decision_pb2.DecisionSource
REASON = decision_pb2.DecisionReason


async def decided(
    stub: routing_pb2_grpc.RoutingServiceStub, asked: routing_pb2.RouteRequest
) -> decision_pb2.Decision:
    return (await stub.Route(asked)).decision


async def test_a_conversation_decided_by_the_model_is_then_decided_by_the_cache(
    triton: TritonServer, cpu_engine: EngineInfo
) -> None:
    async with sidecar_on(triton.grpc_address, cpu_engine, budget_s=60) as stub:
        await decides_by_model(stub, "travel")
        texts = ("book a hotel in Rome", "two nights in Lisbon near the river", "cancel my flight")
        first = [await decided(stub, request(text, "travel")) for text in texts]
        again = [await decided(stub, request(text, "travel", explain=True)) for text in texts]

    for one, other in zip(first, again, strict=True):
        # Fallbacks are not kept: the model is asked again.
        was_kept = one.source == decision_pb2.DECISION_SOURCE_MODEL
        assert (other.source == decision_pb2.DECISION_SOURCE_CACHE) is was_kept
        assert (one.route, one.model.model) == (other.route, other.model.model)
        assert other.explanation.prompt


async def test_an_address_where_nobody_answers_costs_no_decision(
    triton: TritonServer, cpu_engine: EngineInfo
) -> None:
    async with sidecar_on(triton.grpc_address, cpu_engine, budget_s=60, others=(NOBODY,)) as stub:
        await decides_by_model(stub, "travel")
        asked = [request(f"question {number}: a train to Rome", "travel") for number in range(4)]
        decisions = await asyncio.gather(*(decided(stub, each) for each in asked))

    for each in decisions:
        assert answered_by_model(each), REASON.Name(each.reason)


def large_policy() -> routing_pb2.RouteRequest:
    """Forty routes, so that its prefix takes several pieces."""
    asked = request("where is my parcel?")
    policy = asked.inline_policy
    policy.name = "namespaces/default/policies/large"
    policy.default_models.models.add(model=MODEL)
    for route in traffic.routes(40):
        made = policy.routes.add(name=str(route["name"]), description=str(route["description"]))
        made.models.models.add(model=MODEL)
    return asked


async def test_a_large_cold_inline_policy_takes_turns_with_others(
    triton: TritonServer, cpu_engine: EngineInfo
) -> None:
    async with sidecar_on(triton.grpc_address, cpu_engine, budget_s=60) as stub:
        await decides_by_model(stub, "travel")
        large = asyncio.create_task(decided(stub, large_policy()))
        await asyncio.sleep(0.05)
        others = [await decided(stub, request(f"train {n}", "travel")) for n in range(2)]
        answer = await large
        again = await decided(stub, large_policy())

    assert [REASON.Name(each.reason) for each in others if not answered_by_model(each)] == []
    for each in (answer, again):
        assert each.reason not in (
            decision_pb2.DECISION_REASON_DEADLINE_EXCEEDED,
            decision_pb2.DECISION_REASON_MODEL_ERROR,
            decision_pb2.DECISION_REASON_INTERNAL_ERROR,
        ), REASON.Name(each.reason)
    assert answered_by_model(again)
