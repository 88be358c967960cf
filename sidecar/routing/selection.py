"""From a list of models to the ones that can take a request, in order of preference."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.core.decision import Excluded, Needs
from sidecar.core.policy import ApiDialect, Catalog, Model, ModelList, Preference, WeightedModel

LatencyMs = Callable[[Model], float | None]
"""Milliseconds until a model answers; None if that is not known."""


def configured_latency(model: Model) -> float | None:
    """What the catalog says."""
    return model.latency_ms


@dataclass(frozen=True, slots=True)
class Selection:
    """`models`: best first, empty if none is capable; `excluded`: the others, and why."""

    models: tuple[Model, ...]
    excluded: tuple[Excluded, ...] = ()


def select(
    choices: ModelList,
    catalog: Catalog,
    needs: Needs,
    dialect: ApiDialect | None,
    stable_key: str,
    latency_ms: LatencyMs = configured_latency,
) -> Selection:
    """Filter by what the request needs, then order by the list's preference.

    Args:
        stable_key: for `WEIGHTED`: equal keys get equal orders, so that a conversation stays with
            its model.
        latency_ms: what `FASTEST` orders by.
    """
    capable: list[WeightedModel] = []
    excluded: list[Excluded] = []
    for choice in choices.models:
        why = _lacks(catalog[choice.id], needs, dialect)
        if why:
            excluded.append(Excluded(choice.id, why))
        else:
            capable.append(choice)
    ordered = _ordered(capable, choices.preference, catalog, stable_key, latency_ms)
    return Selection(tuple(ordered), tuple(excluded))


def _lacks(model: Model, needs: Needs, dialect: ApiDialect | None) -> str:
    """Why `model` cannot take the request; empty if it can. Unknown facts never exclude."""
    if dialect is not None and dialect not in model.dialects:
        return f"does not speak {dialect.value}"
    if not needs.capabilities <= model.capabilities:
        missing = sorted(each.value for each in needs.capabilities - model.capabilities)
        return f"lacks {', '.join(missing)}"
    if model.context_window is not None and needs.context_tokens > model.context_window:
        return (
            f"context window of {model.context_window} tokens is below the "
            f"{needs.context_tokens} needed"
        )
    return ""


def _ordered(
    choices: list[WeightedModel],
    preference: Preference,
    catalog: Catalog,
    stable_key: str,
    latency_ms: LatencyMs,
) -> list[Model]:
    models = [catalog[choice.id] for choice in choices]
    if preference is Preference.CHEAPEST:
        return sorted(models, key=lambda model: _unknown_last(model.price))
    if preference is Preference.FASTEST:
        return sorted(models, key=lambda model: _unknown_last(latency_ms(model)))
    if preference is Preference.WEIGHTED:
        by_rank = sorted(choices, key=lambda choice: _weighted_rank(choice, stable_key))
        return [catalog[choice.id] for choice in by_rank]
    return models


def _unknown_last(value: float | None) -> float:
    return math.inf if value is None else value


def _weighted_rank(choice: WeightedModel, stable_key: str) -> float:
    """Weighted rendezvous hashing (Schindelhauer and Schomaker, 2005): each model is first for a
    share of the keys equal to its share of the weight, and a changed weight moves only the keys
    it must."""
    digest = hashlib.sha256(f"{stable_key}\0{choice.id}".encode()).digest()
    uniform = (int.from_bytes(digest[:8], "big") + 0.5) / 2**64
    return -math.log(uniform) / choice.weight
