"""Configurations of Envoy for tests: one listener for each way to set up the ext_proc filter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TYPES = "type.googleapis.com/envoy.extensions"
_HTTP_FILTERS = f"{_TYPES}.filters.http"

OWNED = ("route", "model", "cluster", "fallbacks", "decision-id", "source", "reason")


@dataclass(frozen=True)
class Filter:
    """How one listener's ext_proc filter is set up. Times in seconds."""

    body: str = "BUFFERED"
    headers: str = "SEND"
    trailers: str = "SKIP"
    response_headers: str = "SKIP"
    response_body: str = "NONE"
    fail_open: bool = True
    allow_override: bool = True
    observing: bool = False
    message_timeout_s: float = 5.0
    max_message_timeout_s: float = 0.0
    buffer_bytes: int = 16 * 1024 * 1024
    idle_timeout_s: float = 60.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        mode = {
            "request_header_mode": self.headers,
            "request_body_mode": self.body,
            "request_trailer_mode": self.trailers,
            "response_header_mode": self.response_headers,
            "response_body_mode": self.response_body,
            "response_trailer_mode": "SKIP",
        }
        config: dict[str, Any] = {
            "@type": f"{_HTTP_FILTERS}.ext_proc.v3.ExternalProcessor",
            "grpc_service": {"envoy_grpc": {"cluster_name": "llm_router"}, "timeout": "0s"},
            "message_timeout": f"{self.message_timeout_s}s",
            "failure_mode_allow": self.fail_open,
            "allow_mode_override": self.allow_override,
            "observability_mode": self.observing,
            "processing_mode": mode,
            "metadata_options": {"receiving_namespaces": {"untyped": ["llm_router"]}},
            **self.extra,
        }
        if self.max_message_timeout_s:
            config["max_message_timeout"] = f"{self.max_message_timeout_s}s"
        return {"name": "ext_proc", "typed_config": config}


def gateway(
    listeners: Mapping[int, Filter], clusters: Mapping[str, int], sidecar: Path, log: Path
) -> str:
    """A configuration.

    Args:
        listeners: port -> filter.
        clusters: name -> port of an upstream; the first is where requests go by default. Others
            are reached by the header `x-llm-cluster`.
        sidecar: socket of the sidecar.
        log: access log, a JSON object a line.
    """
    default = next(iter(clusters))
    resources = {
        "listeners": [_listener(port, each, default, log) for port, each in listeners.items()],
        "clusters": [
            *(_upstream(name, port) for name, port in clusters.items()),
            _sidecar(sidecar),
        ],
    }
    return json.dumps({"static_resources": resources})


def _listener(port: int, ext_proc: Filter, default: str, log: Path) -> dict[str, Any]:
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": f"port_{port}",
        "early_header_mutation_extensions": [_owned_removed()],
        "http_filters": [
            ext_proc.config(),
            {"name": "router", "typed_config": {"@type": f"{_HTTP_FILTERS}.router.v3.Router"}},
        ],
        "http_protocol_options": {"enable_trailers": True},
        "stream_idle_timeout": f"{ext_proc.idle_timeout_s}s",
        "route_config": {"virtual_hosts": [_routes(default)]},
        "access_log": [_access_log(log)],
    }
    return {
        "name": f"port_{port}",
        "address": _address(port),
        "per_connection_buffer_limit_bytes": ext_proc.buffer_bytes,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _owned_removed() -> dict[str, Any]:
    kind = f"{_TYPES}.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    mutations = [{"remove": f"x-llm-{name}"} for name in OWNED]
    return {"name": "owned", "typed_config": {"@type": kind, "mutations": mutations}}


def _routes(default: str) -> dict[str, Any]:
    by_header = {
        "match": {"prefix": "/", "headers": [{"name": "x-llm-cluster", "present_match": True}]},
        "route": {"cluster_header": "x-llm-cluster", "timeout": "30s"},
    }
    otherwise = {"match": {"prefix": "/"}, "route": {"cluster": default, "timeout": "30s"}}
    return {"name": "all", "domains": ["*"], "routes": [by_header, otherwise]}


def _access_log(path: Path) -> dict[str, Any]:
    shown = {
        "code": "%RESPONSE_CODE%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "router": "%DYNAMIC_METADATA(llm_router)%",
        "id": "%REQ(x-test-id)%",
    }
    kind = f"{_TYPES}.access_loggers.file.v3.FileAccessLog"
    log = {"@type": kind, "path": str(path), "log_format": {"json_format": shown}}
    return {"name": "file", "typed_config": log}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _endpoints(name: str, address: dict[str, Any]) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": address}}
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}


def _upstream(name: str, port: int) -> dict[str, Any]:
    return {
        "name": name,
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": 16 * 1024 * 1024,
        "load_assignment": _endpoints(name, _address(port)),
        "typed_extension_protocol_options": _protocol(
            {"http_protocol_options": {"enable_trailers": True}}
        ),
    }


def _protocol(explicit: dict[str, Any]) -> dict[str, Any]:
    kind = f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions"
    options = {"@type": kind, "explicit_http_config": explicit}
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}


def _sidecar(socket: Path) -> dict[str, Any]:
    return {
        "name": "llm_router",
        "connect_timeout": "0.25s",
        "load_assignment": _endpoints("llm_router", {"pipe": {"path": str(socket)}}),
        "typed_extension_protocol_options": _protocol({"http2_protocol_options": {}}),
    }
