"""Receivers of OTLP, over gRPC and over HTTP, on real sockets: in the place of a collector."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.certificates import Party


class Collector(TraceServiceServicer):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[ExportTraceServiceRequest] = []
        self.metadata: dict[str, str | bytes] = {}

    def Export(  # noqa: N802 -- the method's name in OTLP
        self, request: ExportTraceServiceRequest, context: Any
    ) -> ExportTraceServiceResponse:
        self.metadata = dict(context.invocation_metadata())
        self.requests.append(request)
        return ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]

    @property
    def resource(self) -> dict[str, Any]:
        return attributes(self.requests[0].resource_spans[0].resource.attributes)


@contextmanager
def collecting(party: Party | None = None, port: int = 0) -> Iterator[Collector]:
    """On a free port, or on `port`; with TLS for a party that has a certificate."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    address = f"127.0.0.1:{port}"
    if party is None:
        collector.port = server.add_insecure_port(address)
    else:
        pair = (party.key.read_bytes(), party.certificate.read_bytes())
        credentials = grpc.ssl_server_credentials([pair])
        collector.port = server.add_secure_port(address, credentials)
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()


@contextmanager
def collecting_json() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Over HTTP, as JSON, which is how Triton exports: its URL, and the spans that it gets."""
    spans: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["content-length"])))
            for of_resource in sent["resourceSpans"]:
                for of_scope in of_resource["scopeSpans"]:
                    spans.extend(of_scope["spans"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *said: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
        finally:
            server.shutdown()
            serving.join()


def attributes(pairs: Any) -> dict[str, Any]:
    """As a mapping."""
    return {pair.key: _plain(pair.value) for pair in pairs if isinstance(pair, KeyValue)}


def _plain(value: AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")
