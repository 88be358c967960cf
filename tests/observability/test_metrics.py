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
from sidecar.observability.metrics import (
    LoadedPolicy,
    MeasuredLatency,
    Metrics,
    SidecarState,
)
from tests.grpc_api.standins import (
    FAST,
    LARGE,
    Gate,
    StandInRouter,
    decision,
    policy,
    route_request,
    serving,
)
from tests.waiting import until

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


def test_what_is_known_of_models_is_shown() -> None:
    metrics = Metrics()
    state = SidecarState(
        True,
        "",
        "",
        "",
        latencies=(MeasuredLatency("acme/fast", False, 0.25),),
        models=5,
        models_unpriced=2,
        prices_stale=1,
        prices_undated=3,
        prices_oldest="2026-08-21",
    )
    metrics.watch(lambda: state)

    assert value(metrics.registry, "llmrouter_models") == 5
    assert value(metrics.registry, "llmrouter_models_unpriced") == 2
    assert value(metrics.registry, "llmrouter_models_price_stale") == 1
    assert value(metrics.registry, "llmrouter_models_price_undated") == 3
    # date -u -d 2026-08-21 +%s
    assert value(metrics.registry, "llmrouter_oldest_price_timestamp_seconds") == 1787270400
    latency = "llmrouter_model_latency_seconds"
    assert value(metrics.registry, latency, model="acme/fast", answer="streamed") == 0.25


def test_day_of_the_oldest_price_is_not_shown_if_there_is_none() -> None:
    metrics = Metrics()
    metrics.watch(lambda: SidecarState(True, "", "", ""))

    assert value(metrics.registry, "llmrouter_oldest_price_timestamp_seconds") is None


# --- Models as labels -----------------------------------------------------------------------------


def chosen(metrics: Metrics) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["model"], sample.labels["source"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "llmrouter_chosen_models_total"
    }


def test_decisions_are_counted_by_the_model_they_chose_and_their_source() -> None:
    metrics = Metrics()
    for source in (Source.MODEL, Source.CACHE, Source.CACHE):
        metrics.record(NAMED, replace(decision(), source=source))
    metrics.record(replace(NAMED, policy=policy("p")), replace(decision(), model=LARGE))

    assert chosen(metrics) == {
        ("acme/fast", "model"): 1,
        ("acme/fast", "cache"): 2,
        ("acme/large", "model"): 1,
    }


def test_models_beyond_the_labels_are_counted_together() -> None:
    metrics = Metrics()
    for number in [*range(1024 + 10), 0]:
        model = replace(FAST, id=f"acme/{number}")
        metrics.record(NAMED, replace(decision(), model=model))

    counts = chosen(metrics)
    assert len(counts) == 1024 + 1
    assert counts["_other", "model"] == 10
    assert counts["acme/0", "model"] == 2


# --- Policies and routes as labels ----------------------------------------------------------------


def decided(metrics: Metrics, policy: str, route: str = "") -> None:
    metrics.record(NAMED, replace(decision(), route=route, policy=PolicyRef(policy, 1, "d")))


def counted(metrics: Metrics) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["policy"], sample.labels["route"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "llmrouter_decisions_total"
    }


def test_decisions_beyond_the_labels_are_counted_together() -> None:
    metrics = Metrics(max_policy_labels=4)
    for name in ("a", "b", "c", "d"):
        for route in ("", "x", "y"):
            decided(metrics, name, route)
    decided(metrics, "a", "x")

    assert counted(metrics) == {
        ("a", ""): 1,
        ("a", "x"): 2,
        ("a", "y"): 1,
        ("b", ""): 1,
        ("b", "_other"): 2,
        ("_other", ""): 6,
    }


def test_labels_are_bounded_whatever_policies_come_and_go() -> None:
    metrics = Metrics(max_policy_labels=20)
    for revision in range(500):
        decided(metrics, f"policy {revision % 50}", f"route of revision {revision}")

    assert len(counted(metrics)) == 20 + 20 + 1
    assert sum(counted(metrics).values()) == 500


def test_policy_that_is_deleted_makes_room_once_it_has_been_collected() -> None:
    metrics = Metrics(max_policy_labels=2)
    held = {"a", "b"}
    metrics.watch(
        lambda: SidecarState(
            True, "", "", "", policies=tuple(LoadedPolicy(name, 1, "d", 1) for name in sorted(held))
        )
    )
    decided(metrics, "a", "x")
    decided(metrics, "b", "x")
    decided(metrics, "c", "x")
    held.remove("a")
    decided(metrics, "a", "x")

    at_once, later = counted(metrics), counted(metrics)
    decided(metrics, "d", "x")

    assert at_once == {("a", "x"): 2, ("b", "x"): 1, ("_other", ""): 1}
    assert later == {("b", "x"): 1, ("_other", ""): 1}
    assert counted(metrics) == {("b", "x"): 1, ("_other", ""): 1, ("d", "x"): 1}


def test_inline_policies_take_no_room_and_stay() -> None:
    metrics = Metrics(max_policy_labels=1)
    metrics.watch(lambda: SidecarState(True, "", "", ""))
    metrics.record(replace(NAMED, policy=policy("p")), decision())

    for _ in range(2):
        assert counted(metrics) == {("inline", ""): 1}
    decided(metrics, "a")
    assert ("a", "") in counted(metrics)


def test_policies_in_force_are_shown_up_to_the_bound_and_counted() -> None:
    metrics = Metrics(max_policy_labels=3)
    held = tuple(LoadedPolicy(f"p{n}", 1, "d", 1) for n in range(10))
    metrics.watch(lambda: SidecarState(True, "", "", "", policies=held))

    shown = [
        sample.labels["policy"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "llmrouter_policy_info"
    ]
    assert shown == ["p0", "p1", "p2"]
    assert value(metrics.registry, "llmrouter_policies") == 10
