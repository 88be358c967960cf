"""The trace of a request through a real Envoy that traces it itself."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sidecar.core.decision import RoutingRequest
from sidecar.local import EnvoyServer, free_ports
from sidecar.observability.decisions import DecisionSinks
from sidecar.observability.tracing import Tracing
from tests.ext_proc.client import post
from tests.ext_proc.gateway import Filter, gateway
from tests.ext_proc.standins import ALONE, StubRouter, chat, decision_of, service_on
from tests.ext_proc.upstream import Upstream
from tests.observability.otlp import collecting
from tests.waiting import until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROCESS = "envoy.service.ext_proc.v3.ExternalProcessor/Process"


def traced(config: str, collector: int) -> str:
    """The configuration, with Envoy's own spans exported to the collector."""
    made = json.loads(config)
    resources = made["static_resources"]
    (listener,) = resources["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["tracing"] = {
        "provider": {
            "name": "otel",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                "grpc_service": {"envoy_grpc": {"cluster_name": "collector"}},
                "service_name": "envoy",
            },
        }
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": collector}}
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    http2: dict[str, Any] = {
        "@type": f"type.googleapis.com/{kind}",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    resources["clusters"].append(
        {
            "name": "collector",
            "load_assignment": {
                "cluster_name": "collector",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
            },
            "typed_extension_protocol_options": {kind: http2},
        }
    )
    return json.dumps(made)


@pytest.mark.parametrize("name", ["s", f"s{ALONE}"])
async def test_decision_is_within_envoys_call(tmp_path: Path, name: str) -> None:
    counted: Counter[str] = Counter()
    (port,) = free_ports(1)
    with collecting() as collector:
        tracing = Tracing(
            f"http://127.0.0.1:{collector.port}",
            1.0,
            lambda outcome, count: counted.update({outcome: count}),
        )
        sinks, router = DecisionSinks(tracing), StubRouter()

        def recorded(request: RoutingRequest) -> str:
            sinks.record(request, decision_of(request))
            return "big/coder"

        router.choose = recorded
        async with (
            Upstream("big") as upstream,
            service_on(tmp_path / name, router=router, tracing=tracing) as service,
        ):
            plain = gateway(
                {port: Filter()}, {"big": upstream.port}, service.socket, tmp_path / "access.log"
            )
            async with EnvoyServer(traced(plain, collector.port)):
                sent = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
                answer = await post(port, chat("code"), headers=sent)
                # Envoy exports its call and the request by a timer, which may come between them.
                await until(lambda: sum(span.name != PROCESS for span in collector.spans) >= 2)
        await tracing.close()

    assert answer.status == 200
    by_id = {span.span_id: span for span in collector.spans}
    (own,) = [span for span in collector.spans if span.name == PROCESS]
    call = by_id[own.parent_span_id]
    assert "ExternalProcessor" in call.name
    assert call.kind == Span.SPAN_KIND_CLIENT
    request = by_id[call.parent_span_id]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, SPAN)
    assert own.trace_id == request.trace_id
