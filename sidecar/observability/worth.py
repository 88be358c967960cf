"""What decisions cost beside always taking one model.

A router does not know how many tokens an answer has, nor how many a request counts for its
provider. So prices of tokens are compared, each decision as much as any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sidecar.core.policy import Catalog, Policy

_MILLION = 1_000_000
_REQUESTS = 1000


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of a request, as is assumed."""

    input: int
    output: int


@dataclass(frozen=True, slots=True)
class Prices:
    """What is compared with what.

    Args:
        models: the catalog.
        policies: by resource name, as far as they are known.
        baseline: id of the model that would always be taken, which has a price; empty: the most
            expensive of each policy.
        tokens: None: no dollars are computed.
    """

    models: Catalog
    policies: Mapping[str, Policy] = field(default_factory=dict)
    baseline: str = ""
    tokens: Tokens | None = None

    def of(self, model: str) -> tuple[float, float] | None:
        """Dollars per million input and output tokens; None if one of them is unknown."""
        known = self.models.get(model)
        if known is None or known.input_price is None or known.output_price is None:
            return None
        return known.input_price, known.output_price


@dataclass(frozen=True, slots=True)
class Worth:
    """Sums over decisions of models with a price: of the dollars per million input and output
    tokens of the model that each was routed to, and of those of the baseline.

    Args:
        baseline: id of a model; empty if there is none, or it is not one alone.
        why: it is the baseline.
        unpriced: decisions by models whose price is unknown, which are in no sum; 0 for one that
            the policy names and that could be more expensive than the baseline.
    """

    decisions: int
    baseline: str
    why: str
    routed: tuple[float, float] = (0.0, 0.0)
    always: tuple[float, float] = (0.0, 0.0)
    unpriced: Mapping[str, int] = field(default_factory=dict)

    def document(self, tokens: Tokens | None) -> dict[str, Any]:
        """For JSON."""
        if not self.decisions:
            return {"decisions": 0}
        routed, always = self._mean(self.routed), self._mean(self.always)
        document: dict[str, Any] = {
            "decisions": self.decisions,
            "baseline": self.baseline or None,
            "baseline_is": self.why,
            "per_million_tokens": {
                "routed": {"input": _rounded(routed[0]), "output": _rounded(routed[1])},
                "baseline": {"input": _rounded(always[0]), "output": _rounded(always[1])},
                "ratio": {
                    "input": _ratio(routed[0], always[0]),
                    "output": _ratio(routed[1], always[1]),
                },
            },
        }
        if tokens is not None:
            costs = [
                (each[0] * tokens.input + each[1] * tokens.output) * _REQUESTS / _MILLION
                for each in (routed, always)
            ]
            document["per_1000_requests"] = {
                "assumed_tokens": {"input": tokens.input, "output": tokens.output},
                "routed": _rounded(costs[0]),
                "baseline": _rounded(costs[1]),
                "ratio": _ratio(*costs),
            }
        return document

    def _mean(self, sums: tuple[float, float]) -> tuple[float, float]:
        return sums[0] / self.decisions, sums[1] / self.decisions


def worth(policy: str, routed: Mapping[str, int], prices: Prices) -> Worth:
    """What a policy's decisions cost.

    Args:
        policy: its resource name.
        routed: decisions by model.
    """
    known = prices.policies.get(policy)
    named = set(routed) | (_models_of(known) if known is not None else set())
    priced = {model: price for model in sorted(named) if (price := prices.of(model)) is not None}
    unpriced = {model: routed.get(model, 0) for model in sorted(named - priced.keys())}
    taken = [(price, routed[model]) for model, price in priced.items() if model in routed]
    decisions = sum(count for _, count in taken)
    baseline = prices.baseline or max(priced, key=lambda model: sum(priced[model]), default="")
    price = prices.of(baseline) or (0.0, 0.0)
    return Worth(
        decisions,
        baseline,
        _why(prices, known),
        _summed(taken),
        _summed([(price, decisions)]),
        unpriced,
    )


def total(found: Iterable[Worth]) -> Worth:
    """What the decisions of several policies cost, each beside its own baseline."""
    compared = [each for each in found if each.decisions]
    baselines = {each.baseline for each in compared}
    reasons = {each.why for each in compared}
    return Worth(
        sum(each.decisions for each in compared),
        baselines.pop() if len(baselines) == 1 else "",
        reasons.pop() if len(reasons) == 1 else "that of each policy",
        _summed([(each.routed, 1) for each in compared]),
        _summed([(each.always, 1) for each in compared]),
    )


def _why(prices: Prices, known: Policy | None) -> str:
    if prices.baseline:
        return "as given"
    if known is not None:
        return "the most expensive model that the policy names or that was chosen"
    return "the most expensive model that was chosen; the catalog's files lack the policy"


def _models_of(policy: Policy) -> set[str]:
    lists = [policy.default, *(route.models for route in policy.routes)]
    return {choice.id for choices in lists for choice in choices.models}


def _summed(counted: Sequence[tuple[tuple[float, float], int]]) -> tuple[float, float]:
    return (
        sum(price[0] * count for price, count in counted),
        sum(price[1] * count for price, count in counted),
    )


def _ratio(routed: float, always: float) -> float | None:
    """None where the baseline costs nothing."""
    return _rounded(routed / always) if always else None


def _rounded(value: float) -> float:
    return round(value, 6)
