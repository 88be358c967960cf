"""Envoy's configuration to measure with: a listener for each processor, and no upstream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SOURCE = "x-source"
"""Header of each answer: the source of the decision, `-` where there was none."""

_TYPES = "type.googleapis.com/envoy.extensions"
_BUFFER_BYTES = 12 * 1024 * 1024


def config(alone: int, processors: dict[int, Path]) -> str:
    """Envoy's configuration: a port without a processor, and ports with one each."""
    clusters = [_cluster(f"p{port}", socket) for port, socket in processors.items()]
    listeners = [_listener(alone, None), *(_listener(port, f"p{port}") for port in processors)]
    return json.dumps({"static_resources": {"listeners": listeners, "clusters": clusters}})


def _listener(port: int, cluster: str | None) -> dict[str, Any]:
    filters: list[dict[str, Any]] = []
    if cluster is not None:
        filters.append({"name": "ext_proc", "typed_config": _processor(cluster)})
    else:
        # Otherwise it would answer before the body has come, and close the connection.
        kind = f"{_TYPES}.filters.http.buffer.v3.Buffer"
        whole = {"@type": kind, "max_request_bytes": _BUFFER_BYTES}
        filters.append({"name": "buffer", "typed_config": whole})
    kind = f"{_TYPES}.filters.http.router.v3.Router"
    filters.append({"name": "router", "typed_config": {"@type": kind}})
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
    manager: dict[str, Any] = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": f"p{port}",
        "http_filters": filters,
    }
    # Of the answer, so that whoever measures sees how each request was decided.
    told = [{"header": {"key": SOURCE, "value": "%REQ(x-llm-source)%"}}]
    routes = {
        "virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [answer]}],
        "response_headers_to_add": told,
    }
    manager["route_config"] = routes
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {
        "address": address,
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _processor(cluster: str) -> dict[str, Any]:
    return {
        "@type": f"{_TYPES}.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": cluster}, "timeout": "0s"},
        "message_timeout": "30s",
        "processing_mode": {"request_body_mode": "BUFFERED", "response_header_mode": "SKIP"},
        "metadata_options": {
            "receiving_namespaces": {"untyped": ["llm_router", "llm_router_failover"]}
        },
    }


def _cluster(name: str, socket: Path) -> dict[str, Any]:
    kind = f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions"
    http2 = {"@type": kind, "explicit_http_config": {"http2_protocol_options": {}}}
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
    return {
        "name": name,
        "load_assignment": assignment,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2
        },
    }
