"""What is doubtful about a policy as a whole; that of single facts is tested with these."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.core.policy import Model, ModelList, Policy, Preference, Route, WeightedModel
from sidecar.policies.lint import lint
from sidecar.policies.rules import MAX_FINDINGS

CATALOG = {"m": Model("m", "m-1")}
MODELS = ModelList((WeightedModel("m"),))


def like_each_other(count: int) -> Policy:
    described = "Invoices, charges, payments and refunds, about order number"
    routes = tuple(Route(f"r{n}", f"{described} {n}.", MODELS) for n in range(count))
    return Policy("p", routes, MODELS)


def test_routes_that_are_like_each_other_are_named() -> None:
    alike = [each.path for each in lint(like_each_other(3), CATALOG) if "in common" in each.message]

    assert alike == [f"routes[{n}].description" for n in (1, 2, 2)]


def test_of_hundreds_of_routes_like_each_other_the_first_are_named() -> None:
    """In the API they are an answer, which must not become too large."""
    findings = lint(like_each_other(500), CATALOG)

    assert len(findings) == MAX_FINDINGS + 1
    assert findings[-1].message.startswith("more than 50 findings")
    # What is said once of the whole policy is not lost among them.
    assert any("no examples" in each.message for each in findings)


@pytest.mark.parametrize("preference", Preference)
def test_price_that_nothing_asks_for_is_not_missed(preference: Preference) -> None:
    """Where `cheapest` asks for it, the rules warn (`rules.py`), with the path of that list."""
    policy = Policy("p", (), replace(MODELS, preference=preference))

    assert [each.message for each in lint(policy, CATALOG) if "price" in each.message] == []
