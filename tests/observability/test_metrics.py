"""What is counted, and that callers cannot make labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import PolicyRef, Reason, RoutingRequest, Source
from sidecar.observability.metrics import MeasuredLatency, Metrics, SidecarState
from tests.grpc_api.standins import (
    Gate,
    StandInRouter,
    decision,
    policy,
    route_request,
    serving,
    until,
)

ROUTE = "llmrouter.v1.RoutingService/Route"
NAMED = RoutingRequest(Conversation((Message(Role.USER, "hi"),)))


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_decision_is_counted_by_source_reason_policy_and_route() -> None:
    metrics = Metrics()

    metrics.record(NAMED, decision())

    counted = value(
        metrics.registry,
        "llmrouter_decisions_total",
        source="model",
        reason="matched",
        policy="namespaces/default/policies/support",
        route="billing",
    )
    assert counted == 1
    seconds = "llmrouter_decision_duration_seconds_sum"
    assert value(metrics.registry, seconds, source="model") == 0.0015
    step = "llmrouter_decision_step_duration_seconds_sum"
    assert value(metrics.registry, step, step="model") == 0.00125


def test_cancelled_decision_is_counted() -> None:
    metrics = Metrics()
    gone = replace(decision(), source=Source.FALLBACK, reason=Reason.CANCELLED, route="")

    metrics.record(NAMED, gone)

    text = [s for m in metrics.registry.collect() for s in m.samples if s.value == 1]
    assert any(sample.labels.get("reason") == "cancelled" for sample in text)


def test_names_in_inline_policies_do_not_become_labels() -> None:
    metrics = Metrics()
    for number in range(50):
        inline = replace(NAMED, policy=policy(f"p{number}"))
        made = replace(decision(), route=f"route{number}", policy=PolicyRef("", 0, str(number)))
        metrics.record(inline, made)

    samples = [
        sample
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "llmrouter_decisions_total"
    ]
    assert [(s.labels["policy"], s.labels["route"], s.value) for s in samples] == [
        ("inline", "", 50)
    ]


async def test_calls_are_counted_by_method_and_how_they_ended() -> None:
    metrics, router, gate = Metrics(), StandInRouter(), Gate()
    async with serving(router, metrics=metrics) as (_, channel):
        stub = RoutingServiceStub(channel)
        await stub.Route(route_request())
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Route(routing_pb2.RouteRequest())
        router.behavior = gate
        call = stub.Route(route_request())
        await until(lambda: router.running == 1)
        in_flight = "llmrouter_grpc_requests_in_flight"
        assert value(metrics.registry, in_flight, method=ROUTE) == 1
        call.cancel()
        await until(lambda: value(metrics.registry, in_flight, method=ROUTE) == 0)
        unknown: Any = channel.unary_unary("/made.up/Method")
        with pytest.raises(grpc.aio.AioRpcError):
            await unknown(b"")

    counted = {
        (sample.labels["method"], sample.labels["code"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "llmrouter_grpc_requests_total"
    }
    assert counted == {(ROUTE, "ok"): 1, (ROUTE, "invalid_request"): 1, (ROUTE, "cancelled"): 1}


def test_requests_that_are_passed_on_are_counted_by_reason() -> None:
    metrics = Metrics()

    metrics.passed_on("malformed_body")
    metrics.passed_on("malformed_body")

    counted = metrics.registry.get_sample_value(
        "llmrouter_envoy_passed_on_total", {"reason": "malformed_body"}
    )
    assert counted == 2


def test_models_without_a_price_and_measured_latencies_are_shown() -> None:
    metrics = Metrics()
    state = SidecarState(
        True,
        "",
        "",
        "",
        latencies=(MeasuredLatency("acme/fast", False, 0.25),),
        models=5,
        models_unpriced=2,
    )
    metrics.watch(lambda: state)

    assert value(metrics.registry, "llmrouter_models") == 5
    assert value(metrics.registry, "llmrouter_models_unpriced") == 2
    latency = "llmrouter_model_latency_seconds"
    assert value(metrics.registry, latency, model="acme/fast", answer="streamed") == 0.25
