"""What can be set about the Envoy edge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from sidecar.core.naming import PolicySelection


class OwnedHeader(StrEnum):
    """Headers that only the sidecar sets; the value is the name behind the prefix."""

    ROUTE = "route"
    """Name of the route; removed where the policy's default was taken."""
    MODEL = "model"
    """Id of the model in the catalog."""
    CLUSTER = "cluster"
    """Envoy's cluster for the model; removed where the catalog names none."""
    FALLBACKS = "fallbacks"
    """Ids of the models to try next, separated by commas; removed if there are none."""
    DECISION_ID = "decision-id"
    SOURCE = "source"
    """Which step decided (`model`, `cache`, `pin`, `override`, `fallback`), or `none`."""
    REASON = "reason"
    """Why it decided so, or why nothing was decided."""
    CONFIDENCE = "confidence"
    """Calibrated probability of the routing model's answer; removed where there is none."""


NO_DECISION = "none"
"""Value of the source for requests that were passed on."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How a request says that it wants to be routed, and by which policy.

    The first of these that a request has names the policy: what Envoy's route says, the headers,
    the path, the authority, an alias in place of a model. All but the alias route whatever model
    the body names.

    Args:
        selection: by headers. Its header is also the key by which Envoy's route says so.
        key_headers: of clients, with their id of the conversation; the first that a request has.
        caller_header: a header that says who the client is, for Envoy to set; empty for none.
        paths: prefix of the path -> policy; the longest that fits counts.
        authorities: authority without port, lower-case -> policy.
        aliases: name in place of a model -> policy; the empty policy is the default one.
        route_concrete: route also what names a concrete model and nothing else; otherwise that
            model is kept.
    """

    selection: PolicySelection = field(default_factory=PolicySelection)
    key_headers: tuple[str, ...] = ("x-llm-conversation",)
    caller_header: str = ""
    paths: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    authorities: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"auto": ""}))
    route_concrete: bool = False


@dataclass(frozen=True, slots=True)
class Writing:
    """What is done to a request.

    Args:
        prefix: of the names of the headers that only the sidecar sets.
        headers: those that are set; all are removed from what clients send.
        rewrite_model: put the model's upstream name into the body.
        reroute: have Envoy choose the route anew, by the headers.
        metadata: give the decision to Envoy's other filters and logs too.
    """

    prefix: str = "x-llm-"
    headers: frozenset[OwnedHeader] = frozenset(OwnedHeader)
    rewrite_model: bool = True
    reroute: bool = True
    metadata: bool = True

    names: Mapping[OwnedHeader, str] = field(init=False)
    """Whole names of all of them."""

    def __post_init__(self) -> None:
        names = {header: self.prefix + header.value for header in OwnedHeader}
        object.__setattr__(self, "names", MappingProxyType(names))

    @property
    def owned(self) -> tuple[str, ...]:
        return tuple(self.names.values())


@dataclass(frozen=True, slots=True)
class Waiting:
    """How long things may take, in seconds.

    Args:
        message_timeout_s: `message_timeout` of Envoy's filter.
        max_message_timeout_s: its `max_message_timeout`; 0 if it has none.
        margin_s: kept for the way from and to Envoy.
        body_s: for the next part of a body that is held back here while it comes
            (FULL_DUPLEX_STREAMED).
        notice_s: for Envoy's health check to see that the sidecar drains.
    """

    message_timeout_s: float = 1.2
    max_message_timeout_s: float = 0.0
    margin_s: float = 0.1
    body_s: float = 60.0
    notice_s: float = 3.0

    @property
    def budget_s(self) -> float:
        """Longest that a decision may take without Envoy giving up on it."""
        return max(self.message_timeout_s, self.max_message_timeout_s) - self.margin_s

    @property
    def ask_for_more_after_s(self) -> float | None:
        """When to ask Envoy to wait longer; None where it does not."""
        if self.max_message_timeout_s <= self.message_timeout_s:
            return None
        return self.message_timeout_s - self.margin_s


@dataclass(frozen=True, slots=True)
class ExtProcOptions:
    """All of them.

    Args:
        max_body_bytes: larger bodies are refused with 413.
        stamp_response: set the decision's headers on the response too, where Envoy shows it.
        bufferable_bytes: longest body that Envoy is told to buffer where it is set up otherwise;
            at most the listener's `per_connection_buffer_limit_bytes`.
        measure_latency: time how long models take to begin their answers, where Envoy shows them.
        max_watched: responses that are watched at once for what their provider keeps.
    """

    asking: Asking = field(default_factory=Asking)
    writing: Writing = field(default_factory=Writing)
    waiting: Waiting = field(default_factory=Waiting)
    max_body_bytes: int = 12 * 1024 * 1024
    stamp_response: bool = False
    bufferable_bytes: int = 32 * 1024
    measure_latency: bool = False
    max_watched: int = 500
