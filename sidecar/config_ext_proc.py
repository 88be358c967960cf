"""Settings of the Envoy edge."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, model_validator

from sidecar.config_fields import OptionalPath, Section, listed, policy_name, setting
from sidecar.core.policy import ApiDialect
from sidecar.policies.findings import quoted

_HEADER = re.compile(r"[a-z0-9!#$&'*+.^_`|~-]+")
CODING_AGENTS = "coding-agents"
BY_BODY = "by-body"
_APIS = (*ApiDialect, BY_BODY)
_KEPT_FROM_CLIENTS = ("x-envoy-", "content-")
_OF_HTTP = ("host", "connection", "transfer-encoding", "te")


def _header(value: str) -> str:
    if value and not _HEADER.fullmatch(value):
        raise ValueError(f"{quoted(value)} is not the name of a header in lower case")
    if value.startswith(_KEPT_FROM_CLIENTS) or value in _OF_HTTP:
        raise ValueError(
            f"{quoted(value)} has a meaning of its own in HTTP or in Envoy; use another"
        )
    return value


def _pair(value: str) -> str:
    name, _, policy = value.partition("=")
    if not name or not policy:
        raise ValueError(f"{quoted(value)} is not NAME=POLICY")
    policy_name(policy)
    return value


def _alias(value: str) -> str:
    name, _, policy = value.partition("=")
    if not name:
        raise ValueError(f"{quoted(value)} is neither NAME nor NAME=POLICY")
    if policy:
        policy_name(policy)
    return value


def _llm_path(value: str) -> str:
    pattern, _, api = value.rpartition("=")
    if not pattern or api not in _APIS:
        raise ValueError(f"{quoted(value)} is not PATTERN=API; the APIs are {', '.join(_APIS)}")
    return value


def _key_field(value: str) -> str:
    api, _, path = value.partition("=")
    if api not in _APIS[:-1] or not path:
        raise ValueError(f"{quoted(value)} is not API=FIELD, such as openai-chat=prompt_cache_key")
    return value


def _harness(value: str) -> str:
    begin, _, end = value.partition("=>")
    if value != CODING_AGENTS and not (begin and len(begin) <= 60 and len(end) <= 60):
        raise ValueError(
            f"{quoted(value)} is not {CODING_AGENTS}, the name of an element, or BEGIN=>END, each "
            "of at most 60 characters"
        )
    return value


HeaderName = Annotated[str, AfterValidator(_header)]
HeaderNames = Annotated[tuple[HeaderName, ...], BeforeValidator(listed)]
Pairs = Annotated[tuple[Annotated[str, AfterValidator(_pair)], ...], BeforeValidator(listed)]
Aliases = Annotated[tuple[Annotated[str, AfterValidator(_alias)], ...], BeforeValidator(listed)]
LlmPaths = Annotated[tuple[Annotated[str, AfterValidator(_llm_path)], ...], BeforeValidator(listed)]
KeyFields = Annotated[
    tuple[Annotated[str, AfterValidator(_key_field)], ...], BeforeValidator(listed)
]
Harness = Annotated[tuple[Annotated[str, AfterValidator(_harness)], ...], BeforeValidator(listed)]
Owned = Literal[
    "route", "model", "cluster", "fallbacks", "decision-id", "source", "reason", "confidence"
]


class ExtProcSettings(Section):
    """Envoy's external processing filter asks how to route what clients send to Envoy."""

    enabled: bool = setting(True, "Offer `envoy.service.ext_proc.v3.ExternalProcessor`.")
    uds_path: OptionalPath = setting(
        None,
        "Unix domain socket for Envoy alone, besides the addresses of the gRPC API, which serve it "
        "too. It takes a fraction of their processor time for a request.",
    )
    policy_header: HeaderName = setting(
        "x-llm-policy",
        "Header by which a client asks to be routed by a policy; also the key of the "
        "`grpc_initial_metadata` by which Envoy's route says so, which goes before. Empty: none.",
    )
    conversation_header: HeaderNames = setting(
        ("x-llm-conversation",),
        "Header with the client's own id of the conversation, for pins; of several the first that "
        "a request has. Empty: none.",
    )
    caller_header: HeaderName = setting(
        "",
        "Header that says who the client is, set by Envoy and not by clients: equal ids of "
        "conversations are then told apart by it. Empty: none.",
    )
    conversation_fields: KeyFields = setting(
        ("anthropic-messages=metadata.user_id", "openai-responses=conversation"),
        "API=FIELD: field of the body, dotted, with the client's own id of the conversation, where "
        "no header has it; of several of an API the first that is there. Of `metadata.user_id` "
        "only a session in it counts. `prompt_cache_key` is left out by default, since many "
        "applications send the same for all conversations.",
    )
    llm_paths: LlmPaths = setting(
        (
            "*/v1/chat/completions=openai-chat",
            "*/v1/responses=openai-responses",
            "*/v1/responses/compact=openai-responses",
            "*/v1/responses/input_tokens=openai-responses",
            "*/v1/completions=openai-completions",
            "*/v1/messages=anthropic-messages",
            "*/v1/messages/count_tokens=anthropic-messages",
        ),
        "PATTERN=API: which paths are requests to an LLM, and in which API; `*` stands for any "
        f"characters, and `{BY_BODY}` for whichever API the body looks like. Others go on "
        "unrouted, their bodies unread.",
    )
    harness: Harness = setting(
        (CODING_AGENTS,),
        "Text in the user's messages that a harness put there, and the routing model should not "
        "read: NAME for an element `<NAME>…</NAME>`, or BEGIN=>END. "
        f"`{CODING_AGENTS}` stands for those of known coding agents.",
    )
    bytes_per_token: int = setting(
        4,
        "To estimate how much context a request needs, so that models with a smaller window are "
        "passed over. 0: no estimate is made.",
        "bytes",
        ge=0,
        le=64,
    )
    aliases: Aliases = setting(
        ("auto",),
        "Names in place of a model that ask for routing: NAME for the default policy, NAME=POLICY "
        "for another; in the environment separated by commas.",
    )
    paths: Pairs = setting(
        (), "PREFIX=POLICY: requests whose path begins so are routed by that policy."
    )
    authorities: Pairs = setting(
        (), "AUTHORITY=POLICY: requests to that host, without port, are routed by that policy."
    )
    route_concrete_models: bool = setting(
        False,
        "Route also requests that name a concrete model and ask for nothing; by default they keep "
        "it, if the catalog has it.",
    )
    header_prefix: HeaderName = setting(
        "x-llm-", "Begins the names of the headers that only the sidecar sets.", min_length=1
    )
    headers: Annotated[tuple[Owned, ...], BeforeValidator(listed)] = setting(
        ("route", "model", "cluster", "fallbacks", "decision-id", "source", "reason", "confidence"),
        "Those that are set; all of them are removed from what clients send.",
    )
    rewrite_model: bool = setting(
        True, "Put the chosen model's upstream name into the body; nothing else of it is changed."
    )
    clear_route_cache: bool = setting(
        True, "Have Envoy choose its route anew, by the headers that were set."
    )
    dynamic_metadata: bool = setting(
        True, "Give the decision to Envoy as dynamic metadata `llm_router` too, for its access log."
    )
    stamp_response: bool = setting(
        False,
        "Set the headers on the response too. Needs `response_header_mode: SEND` in Envoy, and "
        "keeps a stream open until the response begins.",
    )
    measure_latency: bool = setting(
        False,
        "Time how long each model takes from the request to the headers of its response, for the "
        "preference `fastest`. Needs `response_header_mode: SEND` in Envoy, and keeps a stream "
        "open until the response begins.",
    )
    message_timeout_ms: int = setting(
        1200,
        "`message_timeout` of Envoy's filter. A decision ends `margin_ms` before it.",
        "ms",
        ge=2,
        le=600_000,
    )
    max_message_timeout_ms: int = setting(
        0,
        "`max_message_timeout` of Envoy's filter. Where it is longer, a decision that is not there "
        "in time asks Envoy to wait up to this once. 0: the filter has none.",
        "ms",
        ge=0,
        le=600_000,
    )
    margin_ms: int = setting(
        100, "Kept of Envoy's time for the way to it and back.", "ms", ge=1, le=60_000
    )
    body_timeout_ms: int = setting(
        60_000,
        "FULL_DUPLEX_STREAMED: after this long without the next part of a body, what has come goes "
        "on unrouted.",
        "ms",
        ge=1,
    )
    notice_ms: int = setting(
        3000,
        "On stop: how long Envoy's health check needs to see it. Until then requests are still "
        "taken. Part of `server.drain_seconds`; only waited for if there were any requests.",
        "ms",
        ge=0,
        le=3_600_000,
    )
    max_body_bytes: int = setting(
        12 * 1024 * 1024,
        "Larger request bodies are refused with 413. Kept below `server.max_message_bytes`, and "
        "below the buffer limit of Envoy's listener, which refuses larger ones itself.",
        "bytes",
        ge=1024,
    )
    max_decoded_bytes: int = setting(
        32 * 1024 * 1024,
        "Larger bodies, after decompression, go on unrouted.",
        "bytes",
        ge=1024,
    )
    bufferable_bytes: int = setting(
        32 * 1024,
        "Where Envoy's filter is set up to send no body, or a streamed or partial one, it is told "
        "to buffer bodies up to this length; others go on unrouted. At most "
        "`per_connection_buffer_limit_bytes` of Envoy's listener: told to buffer more than that, "
        "Envoy hangs. 0: the filter does not have `allow_mode_override`.",
        "bytes",
        ge=0,
    )

    @model_validator(mode="after")
    def _margin_fits(self) -> ExtProcSettings:
        if self.margin_ms >= self.message_timeout_ms:
            raise ValueError(
                f"margin_ms ({self.margin_ms}) leaves nothing of message_timeout_ms "
                f"({self.message_timeout_ms}); make it smaller"
            )
        return self
