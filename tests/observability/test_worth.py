"""What decisions cost beside always taking one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sidecar.core.policy import Model, ModelList, Policy, Route, WeightedModel
from sidecar.observability.worth import Prices, Tokens, Worth, total, worth
from tests.observability.log_lines import SUPPORT

MODELS = {
    model.id: model
    for model in (
        Model("acme/small", "small", input_price=1.0, output_price=2.0),
        Model("acme/large", "large", input_price=10.0, output_price=40.0),
        Model("acme/huge", "huge", input_price=20.0, output_price=80.0),
        Model("acme/free", "free", input_price=0.0, output_price=0.0),
        Model("acme/half", "half", input_price=1.0),
    )
}


def models(*ids: str) -> ModelList:
    return ModelList(tuple(map(WeightedModel, ids)))


POLICY = Policy(
    "support",
    (Route("billing", "invoices", models("acme/small", "acme/huge", "acme/half")),),
    models("acme/small"),
)
KNOWN = {SUPPORT: POLICY}


@pytest.mark.parametrize(
    ("routed", "prices", "baseline", "ratios", "unpriced"),
    [
        ({"acme/small": 1}, Prices(MODELS), "acme/small", (1, 1), {}),
        ({"acme/small": 3, "acme/large": 1}, Prices(MODELS), "acme/large", (0.325, 0.2875), {}),
        (
            {"acme/small": 1},
            Prices(MODELS, KNOWN),
            "acme/huge",
            (0.05, 0.025),
            {"acme/half": 0},
        ),
        (
            {"acme/large": 1},
            Prices(MODELS, KNOWN, baseline="acme/small"),
            "acme/small",
            (10, 20),
            {"acme/half": 0},
        ),
        (
            {"acme/small": 1, "acme/half": 2, "gone": 3},
            Prices(MODELS, baseline="acme/large"),
            "acme/large",
            (0.1, 0.05),
            {"acme/half": 2, "gone": 3},
        ),
        ({"acme/free": 1}, Prices(MODELS), "acme/free", (None, None), {}),
        ({"gone": 3}, Prices(MODELS), "", None, {"gone": 3}),
        ({}, Prices(MODELS), "", None, {}),
    ],
    ids=[
        "one model",
        "two models",
        "the policy names a dearer one",
        "a cheaper baseline is wanted",
        "models without a price",
        "free",
        "no price at all",
        "nothing routed",
    ],
)
def test_decisions_are_compared_with_one_model(
    routed: Mapping[str, int],
    prices: Prices,
    baseline: str,
    ratios: tuple[float | None, float | None] | None,
    unpriced: Mapping[str, int],
) -> None:
    found = worth(SUPPORT, routed, prices)
    assert found.baseline == baseline
    assert found.unpriced == unpriced
    assert found.decisions == sum(
        count for model, count in routed.items() if prices.of(model) is not None
    )
    document = found.document(None)
    if ratios is None:
        assert document == {"decisions": 0}
    else:
        assert document["per_million_tokens"]["ratio"] == dict(
            zip(("input", "output"), ratios, strict=True)
        )


@pytest.mark.parametrize(
    ("prices", "why"),
    [
        (Prices(MODELS, KNOWN, baseline="acme/small"), "as given"),
        (Prices(MODELS, KNOWN), "that the policy names or that was chosen"),
        (Prices(MODELS), "that was chosen; the catalog's files lack the policy"),
    ],
)
def test_it_is_said_why_a_model_is_the_baseline(prices: Prices, why: str) -> None:
    document = worth(SUPPORT, {"acme/small": 1}, prices).document(None)
    assert document["baseline_is"].endswith(why)


@pytest.mark.parametrize(
    ("tokens", "cost"),
    [
        (Tokens(1000, 300), {"routed": 1.6, "baseline": 22.0, "ratio": 0.072727}),
        (Tokens(0, 0), {"routed": 0.0, "baseline": 0.0, "ratio": None}),
    ],
)
def test_assumed_tokens_make_dollars(tokens: Tokens, cost: Mapping[str, Any]) -> None:
    prices = Prices(MODELS, baseline="acme/large", tokens=tokens)
    found = worth(SUPPORT, {"acme/small": 7}, prices).document(tokens)["per_1000_requests"]
    assert found == {
        "assumed_tokens": {"input": tokens.input, "output": tokens.output},
        **cost,
    }


@pytest.mark.parametrize(
    ("found", "baseline"),
    [
        ([], None),
        ([Worth(1, "a", "as given", (1, 1), (2, 2)), Worth(0, "b", "as given")], "a"),
        ([Worth(1, "a", "", (1, 1), (2, 2)), Worth(1, "b", "", (1, 1), (2, 2))], None),
    ],
)
def test_a_total_has_a_baseline_where_all_have_the_same(
    found: list[Worth], baseline: str | None
) -> None:
    assert total(found).document(None).get("baseline") == baseline
