"""Pins over the whole way: gRPC, the walk, a real Triton."""

from __future__ import annotations

from pathlib import Path

from sidecar._generated.llmrouter.v1 import decision_pb2, routing_pb2
from sidecar.engines import EngineInfo
from sidecar.local import TritonServer
from tests.integration.running_sidecar import POLICIES, decides_by_model, request, sidecar_on

POLICY = """\
apiVersion: llmrouter.v1
kind: Policy
name: pinned
pin: conversation
default: {models: [openai/gpt-5.4-mini]}
routes:
  - {name: code, description: Writing and reviewing code., models: [openai/gpt-5.4-mini]}
  - {name: travel, description: Booking trips., models: [openai/gpt-5.4-mini]}
  - {name: food, description: Recipes and restaurants., models: [openai/gpt-5.4-mini]}
"""
TEXTS = (
    "Review this function, please.",
    "Book a flight to Oslo.",
    "How do I bake bread?",
    "Hello, how are you?",
    "Write a haiku about winter.",
)


def keyed(text: str, key: str) -> routing_pb2.RouteRequest:
    message = request(text, "pinned")
    message.conversation_key = key
    return message


async def test_a_conversation_keeps_the_route_that_the_model_chose(
    triton: TritonServer, cpu_engine: EngineInfo, tmp_path: Path
) -> None:
    for name, text in (
        ("catalog.yaml", (POLICIES / "catalog.yaml").read_text()),
        ("default.yaml", (POLICIES / "default.yaml").read_text()),
        ("pinned.yaml", POLICY),
    ):
        (tmp_path / name).write_text(text)
    async with sidecar_on(
        triton.grpc_address, cpu_engine, budget_s=60, policies=tmp_path
    ) as routing:
        await decides_by_model(routing, "pinned")
        # Which route is beside the point, and an untrained model may find none for some text.
        for number, text in enumerate(TEXTS):
            first = (await routing.Route(keyed(text, f"c{number}"))).decision
            if first.source == decision_pb2.DECISION_SOURCE_MODEL:
                break
        then = (await routing.Route(keyed("Thank you. And what else?", f"c{number}"))).decision
        other = (await routing.Route(keyed("Thank you. And what else?", "another"))).decision

    assert first.source == decision_pb2.DECISION_SOURCE_MODEL
    assert then.source == decision_pb2.DECISION_SOURCE_PIN
    assert then.reason == decision_pb2.DECISION_REASON_PINNED_CONVERSATION
    assert (then.route, then.model) == (first.route, first.model)
    assert other.source != decision_pb2.DECISION_SOURCE_PIN
