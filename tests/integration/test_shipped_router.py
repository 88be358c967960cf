"""What the routing model that comes along decides, through gRPC and a real Triton."""

from __future__ import annotations

from sidecar.cli.conversations import Case, read_case_file
from sidecar.cli.up import EXAMPLES
from sidecar.core.decision import PolicyName, RoutingRequest
from sidecar.engines import EngineInfo
from sidecar.grpc_api.convert.decisions import decision_to_core
from sidecar.grpc_api.convert.outgoing_requests import request_to_proto
from sidecar.local import TritonServer
from tests.integration.running_sidecar import decides_by_model, sidecar_on

UNSURE = {"code_review"}
"""Routes of conversations about which it is unsure: another CPU's rounding may turn them."""


def sure_cases() -> list[Case]:
    cases = read_case_file(EXAMPLES / "demo" / "conversations.jsonl")
    return [case for case in cases if case.expected not in UNSURE]


async def test_the_shipped_model_routes_the_demo_as_it_did_when_it_was_released(
    triton: TritonServer, cpu_engine: EngineInfo
) -> None:
    cases = sure_cases()
    decided = []
    async with sidecar_on(triton.grpc_address, cpu_engine, budget_s=60) as routing:
        for policy in {case.policy: None for case in cases}:
            await decides_by_model(routing, policy)
        for case in cases:
            request = RoutingRequest(case.conversation, policy=PolicyName(case.policy))
            answer = await routing.Route(request_to_proto(request))
            decided.append(decision_to_core(answer.decision))

    assert cpu_engine.router.trained
    assert [decision.route for decision in decided] == [case.expected for case in cases]
    assert all(decision.routing_model.startswith("router-135m@") for decision in decided)
