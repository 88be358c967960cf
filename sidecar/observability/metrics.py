"""Prometheus metrics, in a registry of their own.

Labels take values from bounded sets alone: enums, gRPC methods, and models of the catalog and
the names of policies in force and of their routes, as many as `labels` lets in. What callers choose
freely (inline policies and their routes, request ids) is never a label, since each new value would
stay in memory.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sidecar import __version__
from sidecar.core.decision import Decision, RoutingRequest
from sidecar.core.policy import Policy
from sidecar.observability.labels import MAX_POLICY_LABELS, ModelLabels, PolicyLabels

DECISION_BUCKETS = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5,
)  # fmt: skip
"""Seconds: an override takes a quarter of a millisecond, a decision of a loaded CPU a second."""

INLINE = "inline"


Instrument = TypeVar("Instrument", Counter, Gauge, Histogram)


class _Children(dict[tuple[str, ...], Instrument]):
    """What an instrument counts, by the values of its labels. Its own `labels` checks and copies
    them under a lock each time, which takes longer than counting."""

    def __init__(self, instrument: Instrument) -> None:
        super().__init__()
        self._instrument: Instrument = instrument

    def __missing__(self, values: tuple[str, ...]) -> Instrument:
        child: Instrument = self._instrument.labels(*values)
        self[values] = child
        return child

    def drop(self, unwanted: Callable[[tuple[str, ...]], bool]) -> None:
        for values in [each for each in self if unwanted(each)]:
            self._instrument.remove(*values)
            del self[values]


class Metrics:
    """All instruments. Takes decisions as a `DecisionSink` and calls as a `CallObserver`.

    Args:
        max_policy_labels: pairs of a policy and a route that are told apart.
    """

    def __init__(self, max_policy_labels: int = MAX_POLICY_LABELS) -> None:
        self._max_policy_labels = max_policy_labels
        self._labels = PolicyLabels(max_policy_labels)
        self._models = ModelLabels()
        self.registry = CollectorRegistry()
        _describe_process(self.registry)
        self._decisions = _Children(
            Counter(
                "llmrouter_decisions",
                "Decisions by the step that made them and why.",
                ("source", "reason", "policy", "route"),
                registry=self.registry,
            )
        )
        self._chosen_models = _Children(
            Counter(
                "llmrouter_chosen_models",
                "Decisions by the model they chose and the step that made them.",
                ("model", "source"),
                registry=self.registry,
            )
        )
        self._decision_seconds = _Children(
            Histogram(
                "llmrouter_decision_duration_seconds",
                "Time of a whole decision.",
                ("source",),
                buckets=DECISION_BUCKETS,
                registry=self.registry,
            )
        )
        self._step_seconds = _Children(
            Histogram(
                "llmrouter_decision_step_duration_seconds",
                "Time of a step of a decision.",
                ("step",),
                buckets=DECISION_BUCKETS,
                registry=self.registry,
            )
        )
        self._passed_on = _Children(
            Counter(
                "llmrouter_envoy_passed_on",
                "HTTP requests from Envoy that nothing was decided for, and why.",
                ("reason",),
                registry=self.registry,
            )
        )
        self._spans = _Children(
            Counter(
                "llmrouter_spans",
                "Spans that were exported, and those that were dropped.",
                ("outcome",),
                registry=self.registry,
            )
        )
        self._calls = _Children(
            Counter(
                "llmrouter_grpc_requests",
                "gRPC calls that have ended, by method and how they ended.",
                ("method", "code"),
                registry=self.registry,
            )
        )
        self._call_seconds = _Children(
            Histogram(
                "llmrouter_grpc_request_duration_seconds",
                "Time of a gRPC call; for streams from opening to end.",
                ("method",),
                buckets=DECISION_BUCKETS,
                registry=self.registry,
            )
        )
        self._in_flight = _Children(
            Gauge(
                "llmrouter_grpc_requests_in_flight",
                "gRPC calls being served.",
                ("method",),
                registry=self.registry,
            )
        )

    def record(self, request: RoutingRequest, decision: Decision) -> None:
        inline = isinstance(request.policy, Policy)
        policy = INLINE if inline else decision.policy.name
        route = "" if inline else decision.route
        counter = self._decisions.get((decision.source, decision.reason, policy, route))
        if counter is None:
            labels = (INLINE, "") if inline else self._labels.of(policy, route)
            counter = self._decisions[decision.source, decision.reason, *labels]
        counter.inc()
        chosen = self._chosen_models.get((decision.model.id, decision.source))
        if chosen is None:
            model = self._models.of(decision.model.id)
            chosen = self._chosen_models[model, decision.source]
        chosen.inc()
        self._decision_seconds[decision.source,].observe(decision.total_ms / 1000)
        for each in decision.steps:
            if each.step != "total":
                self._step_seconds[each.step,].observe(each.ms / 1000)

    def passed_on(self, reason: str) -> None:
        """An HTTP request from Envoy goes on without a decision."""
        self._passed_on[reason,].inc()

    def spans(self, outcome: str, count: int) -> None:
        """`outcome`: `exported` or `dropped`."""
        self._spans[outcome,].inc(count)

    def call_started(self, method: str) -> None:
        self._in_flight[method,].inc()

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        self._in_flight[method,].dec()
        self._calls[method, code].inc()
        self._call_seconds[method,].observe(seconds)

    def watch(self, state: Callable[[], SidecarState]) -> None:
        """Adds gauges of `state`, which is asked at every scrape."""
        self.registry.register(
            _StateCollector(state, self._max_policy_labels, self.forget_policies)
        )

    def forget_policies(self, kept: Container[str]) -> None:
        """What is counted of policies that are not among the names `kept`, which makes room for
        others."""
        if gone := self._labels.forget(kept):
            self._decisions.drop(lambda values: values[2] in gone)


def _describe_process(registry: CollectorRegistry) -> None:
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    Info("llmrouter_build", "What is running.", registry=registry).info(
        {
            "version": __version__,
            "python": platform.python_version(),
            "grpc": grpc.__version__,
        }
    )


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy in force."""

    name: str
    revision: int
    digest: str
    routes: int


@dataclass(frozen=True, slots=True)
class TargetState:
    """A model server: `degraded` is why it is not being asked, empty if it is; `in_flight` the
    calls it works on; `encoder_lost` why its sentence encoder is not waited for, empty if it is,
    None where it has none of its own; `other_engine` the engine that it serves where that is not
    the one that the sidecar has read, empty where it is, None where it does not say."""

    address: str
    degraded: str
    in_flight: int
    encoder_lost: str | None = None
    other_engine: str | None = None


@dataclass(frozen=True, slots=True)
class MeasuredLatency:
    """Mean time until a model of the catalog begins to answer; `whole`: answers that are no
    streams."""

    model: str
    whole: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class RefusedPolicy:
    """A revision that is not in force, and why. `in_force`: the one that is; 0: none."""

    name: str
    revision: int
    in_force: int
    why: str


@dataclass(frozen=True, slots=True)
class PolicyStoreState:
    """`problem`: why what is in force may not be what the store holds; empty if it is. `change`:
    number of the last change that was read."""

    problem: str = ""
    change: int = 0
    refused: tuple[RefusedPolicy, ...] = ()


@dataclass(frozen=True, slots=True)
class SidecarState:
    """What the sidecar is doing now.

    Args:
        degraded: why the routing model is not answering; empty if it is.
        ready: False until the gRPC server serves, and again when it is about to stop.
        waiting: decisions that wait for the routing model.
        cached: decisions kept, of `cached_bytes` by estimate.
        pinned: routes kept by tasks and conversations.
        compiled: named policies kept compiled, of `compiled_bytes` by estimate.
        latencies: as far as they are measured.
        models: of the catalog; `models_unpriced` of them have no price.
        prices_stale, prices_undated: models whose prices are too old, or of unknown age.
        prices_oldest: day of the oldest price, such as `2026-08-21`; empty if none is dated.
    """

    ready: bool
    degraded: str
    routing_model: str
    prompt_format: str
    policies: tuple[LoadedPolicy, ...] = ()
    waiting: int = 0
    targets: tuple[TargetState, ...] = ()
    policy_store: PolicyStoreState = PolicyStoreState()
    cached: int = 0
    cached_bytes: int = 0
    pinned: int = 0
    compiled: int = 0
    compiled_bytes: int = 0
    latencies: tuple[MeasuredLatency, ...] = ()
    models: int = 0
    models_unpriced: int = 0
    prices_stale: int = 0
    prices_undated: int = 0
    prices_oldest: str = ""


class _StateCollector(Collector):
    """Gauges of the state.

    Args:
        most: policies that are told apart.
        seen: gets the names of the policies in force, at every scrape. What is counted of others
            has been collected before: registries ask their collectors in order.
    """

    def __init__(
        self,
        state: Callable[[], SidecarState],
        most: int,
        seen: Callable[[Container[str]], None],
    ) -> None:
        self._state = state
        self._most = most
        self._seen = seen

    def describe(self) -> Iterable[Metric]:
        # Without it, registering would ask for the state, before there is one.
        return []

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        yield GaugeMetricFamily(
            "llmrouter_ready", "1 while requests are taken.", value=float(state.ready)
        )
        yield GaugeMetricFamily(
            "llmrouter_routing_model_up",
            "1 while the routing model answers; 0: decisions are fallbacks.",
            value=float(not state.degraded),
        )
        yield GaugeMetricFamily(
            "llmrouter_decisions_waiting",
            "Decisions that wait for the routing model.",
            value=float(state.waiting),
        )
        yield GaugeMetricFamily(
            "llmrouter_cached_decisions", "Decisions kept in memory.", value=float(state.cached)
        )
        yield GaugeMetricFamily(
            "llmrouter_cached_decisions_bytes",
            "Memory of the decisions kept, by estimate.",
            value=float(state.cached_bytes),
        )
        yield GaugeMetricFamily(
            "llmrouter_compiled_policies",
            "Policies kept compiled in memory.",
            value=float(state.compiled),
        )
        yield GaugeMetricFamily(
            "llmrouter_compiled_policies_bytes",
            "Memory of the compiled policies, by estimate.",
            value=float(state.compiled_bytes),
        )
        yield GaugeMetricFamily(
            "llmrouter_pins",
            "Routes kept in memory by tasks and conversations.",
            value=float(state.pinned),
        )
        yield from _of_targets(state.targets)
        yield _of_latencies(state.latencies)
        yield from _of_catalog(state)
        yield from _of_policy_store(state.policy_store)
        yield GaugeMetricFamily(
            "llmrouter_policies", "Policies in force.", value=float(len(state.policies))
        )
        policies = GaugeMetricFamily(
            "llmrouter_policy_info",
            "1 for each policy in force, up to metrics.max_policy_labels.",
            labels=("policy", "revision", "digest"),
        )
        for policy in state.policies[: self._most]:
            policies.add_metric((policy.name, str(policy.revision), policy.digest), 1)
        yield policies
        self._seen({policy.name for policy in state.policies})


def _of_catalog(state: SidecarState) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "llmrouter_models", "Models of the catalog in force.", value=float(state.models)
    )
    yield GaugeMetricFamily(
        "llmrouter_models_unpriced",
        "Those of them without a price: `cheapest` puts them last.",
        value=float(state.models_unpriced),
    )
    yield GaugeMetricFamily(
        "llmrouter_models_price_stale",
        "Those of them whose price was looked up longer ago than policies.price_max_age_days.",
        value=float(state.prices_stale),
    )
    yield GaugeMetricFamily(
        "llmrouter_models_price_undated",
        "Those of them whose price does not say as of which day.",
        value=float(state.prices_undated),
    )
    if state.prices_oldest:
        day = datetime.fromisoformat(state.prices_oldest).replace(tzinfo=UTC)
        yield GaugeMetricFamily(
            "llmrouter_oldest_price_timestamp_seconds",
            "The day as of which the oldest of the catalog's prices is.",
            value=day.timestamp(),
        )


def _of_latencies(latencies: Iterable[MeasuredLatency]) -> Metric:
    # Ids come from the catalog: a closed set.
    seconds = GaugeMetricFamily(
        "llmrouter_model_latency_seconds",
        "Measured time until a model begins to answer, which the preference `fastest` orders by.",
        labels=("model", "answer"),
    )
    for each in latencies:
        seconds.add_metric((each.model, "whole" if each.whole else "streamed"), each.seconds)
    return seconds


def _of_policy_store(store: PolicyStoreState) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "llmrouter_policy_store_up",
        "1 while what is in force is what the policy store holds.",
        value=float(not store.problem),
    )
    yield GaugeMetricFamily(
        "llmrouter_policy_change",
        "Number of the last change of the policy store that was read.",
        value=float(store.change),
    )
    yield GaugeMetricFamily(
        "llmrouter_policies_refused",
        "Policies whose latest revision is not in force.",
        value=float(len(store.refused)),
    )


def _of_targets(targets: Iterable[TargetState]) -> Iterator[Metric]:
    # Addresses come from the settings: a closed set.
    up = GaugeMetricFamily(
        "llmrouter_target_up", "1 while the model server is asked.", labels=("target",)
    )
    in_flight = GaugeMetricFamily(
        "llmrouter_target_in_flight",
        "Calls that the model server is working on.",
        labels=("target",),
    )
    encoder = GaugeMetricFamily(
        "llmrouter_target_encoder_up",
        "1 while the sentence encoder beside an engine for GPUs is waited for, 0 while decisions "
        "are made without it.",
        labels=("target",),
    )
    same = GaugeMetricFamily(
        "llmrouter_target_same_engine",
        "1 while the model server serves the engine that the sidecar has read, 0 while it serves "
        "another.",
        labels=("target",),
    )
    for target in targets:
        up.add_metric((target.address,), float(not target.degraded))
        in_flight.add_metric((target.address,), float(target.in_flight))
        if target.encoder_lost is not None:
            encoder.add_metric((target.address,), float(not target.encoder_lost))
        if target.other_engine is not None:
            same.add_metric((target.address,), float(not target.other_engine))
    yield up
    yield in_flight
    yield encoder
    yield same
