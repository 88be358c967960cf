"""The Envoy edge, made of its settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sidecar.app_selection import policy_rules
from sidecar.config import Settings
from sidecar.config_ext_proc import BY_BODY, CODING_AGENTS, ExtProcSettings
from sidecar.core.naming import PolicyRule, PolicySelection
from sidecar.core.policy import ApiDialect
from sidecar.ext_proc.deciding import Models, PassObserver, Router
from sidecar.ext_proc.dialects import (
    BY_SHAPE,
    DialectOptions,
    HarnessBlock,
    LlmDialects,
    tag,
)
from sidecar.ext_proc.dialects import CODING_AGENTS as KNOWN_HARNESS
from sidecar.ext_proc.envoy_socket import EnvoySocket
from sidecar.ext_proc.issued import IssuedObserver
from sidecar.ext_proc.options import Asking, ExtProcOptions, OwnedHeader, Waiting, Writing
from sidecar.ext_proc.service import ExtProcService, HeadObserver
from sidecar.ext_proc.timing import LatencyObserver

_ENVELOPE_BYTES = 64 * 1024
"""Of a message around a body."""


def build_ext_proc(
    settings: Settings,
    router: Router,
    models: Models,
    observer: PassObserver,
    latencies: LatencyObserver | None = None,
    issued: IssuedObserver | None = None,
    traces: HeadObserver | None = None,
) -> list[ExtProcService]:
    """The service, if it is switched on."""
    section = settings.ext_proc
    if not section.enabled:
        return []
    dialects = LlmDialects(dialect_options(section))
    largest = settings.server.max_message_bytes - _ENVELOPE_BYTES
    options = replace(
        ext_proc_options(section, largest, policy_rules(settings)),
        max_watched=settings.server.max_concurrent_calls // 2,
    )
    return [ExtProcService(router, models, dialects, options, observer, latencies, issued, traces)]


def envoy_sockets(settings: Settings, services: Iterable[ExtProcService]) -> list[EnvoySocket]:
    """The socket for Envoy alone, if there is to be one."""
    path, server = settings.ext_proc.uds_path, settings.server
    if path is None:
        return []
    return [
        EnvoySocket(service, path, server.max_concurrent_calls, server.max_message_bytes)
        for service in services
    ]


def dialect_options(section: ExtProcSettings) -> DialectOptions:
    """How bodies are read."""
    fields: dict[ApiDialect, tuple[str, ...]] = {}
    for api, _, field in (entry.partition("=") for entry in section.conversation_fields):
        fields[ApiDialect(api)] = (*fields.get(ApiDialect(api), ()), field)
    return DialectOptions(
        paths={
            pattern: BY_SHAPE if api == BY_BODY else ApiDialect(api)
            for pattern, _, api in (entry.rpartition("=") for entry in section.llm_paths)
        },
        key_fields=fields,
        harness=tuple(block for entry in section.harness for block in _harness_blocks(entry)),
        max_decoded_bytes=section.max_decoded_bytes,
        bytes_per_token=section.bytes_per_token,
    )


def _harness_blocks(entry: str) -> tuple[HarnessBlock, ...]:
    if entry == CODING_AGENTS:
        return KNOWN_HARNESS
    begin, arrow, end = entry.partition("=>")
    return (HarnessBlock(begin, end),) if arrow else (tag(entry),)


def ext_proc_options(
    section: ExtProcSettings, largest_body: int, rules: tuple[PolicyRule, ...] = ()
) -> ExtProcOptions:
    """`largest_body`: bytes that a message of the server can carry; `rules`: which policy decides
    requests with certain headers."""
    return ExtProcOptions(
        asking=Asking(
            selection=PolicySelection(section.policy_header, rules),
            key_headers=section.conversation_header,
            caller_header=section.caller_header,
            paths=_pairs(section.paths),
            authorities={
                name.lower(): value for name, value in _pairs(section.authorities).items()
            },
            aliases=_pairs(section.aliases),
            route_concrete=section.route_concrete_models,
        ),
        writing=Writing(
            prefix=section.header_prefix,
            headers=frozenset(map(OwnedHeader, section.headers)),
            rewrite_model=section.rewrite_model,
            reroute=section.clear_route_cache,
            metadata=section.dynamic_metadata,
        ),
        waiting=Waiting(
            message_timeout_s=section.message_timeout_ms / 1000,
            max_message_timeout_s=section.max_message_timeout_ms / 1000,
            margin_s=section.margin_ms / 1000,
            body_s=section.body_timeout_ms / 1000,
            notice_s=section.notice_ms / 1000,
        ),
        max_body_bytes=min(section.max_body_bytes, largest_body),
        stamp_response=section.stamp_response,
        bufferable_bytes=section.bufferable_bytes,
        measure_latency=section.measure_latency,
    )


def _pairs(entries: tuple[str, ...]) -> dict[str, str]:
    """`NAME=POLICY` or `NAME` -> name to policy; the empty policy is the default one."""
    return {name: policy for name, _, policy in (entry.partition("=") for entry in entries)}
