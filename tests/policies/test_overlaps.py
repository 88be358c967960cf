"""From decisions about descriptions to findings; the routing model is not asked here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.bench.lint import SETS, verdict
from sidecar.core.decision import Candidate, Decision, PolicyRef, Reason, Source
from sidecar.core.policy import Model, ModelList, Policy, Route, WeightedModel
from sidecar.policies import load_policies
from sidecar.policies.findings import warning
from sidecar.policies.overlaps import (
    Alone,
    misread,
    overlaps,
    probes,
    requests_of,
    suspects,
    without,
)

FOLDER = Path(__file__).parent / "overlaps"
MODELS = ModelList((WeightedModel("m"),))


def route(name: str, domain: str = "") -> Route:
    return Route(name, f"what {name} is", MODELS, domain=domain)


POLICY = Policy("shop", (route("refunds"), route("returns"), route("status")), MODELS)


def decided(route: str, **probabilities: float) -> Decision:
    """`other` has what is left."""
    known = {**probabilities, "other": 1 - sum(probabilities.values())}
    candidates = tuple(Candidate(*each) for each in sorted(known.items(), key=lambda e: -e[1]))
    return Decision(
        id="d",
        route=route,
        model=Model("m", "m"),
        fallbacks=(),
        source=Source.MODEL,
        reason=Reason.MATCHED,
        detail="",
        policy=PolicyRef("", 0, ""),
        prompt_format="compact-v1",
        routing_model="stub",
        confidence=known.get(route),
        candidates=candidates,
    )


WHOLE = {
    0: decided("refunds", refunds=0.98, returns=0.019, status=0.0005),
    1: decided("returns", returns=0.97, refunds=0.02, status=0.001),
    2: decided("status", status=0.99, refunds=0.001, returns=0.001),
}


def test_description_is_asked_as_a_request_of_each_route() -> None:
    asked = [(each.index, each.conversation.messages[0].text) for each in probes(POLICY)]

    assert asked == [(0, "what refunds is"), (1, "what returns is"), (2, "what status is")]


def test_description_is_asked_with_and_without_the_name_where_its_route_is_left_out() -> None:
    examples = tuple(f"example {number}" for number in range(20))
    requests = requests_of(replace(route("order_status-2"), examples=examples))

    described, asked = (
        [each.messages[0].text for each in some] for some in (requests.described, requests.examples)
    )

    assert described == ["what order_status-2 is", "order status 2: what order_status-2 is"]
    assert asked == [f"example {number}" for number in range(8)]


def test_routes_that_come_second_for_each_other_are_suspected() -> None:
    assert suspects(POLICY, WHOLE) == ((0, 1),)


def test_route_that_comes_second_for_another_but_not_the_other_way_round_is_not() -> None:
    one_sided = {**WHOLE, 1: decided("returns", returns=0.97, refunds=0.002, status=0.02)}

    assert suspects(POLICY, one_sided) == ()


def test_routes_that_leave_nothing_to_share_are_suspected() -> None:
    """What is lost in rounding says nothing."""
    sure = {
        index: decided(name, **{name: 1.0, other: 0.0})
        for index, (name, other) in enumerate(
            [("refunds", "returns"), ("returns", "refunds"), ("status", "returns")]
        )
    }

    assert (0, 1) in suspects(POLICY, sure)


def test_domain_is_not_suspected_of_its_actions() -> None:
    policy = Policy(
        "shop", (route("refunds"), route("returns", "refunds"), route("status")), MODELS
    )

    assert suspects(policy, WHOLE) == ()


def test_routing_model_that_tells_its_choice_alone_leaves_all_suspected() -> None:
    alone = {index: decided(name) for index, name in enumerate(("refunds", "returns", "status"))}

    assert suspects(POLICY, alone) == ((0, 1), (0, 2), (1, 2))


def test_what_comes_second_beside_a_routes_own_domain_is_suspected() -> None:
    policy = Policy(
        "shop", (route("money"), route("refunds", "money"), route("returns", "money")), MODELS
    )
    whole = {
        0: decided("money", money=0.9, refunds=0.05, returns=0.04),
        1: decided("refunds", refunds=0.9, money=0.095, returns=0.005),
        2: decided("returns", returns=0.9, money=0.095, refunds=0.005),
    }

    assert suspects(policy, whole) == ((1, 2),)


@pytest.mark.parametrize(
    ("left_out", "rest"),
    [
        (0, [("status", "")]),
        (1, [("returns", ""), ("status", "")]),
        (3, [("money", ""), ("refunds", "money"), ("returns", "money")]),
    ],
    ids=["domain", "action", "neither"],
)
def test_route_is_left_out_with_what_is_there_for_the_same_requests(
    left_out: int, rest: list[tuple[str, str]]
) -> None:
    routes = (
        route("money"),
        route("refunds", "money"),
        route("returns", "money"),
        route("status"),
    )

    left = without(Policy("shop", routes, MODELS), left_out)

    assert [(each.name, each.domain) for each in left.routes] == rest


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        (decided("returns", returns=0.9), decided("refunds", refunds=0.8), True),
        (decided("returns", returns=0.9), decided("refunds", refunds=0.45), False),
        (decided("", returns=0.45), decided("refunds", refunds=0.9), False),
        (decided("status", status=0.9, returns=0.05), decided("refunds", refunds=0.9), False),
    ],
    ids=["each takes the other's", "one does not", "the other does not", "a third does"],
)
def test_routes_overlap_where_each_takes_the_others_description(
    first: Decision, second: Decision, found: bool
) -> None:
    findings = overlaps(POLICY, ((0, 1),), {0: Alone([first]), 1: Alone([second])})

    assert [each.path for each in findings] == (["routes[1].description"] if found else [])


def test_overlap_names_both_routes_and_how_sure_it_is() -> None:
    alone = {
        0: Alone([decided("returns", returns=0.9), decided("returns", returns=0.8)]),
        1: Alone([decided("refunds", refunds=0.9)]),
    }

    (finding,) = overlaps(POLICY, ((0, 1),), alone)

    assert '"refunds" (routes[0])' in finding.message
    assert "0.85 and 0.90" in finding.message


@pytest.mark.parametrize(("by_example", "found"), [(0.9, True), (0.1, False)])
def test_examples_count_as_much_as_descriptions(by_example: float, found: bool) -> None:
    described = [decided("returns", returns=0.9)]
    examples = [decided("returns", returns=by_example)] * 3
    alone = {
        0: Alone(described, examples),
        1: Alone([decided("refunds", refunds=0.9)]),
    }

    assert bool(overlaps(POLICY, ((0, 1),), alone)) is found


def test_description_that_another_route_takes_in_its_presence_is_named() -> None:
    wrong = {**WHOLE, 2: decided("refunds", refunds=0.7, status=0.3)}

    (finding,) = misread(POLICY, wrong)

    assert finding.path == "routes[2].description"
    assert '"refunds" with confidence 0.70' in finding.message


@pytest.mark.parametrize(
    ("domains", "named"),
    [
        ({}, True),
        ({"status": "returns", "refunds": "returns"}, True),
        ({"status": "refunds"}, False),
        ({"refunds": "status"}, False),
    ],
    ids=["apart", "actions of one domain", "the domain takes it", "an action takes it"],
)
def test_description_that_is_taken_within_its_domain_is_well_read(
    domains: dict[str, str], named: bool
) -> None:
    names = ("refunds", "returns", "status")
    policy = Policy("shop", tuple(route(name, domains.get(name, "")) for name in names), MODELS)
    taken = {2: decided("refunds", refunds=0.7, status=0.3)}

    assert bool(misread(policy, taken)) == named


@pytest.mark.parametrize("name", SETS)
def test_fixtures_are_valid_and_their_pairs_are_routes(name: str) -> None:
    found = load_policies([FOLDER / "catalog.yaml", FOLDER / name])
    pairs = json.loads((FOLDER / "pairs.json").read_text())

    assert [str(finding) for finding in found.findings] == []
    assert len(found.policies) == {"twenty.yaml": 20, "held_back.yaml": 10, "unseen.yaml": 10}[name]
    for policy in found.policies:
        assert set(pairs[policy.name]) <= {each.name for each in policy.routes}


def test_verdict_tells_what_was_seeded_from_what_was_not() -> None:
    findings = (
        warning("routes[1].description", 'overlaps that of "refunds" (routes[0])'),
        warning("routes[2].description", 'overlaps that of "refunds" (routes[0])'),
        warning("routes[0].examples[0]", 'went to "returns", not to "refunds"'),
        warning("routes[2].examples[0]", 'went to "returns", not to "status"'),
        warning("routes", '"refunds": no examples'),
        warning("", '"m": no price'),
    )

    said = verdict(POLICY, ("refunds", "returns"), findings)

    assert said.found == findings[0].message
    assert [alarm.partition(": ")[2][:11] for alarm in said.false_alarms] == ["routes[2].d"]
    assert [each.partition(": ")[2][:11] for each in said.astray] == ["routes[2].e"]


@pytest.mark.parametrize(("examples", "found"), [(True, True), (False, False)])
def test_less_is_enough_where_both_have_examples(examples: bool, found: bool) -> None:
    one, other = [decided("returns", returns=0.81)], [decided("refunds", refunds=0.81)]
    alone = {0: Alone(one, one), 1: Alone(other, other if examples else ())}

    assert bool(overlaps(POLICY, ((0, 1),), alone)) is found
