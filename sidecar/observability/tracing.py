"""A span for each decision and each call that it makes to the model server, exported over OTLP by
the libraries of OpenTelemetry.

Imported only where spans are exported. Spans are made when their decision is recorded, after the
answer: until then all that a request costs is to keep two of its headers, and to draw the ids that
the model server is told.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    NoOpTracer,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.util.re import parse_env_headers

from sidecar import __version__
from sidecar.core.correlation import TraceParent, trace_parent
from sidecar.core.decision import Decision, Reason, RoutingRequest
from sidecar.observability.decisions import facts

MAX_WAITING = 2048
"""Spans that wait to be exported, those on their way included: about two megabytes."""

_AT_ONCE = 64
"""Spans of one export. The event loop waits while a thread encodes them."""

_END_S = 2.0
"""How long the end waits for what is not exported yet."""

_BREAK_OFF_S = 0.5
"""How long it then waits for the export to see that it is over."""

_OF_ONE_DECISION = (
    "llmrouter.v1.RoutingService/Route",
    "envoy.service.ext_proc.v3.ExternalProcessor/Process",
)
"""Methods with one decision for each call: its span is that of the call. Others make several, or
none."""

_NAME = "decision"
"""Of the other spans of decisions."""

_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
"""Variables with what a collector asks for, such as a key."""

_random = RandomIdGenerator()

_log = structlog.get_logger(__name__)

# Their warnings quote what callers send, and keys.
for _quoting in ("opentelemetry.trace.span", "opentelemetry.util.re"):
    logging.getLogger(_quoting).setLevel(logging.ERROR)


class _Call(NamedTuple):
    """What a decision's span is part of; the headers are empty if they were not sent."""

    method: str
    traceparent: str
    tracestate: str


_NO_CALL = _Call("", "", "")
_call: ContextVar[_Call] = ContextVar("traced_call", default=_NO_CALL)


@dataclass(slots=True)
class ModelCall:
    """A call to the model server, until its span is made."""

    address: str
    method: str
    model: str
    span_id: int
    headers: dict[str, str]
    ended: Callable[[ModelCall], None]
    started: int = field(default_factory=time.time_ns)
    began: int = field(default_factory=time.perf_counter_ns)
    took: int = 0
    status: str = ""

    def end(self, status: str) -> None:
        """`status`: gRPC's name of it."""
        self.took = time.perf_counter_ns() - self.began
        self.status = status
        self.ended(self)


class DecisionTrace:
    """What is known of a decision's span before there is one. Raises nothing.

    Args:
        begin: what begins a call; None where nothing is sampled.
        add: makes the span of a call within the decision's.
    """

    def __init__(
        self,
        begin: Callable[[DecisionTrace, str, str, str], ModelCall | None],
        add: Callable[[ModelCall, Context], None],
    ) -> None:
        self.trace_id = 0
        """0 until it is drawn."""
        self._begin = begin
        self._add = add
        self._ended: list[ModelCall] = []
        self._within: Context | None = None

    def begin_call(self, address: str, method: str, model: str) -> ModelCall | None:
        """None if the decision has no span."""
        try:
            return self._begin(self, address, method, model)
        except Exception:
            _log.exception("call to the model server not traced")
            return None

    def call_ended(self, call: ModelCall) -> None:
        if self._within is None:
            self._ended.append(call)
        else:
            # Its decision has not waited for it. Others may, who come first.
            asyncio.get_running_loop().call_soon(self._add, call, self._within)

    def made(self, within: Context) -> None:
        """There is a span of the decision: those of its calls are made, too."""
        self._within = within
        for call in self._ended:
            self._add(call, within)


_trace: ContextVar[DecisionTrace | None] = ContextVar("begun_trace", default=None)


class Tracing:
    """Makes the spans. Takes decisions as a `DecisionSink`, calls as a `Layer` of the gRPC server,
    and what Envoy shows of a request as a `HeadObserver`.

    Args:
        endpoint: `http://host:port`, or with `https` for TLS.
        sample_ratio: of the decisions whose caller names no span, in 0..1.
        count: gets `exported` or `dropped`, and how many spans; also from another thread.

    Raises:
        Exception: when made, of any type, for variables `OTEL_…` that cannot be used.
    """

    def __init__(
        self, endpoint: str, sample_ratio: float, count: Callable[[str, int], None]
    ) -> None:
        _check_headers()
        self._count = count
        self._exporter = OTLPSpanExporter(
            endpoint,
            insecure=endpoint.startswith("http://"),
            # A proxy that is meant for the internet knows nothing of a collector.
            channel_options=(("grpc.enable_http_proxy", 0),),  # type: ignore[arg-type]
        )
        self._counted = _Counted(self._exporter, count)
        self._made = 0
        self._processor = BatchSpanProcessor(
            self._counted, max_queue_size=MAX_WAITING, max_export_batch_size=_AT_ONCE
        )
        self._sampler = ParentBased(TraceIdRatioBased(sample_ratio))
        self._ids = _Ids()
        provider = TracerProvider(
            self._sampler, _resource(), shutdown_on_exit=False, id_generator=self._ids
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("llmrouter", __version__)

    def put_around(
        self, behavior: Callable[[Any, Any], Awaitable[Any]], method: str
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        """`behavior` with the call's headers kept for its decisions."""

        async def traced(request: Any, context: Any) -> Any:
            sent: dict[str, str] = {}
            for key, value in context.invocation_metadata() or ():
                if isinstance(value, str):
                    sent.setdefault(key, value)
            # Never reset: every call runs in a task of its own.
            _call.set(_Call(method, sent.get("traceparent", ""), sent.get("tracestate", "")))
            return await behavior(request, context)

        return traced

    def request_headers(self, header: Callable[[str], str]) -> None:
        """Those of an HTTP request. Where Envoy traces, its own call names the nearer span."""
        call = _call.get()
        if not call.traceparent:
            _call.set(_Call(call.method, header("traceparent"), header("tracestate")))

    def begin_trace(self) -> DecisionTrace:
        """That of the decision that begins in this context."""
        trace = DecisionTrace(self._begin_call, self._add_call)
        _trace.set(trace)
        return trace

    def record(self, request: RoutingRequest, decision: Decision) -> None:
        ms = decision.total_ms
        ago_s = ms / 1000 if request.arrived is None else time.perf_counter() - request.arrived
        started = time.time_ns() - round(ago_s * 1e9)
        call, trace = _call.get(), _trace.get()
        whole = call.method in _OF_ONE_DECISION
        self._ids.given(trace_id=0 if trace is None else trace.trace_id)
        span = self._tracer.start_span(
            call.method if whole else _NAME,
            _parent(call),
            SpanKind.SERVER if whole else SpanKind.INTERNAL,
            start_time=started,
        )
        if not span.is_recording():
            return
        if self._has_room():
            _describe(span, decision, call.method, whole)
            _add_steps(span, decision, started)
            span.end(started + round(ms * 1e6))
        if trace is not None:
            trace.made(set_span_in_context(span, Context()))

    def _begin_call(
        self, trace: DecisionTrace, address: str, method: str, model: str
    ) -> ModelCall | None:
        within = _parent(_call.get())
        parent = get_current_span(within).get_span_context()
        trace.trace_id = trace.trace_id or parent.trace_id or _random.generate_trace_id()
        # As it will be decided of the decision's span.
        sampled = self._sampler.should_sample(within, trace.trace_id, method)
        if isinstance(self._tracer, NoOpTracer) or not sampled.decision.is_sampled():  # type: ignore[no-untyped-call]
            return None
        span_id = _random.generate_span_id()
        flags = TraceFlags.SAMPLED
        if not parent.is_valid or parent.trace_flags.random_trace_id:
            flags |= TraceFlags.RANDOM_TRACE_ID
        headers = {"traceparent": f"00-{trace.trace_id:032x}-{span_id:016x}-{flags:02x}"}
        if sampled.trace_state:
            headers["tracestate"] = sampled.trace_state.to_header()
        return ModelCall(address, method, model, span_id, headers, trace.call_ended)

    def _add_call(self, call: ModelCall, within: Context) -> None:
        self._ids.given(span_id=call.span_id)
        span = self._tracer.start_span(
            call.method, within, SpanKind.CLIENT, start_time=call.started
        )
        if not self._has_room():
            return
        _describe_call(span, call)
        span.end(call.started + call.took)

    def _has_room(self) -> bool:
        if self._made - self._counted.done < MAX_WAITING:
            self._made += 1
            return True
        # Not ended, so that it goes nowhere. The processor would drop another one uncounted.
        self._count("dropped", 1)
        return False

    async def close(self) -> None:
        """Exports what waits; what takes longer than two seconds is dropped."""
        # A daemon, and no thread of asyncio's own: those may all wait for something else.
        ending = threading.Thread(target=self._processor.shutdown, name="end-of-spans", daemon=True)
        ending.start()
        await _ended(ending, _END_S)
        if ending.is_alive():
            # Ends the export on its way; those after it fail at once, and are counted so.
            self._exporter.shutdown()
            await _ended(ending, _BREAK_OFF_S)


class _Ids(RandomIdGenerator):
    """Gives the next span the ids that were told of it already."""

    def __init__(self) -> None:
        self.given()

    def given(self, trace_id: int = 0, span_id: int = 0) -> None:
        """0: a new one is drawn."""
        self._trace_id, self._span_id = trace_id, span_id

    def generate_trace_id(self) -> int:
        return self._trace_id or super().generate_trace_id()

    def generate_span_id(self) -> int:
        return self._span_id or super().generate_span_id()


class _Counted(SpanExporter):
    """Counts what became of spans."""

    def __init__(self, exporter: SpanExporter, count: Callable[[str, int], None]) -> None:
        self.done = 0
        self._exporter = exporter
        self._count = count

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self.done += len(spans)
            exported = result is SpanExportResult.SUCCESS
            self._count("exported" if exported else "dropped", len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _check_headers() -> None:
    for variable in _HEADERS:
        parts = [part for part in os.environ.get(variable, "").split(",") if part.strip()]
        if not all(parse_env_headers(part, liberal=True) for part in parts):
            # The value may be a key.
            raise ValueError(f"{variable} has a part that is not name=value")


def _resource() -> Resource:
    """Ours, under what the variables `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say."""
    ours = {"service.name": "llm-routing-sidecar", "service.version": __version__}
    return Resource.create().merge(Resource(ours)).merge(OTELResourceDetector().detect())


def _parent(call: _Call) -> Context:
    parent = trace_parent(call.traceparent, call.tracestate)
    # Never the current context, in which there may be a span of someone else.
    return Context() if parent is None else _within(parent)


def _within(parent: TraceParent) -> Context:
    context = SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(parent.flags),
        trace_state=TraceState.from_header([parent.state]),
    )
    return set_span_in_context(NonRecordingSpan(context), Context())


def _describe(span: Span, decision: Decision, method: str, whole: bool) -> None:
    described = {**facts(decision), "detail": decision.detail or None}
    attributes = {f"llmrouter.{key}": each for key, each in described.items() if each is not None}
    if method:
        attributes |= {"rpc.system.name": "grpc", "rpc.method": method}
    if whole:
        gone = decision.reason is Reason.CANCELLED
        attributes["rpc.response.status_code"] = "CANCELLED" if gone else "OK"
    span.set_attributes(attributes)
    if decision.reason is Reason.INTERNAL_ERROR:
        span.set_status(Status(StatusCode.ERROR))


def _describe_call(span: Span, call: ModelCall) -> None:
    attributes: dict[str, str | int] = {
        "rpc.system.name": "grpc",
        "rpc.method": call.method,
        "rpc.response.status_code": call.status,
        "llmrouter.triton_model": call.model,
    }
    host, _, port = call.address.rpartition(":")
    if host == "unix":
        attributes["server.address"] = port
    else:
        attributes |= {"server.address": host.strip("[]"), "server.port": int(port)}
    if call.status != "OK":
        attributes["error.type"] = call.status
        span.set_status(Status(StatusCode.ERROR))
    span.set_attributes(attributes)


def _add_steps(span: Span, decision: Decision, started: int) -> None:
    """Events at their ends: a span of its own for each would be most of the cost."""
    ended_ms = 0.0
    for each in decision.steps:
        if each.step != "total":
            ended_ms += each.ms
            span.add_event(each.step, {"llmrouter.ms": each.ms}, started + round(ended_ms * 1e6))


async def _ended(thread: threading.Thread, within_s: float) -> None:
    until = time.monotonic() + within_s
    while thread.is_alive() and time.monotonic() < until:  # noqa: ASYNC110 -- threads tell nobody
        await asyncio.sleep(0.01)
