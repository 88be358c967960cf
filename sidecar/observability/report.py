"""What a log of decisions says, counted by policy.

The log may be of any size: what is kept grows with the names of policies, routes and models, and
of these only as many are told apart as metrics do.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sidecar.core.decision import ENCODER_STEP, Reason, Source
from sidecar.observability.labels import MAX_POLICY_LABELS, OTHER, ModelLabels, PolicyLabels
from sidecar.observability.logged import LoggedDecision
from sidecar.observability.worth import Prices, Worth, total, worth

Document = dict[str, Any]
"""Plain values, for JSON."""

INLINE = "inline"
"""What the log calls all policies that came with their requests."""

MAX_CELLS = 20_000
"""Models of all pairs of a policy and a route together."""

_SOURCES: frozenset[str] = frozenset(Source)
_REASONS: frozenset[str] = frozenset(Reason)
_NOT_ROUTED: dict[str, str] = {Source.OVERRIDE: "override", Reason.CANCELLED: "cancelled"}
"""Decisions that say nothing of what routing costs: the caller named the model, or went away."""


class Times:
    """Milliseconds, of which percentiles are known within 1 %, by counts of buckets that are each 2
    % wider than the one before."""

    _LEAST, _MOST, _STEP = 0.01, 3_600_000.0, math.log(1.02)

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._least = math.inf
        self._most = 0.0

    def add(self, ms: float) -> None:
        self._least, self._most = min(self._least, ms), max(self._most, ms)
        within = min(max(ms, self._LEAST), self._MOST)
        self._buckets[round(math.log(within / self._LEAST) / self._STEP)] += 1

    def percentile(self, percent: float) -> float:
        """The least time that so many percent do not exceed."""
        rank = math.ceil(self._buckets.total() * percent / 100)
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                middle = self._LEAST * math.exp(bucket * self._STEP)
                return min(max(middle, self._least), self._most)
        raise ValueError("no times were added")


@dataclass(slots=True)
class _Route:
    """Decisions that took one route.

    Args:
        confidence: the sum of those of `sure` decisions that have one.
        unsure: decisions that went to the default since this route, the most probable one, was
            below its minimum.
        routed: decisions by model without those in `_NOT_ROUTED`.
    """

    decisions: int = 0
    confidence: float = 0.0
    sure: int = 0
    unsure: int = 0
    models: Counter[str] = field(default_factory=Counter)
    routed: Counter[str] = field(default_factory=Counter)

    def document(self) -> Document:
        return {
            "decisions": self.decisions,
            "confidence": round(self.confidence / self.sure, 4) if self.sure else None,
            "below_minimum": self.unsure,
            "models": _ordered(self.models),
        }


@dataclass(slots=True)
class _Policy:
    first: datetime
    last: datetime
    decisions: int = 0
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    asked: int = 0
    encoder: int = 0
    times: Times = field(default_factory=Times)
    routes: dict[str, _Route] = field(default_factory=dict)
    overridden: _Route = field(default_factory=_Route)
    not_routed: Counter[str] = field(default_factory=Counter)

    def document(self) -> Document:
        sources: Counter[str] = Counter()
        for (source, _), count in self.reasons.items():
            sources[source] += count
        taken = [route for name, route in self.routes.items() if name]
        sure = sum(route.sure for route in taken)
        return {
            "decisions": self.decisions,
            "first": self.first.isoformat(),
            "last": self.last.isoformat(),
            "sources": _ordered(sources),
            "reasons": {
                source: _ordered({r: n for (s, r), n in self.reasons.items() if s == source})
                for source in _ordered(sources)
            },
            "confidence": {
                "decisions": sure,
                "mean": round(sum(r.confidence for r in taken) / sure, 4) if sure else None,
            },
            "by_routing_model": {"decisions": self.asked, "encoder_alone": self.encoder}
            if self.asked
            else None,
            "ms": {f"p{p}": _three_digits(self.times.percentile(p)) for p in (50, 95, 99)},
            "routes": {
                name: route.document()
                for name, route in sorted(self.routes.items(), key=lambda item: -item[1].decisions)
            },
            "overridden": _ordered(self.overridden.models),
        }


class DecisionReport:
    """Counts decisions.

    Args:
        max_pairs: of a policy and a route; the first to come are told apart, of inline policies as
            many again.
        max_cells: of such a pair and a model.
    """

    def __init__(self, max_pairs: int = MAX_POLICY_LABELS, max_cells: int = MAX_CELLS) -> None:
        self._named = PolicyLabels(max_pairs)
        self._inline = PolicyLabels(max_pairs)
        self._models = ModelLabels()
        self._cells = max_cells
        self._policies: dict[str, _Policy] = {}

    def add(self, entry: LoggedDecision) -> None:
        labels = self._inline if entry.policy == INLINE else self._named
        name, route_name = labels.of(entry.policy, entry.route)
        policy = self._policies.get(name)
        if policy is None:
            policy = self._policies[name] = _Policy(entry.timestamp, entry.timestamp)
        source = entry.source if entry.source in _SOURCES else OTHER
        reason = entry.reason if entry.reason in _REASONS else OTHER

        policy.decisions += 1
        policy.first = min(policy.first, entry.timestamp)
        policy.last = max(policy.last, entry.timestamp)
        policy.reasons[source, reason] += 1
        policy.times.add(entry.ms)
        if source == Source.MODEL and entry.asked:
            policy.asked += 1
            policy.encoder += entry.asked == ENCODER_STEP
        route = policy.overridden if source == Source.OVERRIDE else _route(policy, route_name)
        self._take(route, policy, entry, source, reason)
        if reason == Reason.LOW_CONFIDENCE and entry.candidates:
            unsure = labels.of(entry.policy, entry.candidates[0].route)[1]
            _route(policy, unsure).unsure += 1

    def _take(
        self, route: _Route, policy: _Policy, entry: LoggedDecision, source: str, reason: str
    ) -> None:
        model = self._model(route, entry.model)
        route.decisions += 1
        route.models[model] += 1
        why_not = _NOT_ROUTED.get(source) or _NOT_ROUTED.get(reason)
        if why_not is None:
            route.routed[model] += 1
        else:
            policy.not_routed[why_not] += 1
        # Without a route it is that of `other`, or of a route that was not taken.
        if entry.confidence is not None and entry.route:
            route.sure += 1
            route.confidence += entry.confidence

    def _model(self, route: _Route, model: str) -> str:
        label = self._models.of(model)
        if label not in route.models:
            if self._cells <= 0:
                return OTHER
            self._cells -= 1
        return label

    def document(self, prices: Prices | None = None) -> Document:
        """What was counted; the policy with the most decisions first.

        Args:
            prices: None: nothing is said of what the decisions cost.
        """
        policies = sorted(self._policies.items(), key=lambda item: -item[1].decisions)
        documents = {name: policy.document() for name, policy in policies}
        if prices is None:
            return {"policies": documents}
        found: list[Worth] = []
        for name, policy in policies:
            routed = sum((route.routed for route in policy.routes.values()), Counter[str]())
            found.append(worth(name, routed, prices))
            left_out = dict(policy.not_routed) | {"unpriced": found[-1].unpriced}
            documents[name]["price"] = found[-1].document(prices.tokens) | {"left_out": left_out}
        return {"policies": documents, "price": total(found).document(prices.tokens)}


def _route(policy: _Policy, name: str) -> _Route:
    route = policy.routes.get(name)
    if route is None:
        route = policy.routes[name] = _Route()
    return route


def _ordered(counts: Counter[str] | dict[str, int]) -> dict[str, int]:
    """The most first."""
    return dict(Counter(counts).most_common())


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")
