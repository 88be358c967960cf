"""A catalog that policies would be wrong with, where there are very many of them."""

from __future__ import annotations

import difflib
from typing import Any

import pytest

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import Model, ModelList, Policy, PolicyRecord, Route, WeightedModel
from sidecar.policies.editing import check_users
from sidecar.policies.rules import MAX_FINDINGS, check_policy

LEFT = ModelList((WeightedModel("acme/gone"), WeightedModel("acme/there")))
CATALOG = {"acme/there": Model("acme/there", "t")}


def policies(count: int, routes: int) -> dict[str, PolicyRecord]:
    made = (
        Policy(f"p{n}", tuple(Route(f"r{m}", "About it.", LEFT) for m in range(routes)), LEFT)
        for n in range(count)
    )
    return {each.resource_name: PolicyRecord(each, 1, "1-x") for each in made}


def test_of_many_policies_that_a_catalog_would_break_the_first_are_named() -> None:
    """With all of them, a catalog was refused after minutes instead of at once."""
    with pytest.raises(SidecarError) as caught:
        check_users(policies(200, 34), CATALOG)

    assert caught.value.code is ErrorCode.POLICY_IN_USE
    named = [each.field for each in caught.value.violations]
    assert len(named) == MAX_FINDINGS + 1
    # Several, though each has more that is wrong.
    assert len(set(named[:-1])) == 10
    assert caught.value.violations[-1].description.startswith("more than 50 findings")


def test_what_a_missing_model_may_have_meant_is_looked_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find, asked = difflib.get_close_matches, []

    def counted(*given: Any, **named: Any) -> list[str]:
        asked.append(given[0])
        return find(*given, **named)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    catalog = {**CATALOG, "acme/once": Model("acme/once", "o")}

    for record in policies(20, 20).values():
        assert 'did you mean "acme/once"?' in str(check_policy(record.policy, catalog)[0])

    assert asked == ["acme/gone"]
