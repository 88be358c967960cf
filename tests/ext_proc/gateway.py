"""Configurations of Envoy for tests: one listener for each way to set up the ext_proc filter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.ext_proc.client import HOST

_TYPES = "type.googleapis.com/envoy.extensions"
_HTTP_FILTERS = f"{_TYPES}.filters.http"

OWNED = ("route", "model", "cluster", "fallbacks", "decision-id", "source", "reason", "confidence")


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
    watching: bool = False
    """A second filter shows responses to the sidecar."""
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


WATCH = Filter(
    body="NONE",
    response_headers="SEND",
    response_body="STREAMED",
    observing=True,
    extra={"response_attributes": ["xds.cluster_name"]},
)


def gateway(
    listeners: Mapping[int, Filter],
    clusters: Mapping[str, int],
    sidecar: Path,
    log: Path,
    tls: Tls | None = None,
) -> str:
    """A configuration.

    Args:
        listeners: port -> filter.
        clusters: name -> port of an upstream; the first is where requests go by default. Others
            are reached by the header `x-llm-cluster`.
        sidecar: socket of the sidecar.
        log: access log, a JSON object a line.
        tls: to take https, and HTTP/2 as well, on the same ports.
    """
    default = next(iter(clusters))
    made = [_listener(port, each, default, log) for port, each in listeners.items()]
    upstreams = [_upstream(name, port) for name, port in clusters.items()]
    if tls is not None:
        made = [_with_tls(each, tls) for each in made]
        made.append(_bridge(tls.bridge))
        upstreams += [_upstream(name, port) | _https(tls) for name, port in tls.providers.items()]
        for port in listeners:
            upstreams += [_http2(f"http2-{port}", port), _http2(f"tls-{port}", port) | _https(tls)]
    resources = {"listeners": made, "clusters": [*upstreams, _sidecar(sidecar)]}
    return json.dumps({"static_resources": resources})


@dataclass(frozen=True)
class Tls:
    """What https and HTTP/2 need.

    Args:
        server: PEM file, certificate and key of `HOST`.
        trusted: PEM file, who has signed it.
        providers: name -> port of an upstream that speaks https.
        bridge: port of a listener that sends what it gets on by HTTP/2: to the listener that the
            header `x-bridge` names, as `http2-PORT` or, over TLS, `tls-PORT`. Envoy in the place of
            a client that speaks HTTP/2.
    """

    server: Path
    trusted: Path
    providers: Mapping[str, int]
    bridge: int


def _listener(port: int, ext_proc: Filter, default: str, log: Path) -> dict[str, Any]:
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": f"port_{port}",
        "early_header_mutation_extensions": [_owned_removed()],
        "http_filters": [
            ext_proc.config(),
            *([WATCH.config()] if ext_proc.watching else []),
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


def _with_tls(listener: dict[str, Any], tls: Tls) -> dict[str, Any]:
    """The listener, which also takes TLS."""
    (plain,) = listener["filter_chains"]
    certificate = {
        "certificate_chain": {"filename": str(tls.server)},
        "private_key": {"filename": str(tls.server)},
    }
    context = {
        "@type": f"{_TYPES}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [certificate],
        },
    }
    encrypted = {
        "filter_chain_match": {"transport_protocol": "tls"},
        "transport_socket": {"name": "tls", "typed_config": context},
        "filters": plain["filters"],
    }
    inspector = f"{_TYPES}.filters.listener.tls_inspector.v3.TlsInspector"
    return listener | {
        "filter_chains": [encrypted, plain],
        "listener_filters": [{"name": "tls", "typed_config": {"@type": inspector}}],
    }


def _https(tls: Tls) -> dict[str, Any]:
    """Of a cluster."""
    context = {
        "@type": f"{_TYPES}.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": HOST,
        "common_tls_context": {
            "validation_context": {
                "trusted_ca": {"filename": str(tls.trusted)},
                "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": HOST}}],
            },
        },
    }
    return {"transport_socket": {"name": "tls", "typed_config": context}}


def _bridge(port: int) -> dict[str, Any]:
    route = {
        "match": {"prefix": "/"},
        "route": {"cluster_header": "x-bridge", "timeout": "60s"},
        "request_headers_to_remove": ["x-bridge"],
    }
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bridge",
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{_HTTP_FILTERS}.router.v3.Router"}}
        ],
        "http_protocol_options": {"enable_trailers": True},
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    }
    return {
        "name": "bridge",
        "address": _address(port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _http2(name: str, port: int) -> dict[str, Any]:
    return {
        "name": name,
        "connect_timeout": "5s",
        "load_assignment": _endpoints(name, _address(port)),
        "typed_extension_protocol_options": _protocol({"http2_protocol_options": {}}),
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
