"""The sections of the settings that are every sidecar's: what can be set."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, model_validator

from sidecar.config_fields import OptionalPath, Section, listed, policy_name, setting
from sidecar.policies.findings import quoted
from sidecar.policies.prices import MAX_AGE_DAYS

_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")
_COLLECTOR = re.compile(rf"https?://{_ADDRESS.pattern}/?")
_RULE = re.compile(r"[a-z0-9!#$&'*+.^_`|~-]+=(?:(?!=>)[ -~])+=>(.+)")
_METADATA_KEY = re.compile(r"(?!grpc-)[a-z0-9._-]+(?<!-bin)")


def _address(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if match is None or int(match[1]) > 65535:
        raise ValueError(f"{quoted(value)} is not host:port; write it like 127.0.0.1:50051")
    return value


def _address_or_empty(value: str) -> str:
    return _address(value) if value else value


def _rule(value: str) -> str:
    match = _RULE.fullmatch(value)
    if match is None:
        raise ValueError(
            f"{quoted(value)} is not HEADER=VALUE=>POLICY, with the header in lower case, such as "
            "x-team=search=>search-team"
        )
    policy_name(match[1])
    return value


def _metadata_key(value: str) -> str:
    if value and not _METADATA_KEY.fullmatch(value):
        raise ValueError(
            f"{quoted(value)} is not a key of gRPC metadata: lower-case letters, digits and -_., "
            "not beginning with grpc- and not ending in -bin"
        )
    return value


def _collector(value: str) -> str:
    match = _COLLECTOR.fullmatch(value)
    if value and (match is None or int(match[1]) > 65535):
        raise ValueError(
            f"{quoted(value)} is not the address of an OTLP receiver over gRPC; write it like "
            "http://127.0.0.1:4317, or https://collector.internal:4317 for TLS"
        )
    return value


def _paths(value: object) -> object:
    """Environment variables and flags give one string."""
    if isinstance(value, str):
        value = value.split(os.pathsep)
    return [part for part in value if part != ""] if isinstance(value, list) else value


Address = Annotated[str, AfterValidator(_address)]
Addresses = Annotated[tuple[Address, ...], BeforeValidator(listed)]
Collector = Annotated[str, AfterValidator(_collector)]
OptionalAddress = Annotated[str, AfterValidator(_address_or_empty)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_paths)]
PolicyId = Annotated[str, AfterValidator(policy_name)]
Rules = Annotated[tuple[Annotated[str, AfterValidator(_rule)], ...], BeforeValidator(listed)]
MetadataKey = Annotated[str, AfterValidator(_metadata_key)]


class ServerSettings(Section):
    """Where the sidecar listens and how much it takes at once."""

    grpc_address: OptionalAddress = setting(
        "127.0.0.1:50051",
        "Address of the gRPC API. Port 0 takes a free one; empty listens on no TCP port.",
    )
    uds_path: OptionalPath = setting(
        None, "Unix domain socket of the gRPC API, besides the address. Made when serving starts."
    )
    tls_certificate: OptionalPath = setting(
        None,
        "Certificate for TLS on `grpc_address`, followed by those that signed it, as PEM. Needs "
        "`tls_key`. New files are used for new connections, without a restart. Sockets stay "
        "plaintext.",
    )
    tls_key: OptionalPath = setting(
        None, "Private key of `tls_certificate`, as PEM without a passphrase."
    )
    tls_client_ca: OptionalPath = setting(
        None,
        "Certificates of authorities, as PEM: clients must present a certificate that one of them "
        "signed (mutual TLS). None: any client is served.",
    )
    http_address: OptionalAddress = setting(
        "127.0.0.1:9091", "Address of health and metrics over HTTP. Empty switches them off."
    )
    max_message_bytes: int = setting(
        16 * 1024 * 1024,
        "Largest gRPC message taken or sent. A larger one is RESOURCE_EXHAUSTED.",
        "bytes",
        ge=64 * 1024,
        le=2**31 - 1,
    )
    max_concurrent_calls: int = setting(
        1000,
        "gRPC calls served at once, streams included and health not. More are RESOURCE_EXHAUSTED.",
        "calls",
        ge=1,
        le=2**30,
    )
    policy_metadata: MetadataKey = setting(
        "x-llm-policy",
        "Key of a gRPC call's metadata that names the policy of requests that name none. Empty: "
        "none.",
    )
    drain_seconds: float = setting(
        10.0,
        "On stop, health flips first; calls in flight then have this long to end.",
        "s",
        ge=0,
        le=3600,
    )
    reflection: bool = setting(True, "Offer gRPC server reflection.")
    channelz: bool = setting(True, "Offer the channelz service.")

    @model_validator(mode="after")
    def _listens(self) -> ServerSettings:
        if not self.grpc_address and self.uds_path is None:
            raise ValueError("nothing to listen on; give grpc_address or uds_path")
        address = self.http_address
        if address and self.grpc_address == address and not address.endswith(":0"):
            raise ValueError(
                f"grpc_address and http_address are both {quoted(self.grpc_address)}; give one of "
                "them another port"
            )
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> ServerSettings:
        parts = {"tls_certificate": self.tls_certificate, "tls_key": self.tls_key}
        missing = [name for name, path in parts.items() if path is None]
        given = [name for name, path in parts.items() if path is not None]
        if given and missing:
            raise ValueError(f"{given[0]} needs {missing[0]}; give both, or neither for plaintext")
        if self.tls_client_ca is not None and missing:
            raise ValueError(
                "tls_client_ca needs TLS; give tls_certificate and tls_key too, or leave it out"
            )
        if given and not self.grpc_address:
            raise ValueError(
                "tls_certificate is for grpc_address, which is empty, and sockets have no TLS; "
                "give an address, or leave the settings tls_… out"
            )
        return self


class PolicySettings(Section):
    """Where policies and the model catalog come from."""

    paths: Paths = setting(
        (),
        "Files and folders of *.yaml and *.yml with policies and the model catalog. In the "
        f"environment separated by `{os.pathsep}`.",
    )
    default_policy: PolicyId = setting(
        "default", "The policy of requests that name none: an id, or a resource name."
    )
    rules: Rules = setting(
        (),
        "HEADER=VALUE=>POLICY: requests with that value of the header are decided by that policy, "
        "if they name none; the first that fits counts. HTTP headers of what comes through Envoy, "
        "metadata of gRPC calls; in the environment separated by commas.",
    )
    price_max_age_days: int = setting(
        MAX_AGE_DAYS,
        "Prices of the catalog that were looked up longer ago (`prices.as_of`) are called stale in "
        "metrics and log. They still count.",
        "days",
        ge=1,
    )
    compiled_max_bytes: int = setting(
        128 * 1024 * 1024,
        "Memory for compiled policies, by estimate; one of 34 routes takes some 80 kB. Those used "
        "least recently go first and are compiled again when they are needed, in milliseconds. "
        "Inline policies have a small memory of their own.",
        "bytes",
        ge=0,
    )


class RoutingSettings(Section):
    """How long a decision may take."""

    decision_budget_ms: int = setting(
        # On two CPU cores a warm decision takes 50 to 150 ms, one that has to read a long
        # conversation several hundred; the chosen LLM then takes longer than a second. A budget
        # much below a second would turn the slow ones into fallbacks, one much above would be felt
        # whenever the model server hangs.
        1000,
        "Longest a decision may take; the caller's own deadline shortens it. After it the answer "
        "is a fallback with reason `deadline_exceeded`.",
        "ms",
        ge=1,
        le=60_000,
    )
    reserve_ms: int = setting(
        20,
        "Part of the budget, or of the caller's deadline, kept for sending the answer.",
        "ms",
        ge=0,
        le=10_000,
    )
    max_waiting: int = setting(
        64,
        "Decisions that may wait for the routing model at once. More are fallbacks with reason "
        "`overloaded`, and so is what the language model could not decide within the budget, by "
        "the time that decisions took lately, unless the encoder alone decides it.",
        "decisions",
        ge=1,
    )

    @model_validator(mode="after")
    def _reserve_fits(self) -> RoutingSettings:
        if self.reserve_ms >= self.decision_budget_ms:
            raise ValueError(
                f"reserve_ms ({self.reserve_ms}) leaves nothing of decision_budget_ms "
                f"({self.decision_budget_ms}); make it smaller"
            )
        return self


class CacheSettings(Section):
    """Decisions of the routing model that are kept. Fallbacks never are."""

    max_bytes: int = setting(
        32 * 1024 * 1024,
        "Memory for decisions, by estimate; the least recently used go first. 0: none are kept.",
        "bytes",
        ge=0,
    )
    ttl_seconds: float = setting(
        600.0,
        "How long one is kept. The same conversation under the same policy gets the same decision "
        "from the routing model, so this bounds how long a rare misreading lasts, not how stale a "
        "decision is.",
        "s",
        gt=0,
    )


class PinSettings(Section):
    """Routes that conversations and tasks keep, as their policies say."""

    max_entries: int = setting(
        50_000,
        "Most that are remembered, of about 400 bytes each; the least recently used go first. 0: "
        "none are, and each request is decided by itself.",
        "pins",
        ge=0,
    )
    ttl_seconds: float = setting(
        # Providers keep their prompt caches for five minutes to an hour after the last use; then
        # there is little left that a switch could cost.
        3600.0,
        "How long one is kept after its last use.",
        "s",
        gt=0,
    )


class TritonSettings(Section):
    """The model server."""

    address: Address = setting("127.0.0.1:8001", "gRPC address of Triton.")
    addresses: Addresses = setting(
        (),
        "gRPC addresses of several Tritons that serve the same model, instead of `address`; in the "
        "environment separated by commas. Each decision goes where it is answered soonest; one "
        "that fails is asked again when it is back and holds the policies in use.",
    )
    affinity: bool = setting(
        False,
        "With several addresses: keep each policy at one of them while that can answer in time, so "
        "that many policies share the memory that Tritons have for prefixes.",
    )
    model: str = setting("tensorrt_llm", "Name of the model in Triton's repository.", min_length=1)
    interface: Literal["tensorrt_llm", "llmapi", "vllm"] = setting(
        "tensorrt_llm",
        "What the model takes. `tensorrt_llm`: token ids, as TensorRT-LLM's engines and the CPU "
        "model do. `llmapi` and `vllm`: text, as TensorRT-LLM's `llmapi` model and Triton's vLLM "
        "models do, for Arch-Router's formats alone; what is lost is in docs/gpu.md.",
    )
    second_opinion: str = setting(
        "second_opinion",
        "Name of the model with the sentence encoder, where Triton serves it beside an engine for "
        "GPUs (docs/gpu.md). Decisions wait for it as long as half of the budget, and are made "
        "without it where it is away. Empty: it is not asked.",
    )
    warm_timeout_ms: int = setting(
        30_000, "Longest the first pass over a policy's routes may take.", "ms", ge=1
    )
    keepalive_ms: int = setting(
        10_000, "Time between HTTP/2 pings on an idle connection.", "ms", ge=1000
    )
    keepalive_timeout_ms: int = setting(
        5_000, "A ping unanswered for this long closes the connection.", "ms", ge=100
    )
    breaker_failures: int = setting(
        3,
        "Calls that fail in a row before the breaker opens: decisions are then fallbacks with "
        "reason `breaker_open`, without waiting.",
        "calls",
        ge=1,
    )
    breaker_probe_interval_ms: int = setting(
        100, "Time between probes while the breaker is open.", "ms", ge=10
    )


class RoutingModelSettings(Section):
    """The model that decides."""

    directory: OptionalPath = setting(
        None,
        "Folder of the engine. manifest.json, router.json and the tokenizers (tokenizer.json, and "
        "second_opinion_tokenizer.json where it has a sentence encoder) are enough where the model "
        "server is elsewhere. Needed to serve.",
    )
    prompt_format: str | None = setting(
        None, "Prompt format instead of the one that router.json names, e.g. `compact-v1`."
    )
    max_prompt_tokens: int | None = setting(
        None, "Longest prompt, instead of the length that router.json gives.", "tokens", ge=64
    )
    max_conversation_tokens: int | None = setting(
        None,
        "Longest conversation shown to the routing model; older turns go first. By default, for an "
        "engine of a CPU, what it was measured to read there in half of the budget when it was "
        "built, from 64 to 256; else whatever the prompt has room for.",
        "tokens",
        ge=64,
    )
    encoder_alone_from: float = setting(
        0.8,
        "Probability from which on a routing model's sentence encoder decides by itself, which "
        "takes a CPU some milliseconds; the language model decides with it about the rest. 1: both "
        "always decide. Of use with the CPU engine of a model that has one, as ours. Where the "
        "encoder is a model of its own, both always decide, but where the language model cannot be "
        "asked in time.",
        "probability",
        ge=0.5,
        le=1.0,
    )
    encoder_in_place_from: float = setting(
        0.5,
        "Likewise, where the language model cannot be asked in time: it has not read the policy "
        "yet, or too much is before this decision. At most `encoder_alone_from`; where that is 1, "
        "the encoder never decides by itself.",
        "probability",
        ge=0.0,
        le=1.0,
    )


class MetricsSettings(Section):
    """What `/metrics` shows."""

    max_policy_labels: int = setting(
        # The routes of some fifty large policies, or two thousand small policies. Each is a few
        # series, for the sources and reasons of its decisions.
        2000,
        "Pairs of a policy and a route whose decisions are counted apart, the first to come until "
        "their policy is deleted; further routes count as route `_other`, further policies as "
        "policy `_other`. `llmrouter_policy_info` shows at most as many policies.",
        "pairs",
        ge=1,
    )


class TracingSettings(Section):
    """Spans of decisions, exported over OTLP; the standard variables `OTEL_…` say the rest."""

    endpoint: Collector = setting(
        "",
        "Where an OTLP receiver listens for gRPC: `http://host:port`, or `https://host:port` for "
        "TLS. Empty: there are no spans. Needs the extra `tracing`, which the images and `make "
        "setup` have.",
    )
    sample_ratio: float = setting(
        1.0,
        "Part of the decisions that get a span, among those whose caller sent no `traceparent`. "
        "The others do as the caller does: a span where it is sampled, else none.",
        ge=0.0,
        le=1.0,
    )


class AdminSettings(Section):
    """What `server.http_address` offers beside probes and metrics."""

    console: bool = setting(
        False,
        "Serve the console, a page at `/console` that shows policies and decisions and tries "
        "requests, to whoever reaches the address and without a certificate. `sidecar up` has it "
        "on a loopback address, unless this or `tls_client_ca` is set or `grpc_address` is empty.",
    )


class LoggingSettings(Section):
    """What is logged, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = setting("info", "Least grave entry.")
    format: Literal["auto", "json", "pretty"] = setting(
        "auto", "`auto`: pretty on a terminal, else JSON, one object a line."
    )
    log_message_text: bool = setting(
        False,
        "Log the user's newest message with each decision, up to 4,096 characters of it, and the "
        "text of unexpected exceptions. They may hold personal data.",
    )
