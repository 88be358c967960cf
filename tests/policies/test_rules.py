"""Policies that do not come from YAML meet the same rules, with the same texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.core.policy import Model, ModelList, Policy, Preference, Route, WeightedModel
from sidecar.policies import check_catalog, check_policy, load_policies
from sidecar.policies.rules import (
    MAX_EXAMPLES,
    MAX_ROUTES,
    MAX_TEXT,
    _is_simple,
    _route_errors,
    _route_name_errors,
    _text_errors,
)
from sidecar.policies.yaml_source import MAX_BYTES, MAX_ITEMS, MAX_VALUES

FIXTURES = Path(__file__).parent / "fixtures"
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "policies.md"
ROUTES_34 = Path(__file__).parents[3] / "shared" / "reference" / "policy_34_routes.json"
CATALOG = load_policies([FIXTURES / "catalog.yaml"]).catalog

BOTH = ModelList((WeightedModel("openai/small"), WeightedModel("anthropic/medium")))
BILLING = Route("billing", "Questions about invoices.", BOTH)
POLICY = Policy("example", (BILLING,), BOTH)

Change = Callable[[Policy], Policy]


def one(**changes: object) -> Change:
    """A change of the first route."""
    return lambda policy: replace(policy, routes=(replace(BILLING, **changes),))  # type: ignore[arg-type]


def models(*entries: WeightedModel, preference: Preference = Preference.DECLARED) -> Change:
    return one(models=ModelList(entries, preference))


@pytest.mark.parametrize(
    ("change", "fixture"),
    [
        (one(description=""), "policy_empty_description"),
        (one(description=" \u200b\ufeff"), "policy_empty_description"),
        (one(models=ModelList(())), "policy_empty_models"),
        (one(min_confidence=1.5), "policy_min_confidence"),
        (one(name="other"), "policy_reserved_name"),
        (one(name="bill\ting"), "policy_header_values"),
        (one(domain="billing"), "policy_own_domain"),
        (one(examples=("", "Where is my bill?")), "policy_empty_examples"),
        (one(description="b" * 2001), "policy_long_texts"),
        (one(examples=("Where is my bill?", "c" * 2001)), "policy_long_texts"),
        (lambda policy: replace(policy, description="a" * 2001), "policy_long_texts"),
        (one(examples=("?",) * 101), "policy_many_examples"),
        (models(WeightedModel("openai/small", 0.0)), "policy_weights"),
        (lambda policy: replace(policy, name="My Policy"), "policy_ids"),
        (lambda policy: replace(policy, switch_confidence=1.5), "policy_pin"),
        (one(min_confidence=0.99), "warning_rarely_taken"),
        (lambda policy: replace(policy, routes=()), "warning_no_routes"),
        (
            models(WeightedModel("openai/small", 3.0), WeightedModel("anthropic/medium")),
            "warning_weights_unused",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_core_policy_gets_the_text_that_its_yaml_twin_gets(change: Change, fixture: str) -> None:
    findings = check_policy(change(POLICY), CATALOG)
    assert len(findings) == 1
    (finding,) = findings
    expected = (FIXTURES / f"{fixture}.txt").read_text().splitlines()
    texts = [line.split(": ", 1)[1] for line in expected]
    assert f"{finding.severity}: {finding.path}: {finding.message}" in texts


texts = st.one_of(st.text(max_size=3), st.sampled_from(["other ", "Other", "a\u2028b", "a" * 2001]))
entries = st.builds(
    WeightedModel,
    st.sampled_from([*CATALOG, "unknown"]),
    st.one_of(st.just(1.0), st.floats()),
)


@given(
    st.builds(
        Route,
        name=texts,
        description=texts,
        models=st.builds(ModelList, st.lists(entries, max_size=3).map(tuple)),
        min_confidence=st.one_of(st.just(0.0), st.floats()),
        examples=st.lists(texts, max_size=2).map(tuple),
    )
)
@example(replace(BILLING, name="a" * 65))
@example(replace(BILLING, examples=("?",) * (MAX_EXAMPLES + 1)))
def test_route_that_is_not_looked_at_closely_has_no_errors(route: Route) -> None:
    if _is_simple(route, CATALOG):
        errors = [
            *_route_name_errors("routes[0]", route.name, None),
            *_route_errors("routes[0]", route, CATALOG),
        ]
        assert errors == []


def test_usual_route_is_not_looked_at_closely() -> None:
    assert _is_simple(replace(BILLING, examples=("Where is my bill?",)), CATALOG)


def test_valid_policy_has_no_findings() -> None:
    assert check_policy(POLICY, CATALOG) == ()


def test_warnings_wait_until_there_are_no_errors() -> None:
    doubtful = replace(BILLING, min_confidence=1.0)
    wrong = replace(BILLING, name="refunds", description="")
    findings = check_policy(replace(POLICY, routes=(doubtful, wrong)), CATALOG)
    assert [finding.path for finding in findings] == ["routes[1].description"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.001, 1.001])
def test_min_confidence_must_be_a_probability(value: float) -> None:
    (finding,) = check_policy(one(min_confidence=value)(POLICY), CATALOG)
    assert finding.path == "routes[0].min_confidence"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_weight_must_be_a_share(value: float) -> None:
    (finding,) = check_policy(models(WeightedModel("openai/small", value))(POLICY), CATALOG)
    assert finding.path == "routes[0].models[0].weight"


@pytest.mark.parametrize("control", ["\0", "\x1b", "\x7f", "\x85"])
def test_control_characters_are_refused_in_plain_language(control: str) -> None:
    policy = replace(one(description=f"a{control}b", examples=(control,))(POLICY))
    paths = {finding.path for finding in check_policy(policy, CATALOG)}
    assert paths == {"routes[0].description", "routes[0].examples[0]"}


def test_plain_language_may_be_any_script_and_have_lines() -> None:
    text = "Rechnungen und Mahnungen,\n\tauch 請求書 und فواتير 🧾"
    assert check_policy(one(description=text, examples=(text,))(POLICY), CATALOG) == ()


def test_domain_may_stand_after_its_actions() -> None:
    action = replace(BILLING, name="refunds", description="Money back.", domain="billing")
    assert check_policy(replace(POLICY, routes=(action, BILLING)), CATALOG) == ()


def test_too_many_routes_are_one_error() -> None:
    routes = tuple(replace(BILLING, name=f"r{n}", description="") for n in range(MAX_ROUTES + 1))
    (finding,) = check_policy(replace(POLICY, routes=routes), CATALOG)
    assert finding.message.startswith(
        f"has {MAX_ROUTES + 1} routes, at most {MAX_ROUTES} are allowed"
    )


@pytest.mark.parametrize(
    "said",
    [
        f"At most {MAX_ROUTES};",
        f"At most {MAX_EXAMPLES}, each at most {MAX_TEXT:,} characters",
        f"{MAX_BYTES // 1024} KiB",
        f"more than {MAX_ITEMS:,} entries",
        f"more than {MAX_VALUES:,} values",
    ],
)
def test_documented_limits_are_those_of_the_code(said: str) -> None:
    assert said in DOCUMENTATION.read_text()


def test_dialect_that_no_catalog_model_speaks_is_not_missed() -> None:
    openai_only = {id: model for id, model in CATALOG.items() if id.startswith("openai/")}
    small = ModelList((WeightedModel("openai/small"),))
    policy = Policy("example", (replace(BILLING, models=small),), small)
    assert check_policy(policy, openai_only) == ()


@pytest.mark.parametrize(
    "host", ["api.example.com", "api.example.com:8443", "10.0.0.1", "[::1]:80"]
)
def test_host_may_be_any_authority(host: str) -> None:
    assert check_catalog([Model("a", "a", host=host)]) == ()


@pytest.mark.parametrize("host", ["https://a.com", "a.com/v1", "a b", "a.com:http", "ä.com", "a\n"])
def test_host_must_be_an_authority(host: str) -> None:
    (finding,) = check_catalog([Model("a", "a", host=host)])
    assert finding.path == "models[0].host"


@pytest.mark.skipif(
    not ROUTES_34.exists(), reason="needs ../shared/reference/policy_34_routes.json"
)
def test_34_routes_of_a_large_deployment_are_valid() -> None:
    declared = json.loads(ROUTES_34.read_text())["routes"]
    ids = {route["primary_model"] for route in declared}
    ids |= {model for route in declared for model in route["fallback_models"]}
    routes = tuple(
        Route(
            route["name"],
            route["description"],
            ModelList(
                tuple(
                    WeightedModel(id)
                    for id in dict.fromkeys([route["primary_model"], *route["fallback_models"]])
                )
            ),
        )
        for route in declared
    )
    catalog = {id: Model(id, id) for id in ids}
    policy = Policy("chat", routes, routes[0].models)
    assert check_policy(policy, catalog) == ()


def test_one_text_in_two_encodings_of_an_accent_is_one_description() -> None:
    texts = ("Opening hours of the caf\u00e9.", "Opening hours of the cafe\u0301.")
    routes = tuple(Route(f"r{n}", text, BOTH) for n, text in enumerate(texts))

    messages = [each.message for each in check_policy(replace(POLICY, routes=routes), CATALOG)]

    assert any(each.startswith("is that of routes[0] too") for each in messages)


@pytest.mark.parametrize("text", ["\U00018cd6", "\ue000", "\u3042"], ids=ascii)
def test_character_that_python_does_not_know_is_text(text: str) -> None:
    """Python counts those of its own version of Unicode alone as printable."""
    assert not list(_text_errors("routes[0].description", text, ""))
