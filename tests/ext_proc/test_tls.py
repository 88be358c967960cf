"""Envoy reaches a sidecar by TLS as docs/ext-proc.md says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from ruamel.yaml import YAML

from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.grpc_api.server import GrpcServer, ServerOptions
from sidecar.grpc_api.tls import TlsFiles
from sidecar.local import EnvoyServer, free_ports
from sidecar.observability.metrics import Metrics
from tests.certificates import Authority
from tests.grpc_api.standins import StandInRouter, registry, route_request

PAGE = Path(__file__).parents[2] / "docs" / "ext-proc.md"
HTTP2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}


def transport_socket(files: Path) -> Any:
    """The page's, with the files of this machine."""
    found = re.search(r"```yaml\n(transport_socket:\n.*?)```", PAGE.read_text(), re.S)
    assert found is not None
    yaml = YAML(typ="safe", pure=True).load(found[1].replace("/tls/", f"{files}/"))
    return yaml["transport_socket"]


def config(port: int, target: int, socket: Any) -> str:
    """An Envoy that passes calls on to the cluster."""
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network."
        "http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": "HTTP2",
        "http_filters": [
            {
                "name": "router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {"match": {"prefix": "/"}, "route": {"cluster": "llm_router"}},
                    ],
                }
            ]
        },
    }

    def at(number: int) -> Any:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    listener = {
        "name": "in",
        "address": at(port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    cluster = {
        "name": "llm_router",
        "type": "STATIC",
        "typed_extension_protocol_options": HTTP2,
        "transport_socket": socket,
        "load_assignment": {
            "cluster_name": "llm_router",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(target)}}]}],
        },
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}})


@pytest.mark.parametrize(
    ("name", "expected"), [("llm-router", "OK"), ("somebody-else", "UNAVAILABLE")]
)
async def test_envoy_reaches_the_sidecar_that_has_the_name(
    tmp_path: Path, name: str, expected: str
) -> None:
    authority = Authority(tmp_path / "tls")
    server = authority.issue(tmp_path / "server", name)
    authority.issue(tmp_path / "tls", "envoy")
    tls = TlsFiles(server.certificate, server.key, authority.certificate)
    sidecar = GrpcServer(StandInRouter(), registry(), Metrics(), ServerOptions(tls=tls))
    await sidecar.start()
    port = free_ports(1)[0]
    envoy = EnvoyServer(config(port, sidecar.port, transport_socket(tmp_path / "tls")))
    async with envoy, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            await RoutingServiceStub(channel).Route(route_request(), timeout=60)
            said = "OK"
        except grpc.aio.AioRpcError as error:
            said = error.code().name
    await sidecar.stop(0)
    assert said == expected
