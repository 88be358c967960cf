"""Lists made of several policies, and policies whose routes say more than one thing."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from router_training.augment import Rates, roughened, with_conversation_moves
from router_training.cases import Draw, Request, RouteText, WrittenPolicy, WrittenRoute
from router_training.composed import ComposedSource
from router_training.rewritten import merged, with_exception, with_rest
from router_training.sources import Foreigners, Limits, WrittenSource

SHOP = WrittenPolicy(
    id="s1-001-shoe_shop",
    level="action",
    routes=(
        WrittenRoute("sizes", ("which size fits", "fit of a boot or sneaker")),
        WrittenRoute("returns", ("sending goods back",)),
        WrittenRoute("stores", ("opening hours of branches",)),
        WrittenRoute("repairs", ("soles and heels made new",)),
    ),
    singles=(
        ("sizes", "are these wide"),
        ("returns", "they pinch, take them"),
        ("stores", "open on sunday?"),
        ("repairs", "heel came off"),
        ("other", "lend me a tenner"),
    ),
    dialogues=((("user", "heel is gone", "repairs"), ("assistant", "Bring it.", "")),),
)
FARM = WrittenPolicy(
    id="v2-dairy_farm",
    level="domain",
    routes=(
        WrittenRoute("milking", ("robots, udders, hygiene",)),
        WrittenRoute("feed", ("silage and hay",)),
        WrittenRoute("calving", ("births of calves",)),
    ),
    singles=(("milking", "arm is stuck"), ("feed", "bale is mouldy"), ("calving", "legs first")),
    dialogues=(),
)
LABELS = {text: name for policy in (SHOP, FARM) for name, text in policy.singles}


def test_a_merged_route_takes_what_both_took() -> None:
    for seed in range(20):
        policy = merged(SHOP, Random(seed))
        (new,) = (route for route in policy.routes if route not in SHOP.routes)
        gone = {route.name for route in SHOP.routes if route not in policy.routes}
        assert len(gone) == 2
        for (before, text), (after, same) in zip(SHOP.singles, policy.singles, strict=True):
            assert text == same
            assert after == (new.name if before in gone else before)
        (((_, _, label), _),) = policy.dialogues
        assert label == (new.name if "repairs" in gone else "repairs")


@pytest.mark.parametrize(
    "policy",
    [replace(SHOP, level="domain_action"), FARM],
    ids=["with parents", "too few routes"],
)
def test_what_cannot_be_merged_stays(policy: WrittenPolicy) -> None:
    assert all(merged(policy, Random(seed)) is policy for seed in range(10))


def test_an_exception_names_the_route_that_is_gone() -> None:
    kept = (RouteText("sizes", "Which size fits."), RouteText("stores", "Branches"))
    changed = with_exception(kept, [RouteText("repairs", "Soles and heels")], Random(3))
    assert [route.name for route in changed] == ["sizes", "stores"]
    assert sum("soles and heels" in route.description for route in changed) == 1
    assert sum(one == two for one, two in zip(kept, changed, strict=True)) == 1


@pytest.mark.parametrize(
    ("names", "takes"), [(("sizes",), True), (("sizes", "small talk"), False)], ids=["none", "one"]
)
def test_the_rest_goes_to_a_route_for_it_where_there_is_none(
    names: tuple[str, ...], takes: bool
) -> None:
    routes = tuple(RouteText(name, "fits") for name in names)
    request = Request((("user", "fix my bike"),), frozenset({"other"}))
    draw = with_rest(Draw("written", routes, (request,)), Random(1))
    (right,) = draw.requests[0].right
    assert (right in {route.name for route in draw.routes}) is takes
    assert (right == "other") is not takes


def test_whole_policies_are_routes_beside_some_of_their_own() -> None:
    source = ComposedSource([SHOP, FARM], Foreigners(()))
    parents = {"shoe shop", "dairy farm"}
    seen = set()
    for seed in range(60):
        draw = source.draw(Random(seed))
        names = {route.name for route in draw.routes}
        parent_of = {name: name.replace("_", " ").replace("-", " ") for name in names}
        assert parents <= set(parent_of.values())
        for request in draw.requests:
            (right,) = request.right
            own = LABELS[request.turns[0][1]]
            is_parent = parent_of[right] in parents
            seen.add(is_parent)
            assert is_parent or right.endswith(own)
            # What has a route of its own is not the parent's.
            assert not (is_parent and any(name.endswith(own) for name in names - {right}))
    assert seen == {True, False}


@pytest.mark.parametrize(
    "policy",
    [
        replace(SHOP, level="opaque"),
        replace(SHOP, id="s1-001-model_picker"),
        replace(SHOP, routes=(*SHOP.routes, WrittenRoute("general", ("anything else",)))),
    ],
    ids=["names say nothing", "no topic", "takes anything"],
)
def test_a_policy_that_is_no_topic_is_no_route(policy: WrittenPolicy) -> None:
    assert not ComposedSource([policy, FARM], Foreigners(()))


def test_strangers_go_to_the_route_for_the_rest() -> None:
    limits = Limits(merged=0.0, removed=0.0, rest=1.0, strangers=0.5)
    source = WrittenSource([SHOP], Foreigners.of([SHOP, FARM]), limits)
    own = {route.name for route in SHOP.routes}
    for seed in range(20):
        draw = source.draw(Random(seed))
        (rest,) = {route.name for route in draw.routes} - own
        of_farm = [
            r for r in draw.requests if LABELS.get(r.turns[0][1]) in {"milking", "feed", "calving"}
        ]
        assert of_farm
        assert all(request.right == {rest} for request in of_farm)
        assert not any("other" in request.right for request in draw.requests)


def test_haste_changes_letters_and_marks_alone() -> None:
    text = "Where's my Parcel, 4471?"
    for seed in range(40):
        rough = roughened(text, Random(seed))
        assert len(text) - len(rough) in range(-1, 4)
        assert "4471" in rough
    routes = (RouteText("parcels", "deliveries"),)
    request = Request((("user", text),), frozenset({"parcels"}))
    moves = ("topic_shift", "closing", "opening", "follow_up", "command_beside", "command_alone")
    rates = Rates(**dict.fromkeys((*moves, "pasted"), 0.0), rough=1.0)
    draw = with_conversation_moves(Draw("f", routes, (request,) * 20), Random(1), rates, [])
    assert {each.right for each in draw.requests} == {frozenset({"parcels"})}
    assert any(each.turns[0][1] != text for each in draw.requests)
