"""Spans of decisions, as a receiver of OTLP gets them over a real socket."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from sidecar._generated.envoy.service.ext_proc.v3.external_processor_pb2_grpc import (
    ExternalProcessorStub,
)
from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.app_tracing import TracingError, begin_tracing
from sidecar.config import TracingSettings
from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import Decision, Reason, RoutingRequest, StepTime
from sidecar.core.model import LabelAnswer, ModelOutput, Prompt
from sidecar.ext_proc.messages import BUFFERED
from sidecar.inference.calls import decision_trace
from sidecar.inference.triton import TritonModel, TritonTarget
from sidecar.local import free_ports
from sidecar.observability import tracing as tracing_module
from sidecar.observability.decisions import DecisionSinks
from sidecar.observability.metrics import Metrics
from sidecar.observability.tracing import Tracing
from tests import fake_triton
from tests.certificates import Authority
from tests.ext_proc.parts import request_body, request_headers
from tests.ext_proc.standins import ALONE, StubRouter, chat, decision_of, service_on
from tests.fake_triton import FakeTriton
from tests.grpc_api.standins import StandInRouter, decision, route_request, serving
from tests.observability.otlp import Collector, attributes, collecting
from tests.waiting import until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
ROUTE = "llmrouter.v1.RoutingService/Route"
PROCESS = "envoy.service.ext_proc.v3.ExternalProcessor/Process"
INFER = "inference.GRPCInferenceService/ModelInfer"
REQUEST = RoutingRequest(Conversation((Message(Role.USER, "hi"),)))


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def counted() -> Counter[str]:
    return Counter()


def tracing_to(port: int, counted: Counter[str], ratio: float = 1.0) -> Tracing:
    return Tracing(
        f"http://127.0.0.1:{port}", ratio, lambda outcome, count: counted.update({outcome: count})
    )


@asynccontextmanager
async def routing_traced(tracing: Tracing) -> AsyncIterator[RoutingServiceStub]:
    """The API, whose decisions are traced; its spans are exported at the end."""
    router, sinks = StandInRouter(), DecisionSinks(tracing)

    async def recorded(request: RoutingRequest) -> None:
        sinks.record(request, decision(request))

    router.behavior = recorded
    async with serving(router, layers=[tracing]) as (_, channel):
        yield RoutingServiceStub(channel)
    await tracing.close()


def parent_of(span: Span) -> tuple[str, str]:
    return span.trace_id.hex(), span.parent_span_id.hex()


async def test_call_of_one_decision_is_a_server_span_within_its_callers(
    collector: Collector, counted: Counter[str]
) -> None:
    async with routing_traced(tracing_to(collector.port, counted)) as stub:
        metadata = grpc.aio.Metadata(("traceparent", SAMPLED), ("tracestate", "a=b"))
        before = time.time_ns()
        await stub.Route(route_request(), metadata=metadata)
    # Later than the answer: the server ends the span when it has sent it.
    after = time.time_ns()

    (span,) = collector.spans
    assert parent_of(span) == (TRACE, SPAN)
    assert span.trace_state == "a=b"
    assert (span.name, span.kind) == (ROUTE, Span.SPAN_KIND_SERVER)
    assert attributes(span.attributes)["rpc.method"] == ROUTE
    assert attributes(span.attributes)["rpc.response.status_code"] == "OK"
    assert before <= span.end_time_unix_nano <= after
    assert span.end_time_unix_nano - span.start_time_unix_nano == 1_500_000
    assert counted == {"exported": 1}


async def test_decisions_of_a_batch_and_a_stream_are_spans_of_their_own(
    collector: Collector, counted: Counter[str]
) -> None:
    metadata = grpc.aio.Metadata(("traceparent", SAMPLED))
    async with routing_traced(tracing_to(collector.port, counted)) as stub:
        batch = routing_pb2.BatchRouteRequest(requests=[route_request(), route_request()])
        await stub.BatchRoute(batch, metadata=metadata)
        stream = stub.StreamRoute(metadata=metadata)
        await stream.write(routing_pb2.StreamRouteRequest(request_id="1", request=route_request()))
        await stream.read()
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK

    spans = collector.spans
    assert len({span.span_id for span in spans}) == 3
    assert {parent_of(span) for span in spans} == {(TRACE, SPAN)}
    assert {(span.name, span.kind) for span in spans} == {("decision", Span.SPAN_KIND_INTERNAL)}
    methods = Counter(attributes(span.attributes)["rpc.method"] for span in spans)
    assert methods == {
        "llmrouter.v1.RoutingService/BatchRoute": 2,
        "llmrouter.v1.RoutingService/StreamRoute": 1,
    }


NEARER = "00f067aa0ba902b7"


@pytest.mark.parametrize("name", ["s", f"s{ALONE}"])
@pytest.mark.parametrize(
    ("metadata", "parent"),
    [((), SPAN), ((("traceparent", f"00-{TRACE}-{NEARER}-01"),), NEARER)],
    ids=["of the request", "of Envoy's call"],
)
async def test_decision_for_envoy_is_within_the_nearest_span(
    collector: Collector,
    counted: Counter[str],
    tmp_path: Path,
    name: str,
    metadata: tuple[tuple[str, str], ...],
    parent: str,
) -> None:
    tracing = tracing_to(collector.port, counted)
    sinks, router = DecisionSinks(tracing), StubRouter()

    def recorded(request: RoutingRequest) -> str:
        sinks.record(request, decision_of(request))
        return "big/coder"

    router.choose = recorded
    async with (
        service_on(tmp_path / name, router=router, tracing=tracing) as service,
        grpc.aio.insecure_channel(f"unix:{service.socket}") as channel,
    ):
        stub: Any = ExternalProcessorStub(channel)
        call = stub.Process(metadata=metadata)
        head = request_headers({"content-type": "application/json", "traceparent": SAMPLED})
        head.protocol_config.request_body_mode = BUFFERED
        await call.write(head)
        await call.read()
        await call.write(request_body(chat("code")))
        await call.read()
        call.cancel()
    await tracing.close()

    (span,) = collector.spans
    assert parent_of(span) == (TRACE, parent)
    assert (span.name, span.kind) == (PROCESS, Span.SPAN_KIND_SERVER)


@pytest.mark.parametrize(
    ("ratio", "traceparent", "spans"),
    [(1.0, "", 1), (0.0, "", 0), (0.0, SAMPLED, 1), (1.0, UNSAMPLED, 0), (1.0, "nonsense", 1)],
    ids=["all", "none", "sampled caller", "caller that is not sampled", "no traceparent"],
)
async def test_callers_sampling_goes_before_the_ratio(
    collector: Collector, counted: Counter[str], ratio: float, traceparent: str, spans: int
) -> None:
    async with routing_traced(tracing_to(collector.port, counted, ratio)) as stub:
        sent = [("traceparent", traceparent)] if traceparent else []
        await stub.Route(route_request(), metadata=grpc.aio.Metadata(*sent))

    assert len(collector.spans) == spans


async def test_one_call_does_not_get_the_parent_of_another(
    collector: Collector, counted: Counter[str]
) -> None:
    async with routing_traced(tracing_to(collector.port, counted)) as stub:
        await stub.Route(route_request(), metadata=grpc.aio.Metadata(("traceparent", SAMPLED)))
        await stub.Route(route_request())

    within, alone = collector.spans
    assert parent_of(within) == (TRACE, SPAN)
    assert alone.parent_span_id == b""
    assert alone.trace_id.hex() != TRACE


async def exported(collector: Collector, counted: Counter[str], made: Decision) -> Span:
    tracing = tracing_to(collector.port, counted)
    tracing.record(REQUEST, made)
    await tracing.close()
    (span,) = collector.spans
    return span


async def test_span_says_what_the_log_says(collector: Collector, counted: Counter[str]) -> None:
    made = decision()
    span = await exported(collector, counted, made)

    assert attributes(span.attributes) == {
        "llmrouter.decision_id": made.id,
        "llmrouter.source": "model",
        "llmrouter.reason": "matched",
        "llmrouter.route": "billing",
        "llmrouter.model": "acme/fast",
        "llmrouter.policy": "namespaces/default/policies/support",
        "llmrouter.policy_revision": 1,
        "llmrouter.policy_digest": made.policy.digest,
        "llmrouter.routing_model": "stub",
        "llmrouter.confidence": 0.75,
        "llmrouter.detail": "The routing model chose billing.",
    }


async def test_steps_are_events_at_their_ends(collector: Collector, counted: Counter[str]) -> None:
    steps = (StepTime("prompt", 1.0), StepTime("model", 50.0), StepTime("total", 52.0))
    span = await exported(collector, counted, replace(decision(), steps=steps))

    events = [
        (e.name, e.time_unix_nano - span.start_time_unix_nano, attributes(e.attributes))
        for e in span.events
    ]
    assert events == [
        ("prompt", 1_000_000, {"llmrouter.ms": 1.0}),
        ("model", 51_000_000, {"llmrouter.ms": 50.0}),
    ]


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.INTERNAL_ERROR, Status.STATUS_CODE_ERROR),
        (Reason.MODEL_UNAVAILABLE, Status.STATUS_CODE_UNSET),
    ],
    ids=["defect", "fallback"],
)
async def test_a_defect_alone_is_an_error(
    collector: Collector, counted: Counter[str], reason: Reason, status: Status.StatusCode.ValueType
) -> None:
    span = await exported(collector, counted, replace(decision(), reason=reason))

    assert span.status.code == status


async def test_standard_variables_name_the_service_and_authenticate(
    tmp_path: Path, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "ca")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(authority.certificate))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=k-17")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "router-of-search")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    with collecting(authority.issue(tmp_path / "collector")) as collector:
        tracing = Tracing(f"https://127.0.0.1:{collector.port}", 1.0, lambda outcome, count: None)
        tracing.record(REQUEST, decision())
        await tracing.close()

    assert len(collector.spans) == 1
    assert collector.metadata["x-api-key"] == "k-17"
    assert collector.resource["service.name"] == "router-of-search"
    assert collector.resource["deployment.environment.name"] == "test"


async def test_service_has_a_name_of_its_own(collector: Collector, counted: Counter[str]) -> None:
    await exported(collector, counted, decision())

    assert collector.resource["service.name"] == "llm-routing-sidecar"


def answering(**options: Any) -> FakeTriton:
    answer = {
        "output_ids": np.array([[[1]]], np.int32),
        "sequence_length": np.array([[1]], np.int32),
        "generation_logits": np.zeros((1, 1, 1, 8), np.float32),
    }
    return FakeTriton(answer, **options)


@asynccontextmanager
async def model_traced(
    tracing: Tracing, triton: FakeTriton, waits: bool = True
) -> AsyncIterator[RoutingServiceStub]:
    """As `routing_traced`, of decisions for which a model in `triton` is asked.

    Args:
        waits: for the model's answer; else only until it is asked.
    """
    router, sinks = StandInRouter(), DecisionSinks(tracing)
    asking: list[asyncio.Task[ModelOutput]] = []

    async def recorded(request: RoutingRequest) -> None:
        decision_trace.set(tracing.begin_trace())
        asked = len(triton.requests)
        call = model.infer(Prompt((1,), (2,)), LabelAnswer((5, 3)), 60)
        asking.append(asyncio.create_task(call))
        if waits:
            await asyncio.gather(asking[-1], return_exceptions=True)
        await until(lambda: len(triton.requests) > asked)
        sinks.record(request, decision(request))

    router.behavior = recorded
    async with fake_triton.serving(triton):
        model = TritonModel(TritonTarget(triton.address, "tensorrt_llm", 2, 2, 8))
        async with serving(router, layers=[tracing]) as (_, channel):
            yield RoutingServiceStub(channel)
            for each in asking:
                each.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        await model.close()
    await tracing.close()


def told(triton: FakeTriton) -> list[tuple[str | None, str | None]]:
    return [(each.get("traceparent"), each.get("tracestate")) for each in triton.metadata]


@pytest.mark.parametrize(
    ("sent", "trace", "flags"),
    [
        ((), "", "03"),
        ((("traceparent", SAMPLED), ("tracestate", "a=b")), TRACE, "01"),
        ((("traceparent", f"{SAMPLED[:-2]}03"),), TRACE, "03"),
    ],
    ids=["no caller's span", "caller's span", "caller's random span"],
)
async def test_call_to_the_model_is_a_client_span_of_which_the_model_server_is_told(
    collector: Collector,
    counted: Counter[str],
    sent: tuple[tuple[str, str], ...],
    trace: str,
    flags: str,
) -> None:
    triton = answering()
    async with model_traced(tracing_to(collector.port, counted), triton) as stub:
        await stub.Route(route_request(), metadata=grpc.aio.Metadata(*sent))

    own, call = collector.spans
    trace = trace or own.trace_id.hex()
    state = dict(sent).get("tracestate")
    assert told(triton) == [(f"00-{trace}-{call.span_id.hex()}-{flags}", state)]
    assert parent_of(call) == (trace, own.span_id.hex())
    assert (own.trace_id.hex(), own.name) == (trace, ROUTE)
    assert (call.name, call.kind) == (INFER, Span.SPAN_KIND_CLIENT)
    host, port = triton.address.split(":")
    assert attributes(call.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": INFER,
        "rpc.response.status_code": "OK",
        "server.address": host,
        "server.port": int(port),
        "llmrouter.triton_model": "tensorrt_llm",
    }
    assert call.status.code == Status.STATUS_CODE_UNSET
    assert call.start_time_unix_nano < call.end_time_unix_nano
    assert counted == {"exported": 2}


@pytest.mark.parametrize(
    ("ratio", "traceparent", "variable"),
    [(0.0, "", ""), (1.0, UNSAMPLED, ""), (1.0, SAMPLED, "OTEL_SDK_DISABLED")],
    ids=["none", "caller that is not sampled", "disabled"],
)
async def test_model_server_is_told_of_no_span_that_is_not_there(
    collector: Collector,
    counted: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    ratio: float,
    traceparent: str,
    variable: str,
) -> None:
    if variable:
        monkeypatch.setenv(variable, "true")
    triton = answering()
    async with model_traced(tracing_to(collector.port, counted, ratio), triton) as stub:
        sent = [("traceparent", traceparent)] if traceparent else []
        await stub.Route(route_request(), metadata=grpc.aio.Metadata(*sent))

    assert told(triton) == [(None, None)]
    assert not collector.spans


async def test_ratio_holds_for_a_decision_and_its_call_alike(
    collector: Collector, counted: Counter[str]
) -> None:
    triton = answering()
    async with model_traced(tracing_to(collector.port, counted, 0.5), triton) as stub:
        for _ in range(20):
            await stub.Route(route_request())

    decisions = {span.span_id for span in collector.spans if span.name == ROUTE}
    assert 0 < len(decisions) < 20
    assert [span.parent_span_id for span in collector.spans if span.name == INFER] == [
        span.span_id for span in collector.spans if span.name == ROUTE
    ]
    assert sum(traceparent is not None for traceparent, _ in told(triton)) == len(decisions)


async def test_call_that_fails_is_an_error_of_its_span_alone(
    collector: Collector, counted: Counter[str]
) -> None:
    triton = answering(status=(grpc.StatusCode.UNAVAILABLE, "gone"))
    async with model_traced(tracing_to(collector.port, counted), triton) as stub:
        await stub.Route(route_request())

    own, call = collector.spans
    described = attributes(call.attributes)
    assert (described["rpc.response.status_code"], described["error.type"]) == (
        "UNAVAILABLE",
        "UNAVAILABLE",
    )
    assert call.status.code == Status.STATUS_CODE_ERROR
    assert own.status.code == Status.STATUS_CODE_UNSET


async def test_call_that_outlives_its_decision_is_within_it_all_the_same(
    collector: Collector, counted: Counter[str]
) -> None:
    triton = answering(silent=True)
    async with model_traced(tracing_to(collector.port, counted), triton, waits=False) as stub:
        await stub.Route(route_request(), metadata=grpc.aio.Metadata(("traceparent", SAMPLED)))

    own, call = collector.spans
    assert parent_of(call) == (TRACE, own.span_id.hex())
    assert attributes(call.attributes)["rpc.response.status_code"] == "CANCELLED"


@pytest.mark.parametrize(
    ("address", "server"),
    [
        ("triton:8001", {"server.address": "triton", "server.port": 8001}),
        ("[::1]:8001", {"server.address": "::1", "server.port": 8001}),
        ("unix:/run/triton.sock", {"server.address": "/run/triton.sock"}),
    ],
)
async def test_call_says_where_it_went(
    collector: Collector, counted: Counter[str], address: str, server: dict[str, object]
) -> None:
    tracing = tracing_to(collector.port, counted)
    call = tracing.begin_trace().begin_call(address, INFER, "tensorrt_llm")
    assert call is not None
    call.end("OK")
    tracing.record(REQUEST, decision())
    await tracing.close()

    _, span = collector.spans
    described = attributes(span.attributes)
    assert {key: each for key, each in described.items() if key.startswith("server.")} == server


async def test_calls_of_spans_that_nobody_takes_are_counted(
    counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    tracing = tracing_to(port, counted)
    monkeypatch.setattr(tracing_module, "MAX_WAITING", 1)
    call = tracing.begin_trace().begin_call("triton:8001", INFER, "tensorrt_llm")
    assert call is not None
    call.end("OK")
    tracing.record(REQUEST, decision())

    assert counted == {"dropped": 1}
    await tracing.close()


async def test_defect_of_tracing_costs_the_span_and_not_the_call(
    collector: Collector, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    triton, tracing = answering(), tracing_to(collector.port, counted)
    monkeypatch.setattr(tracing, "_sampler", None)
    async with model_traced(tracing, triton) as stub:
        assert (await stub.Route(route_request())).decision

    assert told(triton) == [(None, None)]
    assert [span.name for span in collector.spans] == [ROUTE]


@pytest.fixture(params=["refuses", "hangs"])
def dead_port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Where nobody listens, or where connections are taken and nothing is answered."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        if request.param == "hangs":
            bound.listen()
        yield bound.getsockname()[1]


async def test_dead_collector_costs_spans_and_nothing_else(
    dead_port: int, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing_module, "MAX_WAITING", 200)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    async with asyncio.timeout(60), routing_traced(tracing_to(dead_port, counted)) as stub:
        for _ in range(3):
            batch = routing_pb2.BatchRouteRequest(requests=[route_request()] * 100)
            answer = await stub.BatchRoute(batch, timeout=30)
            assert all(each.HasField("decision") for each in answer.results)
        # No more wait than may: the others are counted without any export having ended.
        assert counted["dropped"] >= 100
        began = time.monotonic()

    # Fewer seconds than one export may take.
    assert time.monotonic() - began < 60
    # The end may come before the thread of the export has its turn to count what it breaks off.
    await until(lambda: counted == {"dropped": 300})


async def test_collector_that_comes_back_gets_what_waits(
    counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    (port,) = free_ports(1)
    tracing = tracing_to(port, counted)
    tracing.record(REQUEST, decision())
    await asyncio.sleep(0.3)
    with collecting(port=port) as collector:
        async with asyncio.timeout(60):
            while not counted["exported"]:
                await asyncio.sleep(0.05)
        await tracing.close()

    assert len(collector.spans) == 1
    assert counted == {"exported": 1}


def test_what_became_of_spans_is_a_metric(collector: Collector) -> None:
    metrics = Metrics()
    tracing = begin_tracing(
        TracingSettings(endpoint=f"http://127.0.0.1:{collector.port}"), metrics.spans
    )
    assert tracing is not None
    tracing.record(REQUEST, decision())
    asyncio.run(tracing.close())

    sample = metrics.registry.get_sample_value("llmrouter_spans_total", {"outcome": "exported"})
    assert sample == 1


def test_switched_off_nothing_of_opentelemetry_is_imported() -> None:
    program = """
import sys
import sidecar.app
from sidecar.app_tracing import begin_tracing
from sidecar.config import TracingSettings
assert begin_tracing(TracingSettings(), print) is None
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert ran.stdout == "[]\n"


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sidecar.observability.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingError, match=r"tracing\.endpoint is set.*extra `tracing`"):
        begin_tracing(TracingSettings(endpoint="http://127.0.0.1:4317"), lambda *counted: None)


def test_header_that_cannot_be_sent_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "a=b,authorization: Bearer k-4711")
    with pytest.raises(TracingError, match="OTEL_EXPORTER_OTLP_HEADERS has a part") as refused:
        begin_tracing(TracingSettings(endpoint="http://127.0.0.1:4317"), lambda *counted: None)

    assert "4711" not in f"{refused.value}{caplog.text}"


@pytest.mark.parametrize("tracestate", ["my account is 4711", "a=b,my account is 4711"])
async def test_tracestate_of_another_form_is_not_logged(
    collector: Collector,
    counted: Counter[str],
    tracestate: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with routing_traced(tracing_to(collector.port, counted)) as stub:
        metadata = grpc.aio.Metadata(("traceparent", SAMPLED), ("tracestate", tracestate))
        await stub.Route(route_request(), metadata=metadata)

    (span,) = collector.spans
    assert parent_of(span) == (TRACE, SPAN)
    assert "4711" not in caplog.text + span.trace_state


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"), ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip")],
)
def test_variable_that_cannot_be_used_ends_the_start(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(TracingError, match=value):
        begin_tracing(TracingSettings(endpoint="http://127.0.0.1:4317"), lambda *counted: None)
