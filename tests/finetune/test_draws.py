"""Draws: hand-written policies and cases regrouped, and what augmentation keeps right."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from router_training.augment import Rates, renamed, with_conversation_moves, with_names
from router_training.cases import (
    Case,
    Draw,
    Request,
    RouteText,
    WrittenPolicy,
    WrittenRoute,
)
from router_training.errors import InputError
from router_training.mixture import build_mixture
from router_training.sources import (
    FamilySource,
    Foreigners,
    Limits,
    WrittenSource,
    concepts_of,
    written_requests,
)

GARDEN = WrittenPolicy(
    id="garden",
    level="action",
    routes=(
        WrittenRoute("water_plan", ("when to irrigate the beds", "irrigation schedules")),
        WrittenRoute("pests", ("slugs, aphids and what eats the salad",)),
        WrittenRoute("harvest", ("picking and storing what is ripe; not for water_plan",)),
    ),
    singles=(
        ("water_plan", "how often in july"),
        ("pests", "holes in the cabbage"),
        ("harvest", "are the pears ready"),
        ("other", "fix my bike"),
    ),
    dialogues=(
        (
            ("user", "aphids again", "pests"),
            ("assistant", "Soap water helps.", ""),
            ("user", "thanks", "other"),
        ),
    ),
)
LAW = WrittenPolicy(
    id="law",
    level="action",
    routes=(
        WrittenRoute("contracts", ("drafting agreements between companies",)),
        WrittenRoute("litigation", ("lawsuits, courts, judges",)),
    ),
    singles=(("contracts", "an NDA with Acme"), ("litigation", "we are being sued")),
    dialogues=(),
)


def a_draw() -> Draw:
    return Draw(
        "written",
        (
            RouteText("water_plan", "when to irrigate"),
            RouteText("pests", "slugs; watering goes to water_plan"),
        ),
        (
            Request((("user", "how often in july"),), frozenset({"water_plan"})),
            Request((("user", "holes in the cabbage"),), frozenset({"pests"})),
            Request((("user", "fix my bike"),), frozenset({"other"})),
        ),
    )


@pytest.mark.parametrize("orphans_are_other", [True, False])
def test_requests_of_a_removed_route(orphans_are_other: bool) -> None:
    kept = frozenset({"water_plan", "harvest"})
    requests = list(written_requests(GARDEN, kept, orphans_are_other, Random(0)))
    of_pests = [
        r.right for r in requests if r.turns[-1][1] in ("holes in the cabbage", "aphids again")
    ]
    assert of_pests == ([frozenset({"other"})] * 2 if orphans_are_other else [])


def test_dialogue_turns_carry_all_that_was_said_before() -> None:
    kept = frozenset(route.name for route in GARDEN.routes)
    *_, last = written_requests(GARDEN, kept, True, Random(0))
    assert [text for _, text in last.turns] == ["aphids again", "Soap water helps.", "thanks"]
    assert last.right == {"other"}


def test_foreign_routes_take_no_request_of_the_policy() -> None:
    limits = Limits(distractors=1.0, crowds=0.0, removed=0.0)
    source = WrittenSource([GARDEN], Foreigners.of([GARDEN, LAW]), limits)
    for seed in range(20):
        draw = source.draw(Random(seed))
        own = {route.name for route in GARDEN.routes}
        assert {route.name for route in draw.routes} > own
        assert all(request.right <= own | {"other"} for request in draw.requests)
        # Somebody else's route might take what none of ours takes.
        assert all(request.turns[-1][1] != "fix my bike" for request in draw.requests)


def test_strangers_are_other() -> None:
    limits = Limits(distractors=0.0, crowds=0.0, removed=0.0, strangers=0.5)
    source = WrittenSource([GARDEN], Foreigners.of([GARDEN, LAW]), limits)
    asked = [r for seed in range(20) for r in source.draw(Random(seed)).requests]
    strangers = [r for r in asked if r.turns[-1][1] in ("an NDA with Acme", "we are being sued")]
    assert strangers
    assert all(request.right == {"other"} for request in strangers)


@pytest.mark.parametrize(
    ("rates", "changed"),
    [
        (Rates(opaque_names=1.0), True),
        (Rates(opaque_names=0.0, misleading_names=1.0), True),
        (Rates(opaque_names=0.0, misleading_names=0.0, restyled_names=1.0), True),
        (Rates(opaque_names=0.0, misleading_names=0.0, restyled_names=0.0), False),
    ],
    ids=["opaque", "misleading", "restyled", "none"],
)
def test_a_renamed_route_keeps_its_requests(rates: Rates, changed: bool) -> None:
    before = a_draw()
    seen_change = False
    for seed in range(10):
        after = renamed(before, Random(seed), rates)
        seen_change = seen_change or [r.name for r in after.routes] != [
            r.name for r in before.routes
        ]
        plan, pests = (route.name for route in after.routes)
        assert [request.right for request in after.requests] == [{plan}, {pests}, {"other"}]
    assert seen_change == changed


def test_descriptions_that_speak_of_a_route_follow_its_name() -> None:
    after = with_names(a_draw(), {"water_plan": "r7", "pests": "r2"})
    assert after.routes[1] == RouteText("r2", "slugs; watering goes to r7")


MOVES = {
    "closing": (Rates(topic_shift=0, closing=1.0), {"other"}, 3),
    "follow_up": (Rates(topic_shift=0, closing=0, opening=0, follow_up=1.0), {"pests"}, 3),
    "command_beside": (
        Rates(topic_shift=0, closing=0, opening=0, follow_up=0, command_beside=1.0),
        {"pests"},
        1,
    ),
    "topic_shift": (Rates(topic_shift=1.0), {"pests"}, 3),
}


@pytest.mark.parametrize(("rates", "right", "turns"), MOVES.values(), ids=MOVES.keys())
def test_what_is_right_after_a_move(rates: Rates, right: set[str], turns: int) -> None:
    moved = with_conversation_moves(a_draw(), Random(3), rates, ()).requests[1]
    assert moved.right == right
    assert len(moved.turns) == turns
    assert moved.turns[-1][0] == "user"


@pytest.mark.parametrize("rates", [MOVES["command_beside"][0], Rates(0, 0, 0, 0, 0, 0, 0, 0, 0, 1)])
@pytest.mark.parametrize("role", ["assistant", "tool"])
def test_what_others_said_is_never_put_into_the_users_mouth(rates: Rates, role: str) -> None:
    said = Request((("user", "holes in the cabbage"), (role, "slugs")), frozenset({"pests"}))
    draw = replace(a_draw(), requests=(said,))
    assert with_conversation_moves(draw, Random(3), rates, ["pasted"]).requests == (said,)


def a_case(number: int, label: str, *names: str) -> Case:
    routes = tuple(RouteText(name, f"about {name}") for name in names)
    request = Request((("user", f"request {number} for {label}"),), frozenset({label}))
    return Case(f"c{number}", "bank", "action", routes, request, label, f"d{number}", frozenset())


def test_cases_are_regrouped_behind_lists_that_have_their_route() -> None:
    cases = [
        a_case(1, "cards", "cards", "loans"),
        a_case(2, "loans", "loans", "cards"),
        a_case(3, "fraud", "fraud", "savings"),
    ]
    limits = Limits(distractors=0.0, crowds=0.0, strangers=0.0)
    source = FamilySource("bank", cases, Foreigners(()), limits)
    for seed in range(20):
        draw = source.draw(Random(seed))
        names = {route.name for route in draw.routes}
        for request in draw.requests:
            home = request.turns[0][1].rsplit(" ", 1)[1]
            assert request.right == ({home} if home in names else {"other"})
    assert max(len(source.draw(Random(seed)).requests) for seed in range(20)) > 1


@pytest.mark.parametrize("tag", ["opaque_names", "near_duplicate"])
def test_a_list_that_means_something_for_one_case_alone_serves_no_other(tag: str) -> None:
    cases = [
        replace(a_case(1, "r1", "r1", "r2"), tags=frozenset({tag})),
        replace(a_case(2, "r2", "r1", "r2"), tags=frozenset({tag})),
    ]
    source = FamilySource("bank", cases, Foreigners(()), Limits())
    assert all(len(source.draw(Random(seed)).requests) == 1 for seed in range(10))


def own_cases(count: int, granularity: str = "mixed") -> list[Case]:
    """Over one list, in either order, each a dialogue of its own but the last two."""
    lists = [("cards", "loans"), ("loans", "cards")]
    cases = [a_case(n, lists[n % 2][n % 3 % 2], *lists[n % 2]) for n in range(count)]
    cases[-1] = replace(cases[-1], dialogue=cases[-2].dialogue)
    return [replace(case, granularity=granularity) for case in cases]


class AsDrawn:
    limit = ""

    def encode(self, draw: Draw) -> Draw:
        return draw


class OfTwoRoutes:
    limit = "more than two routes"

    def encode(self, draw: Draw) -> Draw | None:
        return draw if len(draw.routes) <= 2 else None


def test_own_cases_that_the_model_cannot_read_are_not_drawn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cases = [a_case(1, "loans", "cards", "loans"), a_case(2, "loans", "cards", "loans", "fraud")]
    cases = [replace(case, granularity="mixed") for case in cases]
    mixture = build_mixture({"bank": cases}, [], OfTwoRoutes(), seed=0)
    assert all(len(mixture.draw(number).routes) == 2 for number in range(20))
    assert "1 of 2 cases of bank are left out: more than two routes" in caplog.text


def test_own_cases_of_which_the_model_reads_none_are_refused() -> None:
    cases = [a_case(1, "loans", "cards", "loans", "savings")]
    with pytest.raises(InputError, match="no case can be trained on: more than two routes"):
        build_mixture({"bank": cases}, [], OfTwoRoutes(), seed=0)


@pytest.mark.parametrize(("count", "expected"), [(7, 7), (200, Limits().requests)])
def test_a_users_own_cases_come_with_others_of_the_same_routes(count: int, expected: int) -> None:
    cases = own_cases(count)
    right = {case.request.turns[-1][1]: case.request.right for case in cases}
    source = FamilySource("own", cases, Foreigners(()), Limits(), own=True)
    for seed in range(20):
        draw = source.draw(Random(seed))
        asked = [request.turns[-1][1] for request in draw.requests]
        assert len(asked) == len(set(asked)) == expected
        assert all(request.right == right[request.turns[-1][1]] for request in draw.requests)


def test_a_users_own_cases_of_another_list_stay_out() -> None:
    cases = [*own_cases(8), replace(a_case(9, "cards", "cards", "fraud"), granularity="mixed")]
    source = FamilySource("own", cases, Foreigners(()), Limits(), own=True)
    lists = {
        (frozenset(route.name for route in draw.routes), len(draw.requests))
        for draw in (source.draw(Random(seed)) for seed in range(40))
    }
    assert lists == {(frozenset({"cards", "loans"}), 8), (frozenset({"cards", "fraud"}), 1)}


def test_a_name_in_another_of_the_users_policies_is_another_route() -> None:
    """Whatever granularity a case is said to have."""
    first = [replace(case, granularity="action") for case in own_cases(8)]
    lists = {frozenset({"cards", "loans"}), frozenset({"cards", "fraud"})}
    second = [a_case(n, ("cards", "fraud")[n % 2], "cards", "fraud") for n in range(10, 18)]
    second = [
        replace(case, routes=(RouteText("cards", "playing cards"), case.routes[1]))
        for case in second
    ]
    right = {case.request.turns: case.request.right for case in (*first, *second)}
    source = FamilySource("shop", [*first, *second], Foreigners(()), Limits(), own=True)
    for seed in range(40):
        draw = source.draw(Random(seed))
        assert frozenset(route.name for route in draw.routes) in lists
        assert {request.turns: request.right for request in draw.requests}.items() <= right.items()
        about_cards = next(route for route in draw.routes if route.name == "cards").description
        own = {case.request.turns for case in second} >= {r.turns for r in draw.requests}
        assert about_cards == ("playing cards" if own else "about cards")


def test_draws_of_which_a_model_reads_none_end() -> None:
    cases = [a_case(1, "loans", "cards", "loans", "savings")]
    mixture = build_mixture({"general": cases}, [], OfTwoRoutes(), seed=0)
    with pytest.raises(InputError, match="of 1000 draws none can be trained on: more than two"):
        mixture.draw(0)


@pytest.mark.parametrize(("family", "together"), [("own", True), ("assistant", False)])
def test_draws_of_the_families_that_the_router_learned_from_stay_what_they_were(
    family: str, together: bool
) -> None:
    mixture = build_mixture({family: own_cases(20)}, [], AsDrawn(), seed=0)
    sizes = {len(mixture.draw(number).requests) for number in range(40)}
    assert (max(sizes) > 2) == together


def test_names_are_one_concept_if_style_or_description_joins_them() -> None:
    routes = [
        RouteText("book_flight", "book a flight"),
        RouteText("travel/BookFlight", "plane tickets"),
        RouteText("tickets", "plane tickets"),
        RouteText("hotel", "a room"),
    ]
    concepts = concepts_of(("action", route) for route in routes)
    joined = [concepts["action", route.name] for route in routes]
    assert joined[0] == joined[1] == joined[2] != joined[3]
