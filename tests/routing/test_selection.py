"""Filtering and ordering the models of a route."""

from __future__ import annotations

from collections import Counter

import pytest

from sidecar.core.decision import Excluded, Needs
from sidecar.core.policy import (
    ApiDialect,
    Capability,
    Model,
    ModelList,
    Preference,
    WeightedModel,
)
from sidecar.routing.selection import select

CATALOG = {
    "big": Model(
        "big",
        "big-1",
        input_price=3.0,
        output_price=15.0,
        latency_ms=900,
        context_window=200_000,
        capabilities=frozenset({Capability.IMAGES, Capability.TOOLS}),
    ),
    "small": Model(
        "small",
        "small-1",
        input_price=0.1,
        output_price=0.4,
        latency_ms=200,
        context_window=16_000,
        capabilities=frozenset({Capability.TOOLS}),
    ),
    "unpriced": Model("unpriced", "u-1", dialects=frozenset({ApiDialect.ANTHROPIC_MESSAGES})),
}
IMAGES = Needs(frozenset({Capability.IMAGES}))
IMAGES_AND_TOOLS = Needs(frozenset({Capability.IMAGES, Capability.TOOLS}))


def models(*ids: str, preference: Preference = Preference.DECLARED) -> ModelList:
    return ModelList(tuple(WeightedModel(i) for i in ids), preference)


ALL = ("big", "unpriced", "small")
CASES = {
    "declared order": (models(*ALL), Needs(), None, ["big", "unpriced", "small"]),
    "cheapest first, unknown price last": (
        models(*ALL, preference=Preference.CHEAPEST),
        Needs(),
        None,
        ["small", "big", "unpriced"],
    ),
    "fastest first, unknown latency last": (
        models(*ALL, preference=Preference.FASTEST),
        Needs(),
        None,
        ["small", "big", "unpriced"],
    ),
    "images": (models(*ALL), IMAGES, None, ["big"]),
    "images and tools, not one of them": (models(*ALL), IMAGES_AND_TOOLS, None, ["big"]),
    "dialect": (
        models(*ALL),
        Needs(),
        ApiDialect.OPENAI_CHAT,
        ["big", "unpriced", "small"],
    ),
    "context window that just suffices": (
        models(*ALL),
        Needs(context_tokens=16_000),
        None,
        ["big", "unpriced", "small"],
    ),
    "context window, unknown one stays": (
        models(*ALL),
        Needs(context_tokens=16_001),
        None,
        ["big", "unpriced"],
    ),
    "nothing left": (models("small"), IMAGES, None, []),
    "cheapest where no price is known": (
        models("unpriced", preference=Preference.CHEAPEST),
        Needs(),
        None,
        ["unpriced"],
    ),
}
CATALOG["openai-only"] = Model("openai-only", "o", dialects=frozenset({ApiDialect.OPENAI_CHAT}))
CASES["dialect"] = (
    models("unpriced", "openai-only", "small"),
    Needs(),
    ApiDialect.OPENAI_CHAT,
    ["openai-only", "small"],
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_selected_models(
    case: tuple[ModelList, Needs, ApiDialect | None, list[str]],
) -> None:
    choices, needs, dialect, expected = case

    selection = select(choices, CATALOG, needs, dialect, "key")

    assert [model.id for model in selection.models] == expected


def test_excluded_models_say_why() -> None:
    selection = select(models("small", "big"), CATALOG, IMAGES, None, "key")

    assert selection.excluded == (Excluded("small", "lacks images"),)


WEIGHTED = ModelList((WeightedModel("big", 1.0), WeightedModel("small", 3.0)), Preference.WEIGHTED)


def test_weighted_is_stable_for_a_conversation() -> None:
    firsts = {select(WEIGHTED, CATALOG, Needs(), None, "same").models[0].id for _ in range(20)}

    assert len(firsts) == 1


def test_weighted_is_the_same_in_every_process() -> None:
    """Several sidecars, and one that is started anew, keep a conversation with its model."""
    firsts = [
        select(WEIGHTED, CATALOG, Needs(), None, f"conversation {n}").models[0].id for n in range(8)
    ]

    assert firsts == ["small", "small", "small", "big", "small", "small", "small", "big"]


def test_weighted_gives_each_model_its_share() -> None:
    firsts = Counter(
        select(WEIGHTED, CATALOG, Needs(), None, f"conversation {n}").models[0].id
        for n in range(4000)
    )

    assert 0.72 < firsts["small"] / 4000 < 0.78
