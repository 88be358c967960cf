"""What a provider keeps of a conversation stays with the provider that has issued it; what it has
sealed goes there if it can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from sidecar.core.decision import Decision, RoutingRequest
from sidecar.core.policy import ApiDialect, Catalog, Model, PinMode, Policy
from sidecar.routing import DecisionCache, Pins
from tests.doubles import talk
from tests.routing.worlds import POLICY, World, a_world, models

RESPONSES = ApiDialect.OPENAI_RESPONSES
CATALOG: Catalog = {
    "claude": Model("claude", "claude-1", "one", dialects=frozenset({RESPONSES})),
    "gpt": Model("gpt", "gpt-1", "two", dialects=frozenset({RESPONSES})),
    "mini": Model("mini", "mini-1", "two", dialects=frozenset({RESPONSES})),
    "chat": Model("chat", "chat-1", "three", dialects=frozenset({ApiDialect.OPENAI_CHAT})),
}
CODE, TRAVEL = (8, 1, 1), (1, 8, 1)
# The policy of the routing tests: code -> claude, gpt; travel -> gpt; default mini.
ONE_CLUSTER = replace(
    POLICY,
    routes=tuple(replace(route, models=models("gpt", "chat")) for route in POLICY.routes),
)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world(DecisionCache(0, 60), Pins(100, 60), CATALOG, budget_s=10) as made:
        yield made


def going_on(policy: Policy = POLICY, **changes: object) -> RoutingRequest:
    request = RoutingRequest(
        talk("and now?"), policy, continues="resp_1", keep_task=True, dialect=RESPONSES
    )
    return replace(request, **changes)  # type: ignore[arg-type]


def chosen(decision: Decision) -> list[str]:
    return [decision.model.id, *(model.id for model in decision.fallbacks)]


def said(decision: Decision) -> tuple[str, str, str]:
    return decision.source.value, decision.reason.value, decision.route


async def test_request_goes_to_who_has_issued_what_it_goes_on_from(world: World) -> None:
    world.router.issued("resp_1", "", "claude", "code")
    world.model.logits = TRAVEL

    decision = await world.router.decide(going_on())

    assert said(decision) == ("pin", "pinned_conversation", "code")
    assert chosen(decision) == ["claude"]


async def test_issuer_goes_before_the_pin_of_the_conversation(world: World) -> None:
    """After a failure a fallback has answered."""
    world.model.logits = CODE
    await world.router.decide(going_on(continues="", conversation_key="c"))
    world.router.issued("resp_1", "", "gpt", "code")

    decision = await world.router.decide(going_on(conversation_key="c"))

    assert chosen(decision) == ["gpt"]


async def test_issuer_without_a_route_goes_before_the_pin_of_the_conversation(world: World) -> None:
    world.model.logits = TRAVEL
    await world.router.decide(going_on(continues="", conversation_key="c"))
    world.router.issued("resp_1", "", "claude", "")

    decision = await world.router.decide(going_on(conversation_key="c"))

    assert said(decision) == ("pin", "pinned_conversation", "travel")
    assert chosen(decision) == ["claude"]


ELSEWHERE: dict[str, tuple[str, Policy]] = {
    "the request before had no route": ("", POLICY),
    "the route is gone": ("gone", POLICY),
    "the policy keeps nothing": ("code", replace(POLICY, pin=PinMode.OFF)),
}


@pytest.mark.parametrize(("route", "policy"), ELSEWHERE.values(), ids=ELSEWHERE.keys())
async def test_without_a_route_to_keep_the_model_decides_within_the_cluster(
    world: World, route: str, policy: Policy
) -> None:
    world.router.issued("resp_1", "", "mini", route)
    world.model.logits = CODE

    decision = await world.router.decide(going_on(policy))

    assert said(decision) == ("model", "matched", "code")
    assert chosen(decision) == ["gpt"]


async def test_issuer_answers_where_the_route_has_no_model_of_its_cluster(world: World) -> None:
    world.router.issued("resp_1", "", "claude", "")
    world.model.logits = TRAVEL

    decision = await world.router.decide(going_on())

    assert said(decision) == ("model", "matched", "travel")
    assert chosen(decision) == ["claude"]


async def test_unknown_issuer_leads_to_the_default(world: World) -> None:
    """Whatever is said, so that what goes on from there is at the same provider."""
    policy = replace(POLICY, default=models("mini", "claude", "gpt"))
    decisions = []
    for world.model.logits in (CODE, TRAVEL):
        decisions.append(await world.router.decide(going_on(policy)))

    assert {said(decision) for decision in decisions} == {("fallback", "unknown_issuer", "")}
    assert [chosen(decision) for decision in decisions] == [["mini", "gpt"], ["mini", "gpt"]]


async def test_unknown_issuer_does_not_matter_where_only_one_cluster_can_have_issued_it(
    world: World,
) -> None:
    world.model.logits = TRAVEL

    decision = await world.router.decide(going_on(ONE_CLUSTER))

    assert said(decision) == ("model", "matched", "travel")


async def test_issuer_is_known_to_its_caller_alone(world: World) -> None:
    world.router.issued("resp_1", "team-a", "claude", "code")

    mine = await world.router.decide(going_on(caller="team-a"))
    others = await world.router.decide(going_on(caller="team-b"))

    assert (mine.reason.value, others.reason.value) == ("pinned_conversation", "unknown_issuer")


async def test_issuer_that_the_catalog_has_no_more_is_not_known(world: World) -> None:
    world.router.issued("resp_1", "", "gone", "code")

    assert (await world.router.decide(going_on())).reason.value == "unknown_issuer"


async def test_id_that_is_on_its_way_is_waited_for(world: World) -> None:
    world.router.watching()

    deciding = asyncio.ensure_future(world.router.decide(going_on()))
    await asyncio.sleep(0.001)
    world.router.issued("resp_1", "", "claude", "code")

    assert chosen(await deciding) == ["claude"]


async def test_id_on_its_way_is_waited_for_no_longer_than_the_caller_waits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.routing.router._ISSUED_TRIES", 1_000_000)
    world.router.watching()

    async with asyncio.timeout(60):
        decision = await world.router.decide(going_on(budget_s=0.05))

    assert decision.reason.value == "unknown_issuer"


async def test_pins_switched_off_leave_the_default() -> None:
    async with a_world(DecisionCache(0, 60), None, CATALOG, budget_s=10) as world:
        world.router.issued("resp_1", "", "claude", "code")

        assert (await world.router.decide(going_on())).reason.value == "unknown_issuer"


SEALED: dict[str, tuple[bool, str, list[str]]] = {
    "sealed": (True, "c", ["gpt", "claude"]),
    "nothing is sealed": (False, "c", ["claude", "gpt"]),
    "who has sealed it is not known": (True, "", ["claude", "gpt"]),
}


@pytest.mark.parametrize(("sealed", "key", "expected"), SEALED.values(), ids=SEALED.keys())
async def test_models_that_can_read_what_was_sealed_come_first(
    world: World, sealed: bool, key: str, expected: list[str]
) -> None:
    asked = going_on(continues="", conversation_key=key)
    world.model.logits = TRAVEL
    await world.router.decide(replace(asked, conversation=talk("a flight to Rome")))
    world.model.logits = CODE

    decision = await world.router.decide(replace(asked, sealed=sealed))

    assert said(decision) == ("model", "matched", "code")
    assert chosen(decision) == expected
    assert ("sealed a part" in decision.detail) == (expected[0] == "gpt")


async def test_default_model_that_has_sealed_is_remembered(world: World) -> None:
    """Its route is none to keep."""
    asked = going_on(continues="", conversation_key="c")
    world.model.logits = (1, 1, 8)
    default = await world.router.decide(replace(asked, conversation=talk("hello")))
    world.model.logits = CODE

    decision = await world.router.decide(replace(asked, sealed=True))

    assert chosen(default) == ["mini"]
    assert said(decision) == ("model", "matched", "code")
    assert chosen(decision) == ["gpt", "claude"]


async def test_default_models_that_can_read_what_was_sealed_come_first(world: World) -> None:
    policy = replace(POLICY, default=models("mini", "claude"))
    asked = going_on(policy, continues="", conversation_key="c", sealed=True)
    world.model.logits = CODE
    await world.router.decide(replace(asked, conversation=talk("review this"), sealed=False))
    world.model.logits = (1, 1, 8)

    decision = await world.router.decide(asked)

    assert said(decision) == ("fallback", "no_match", "")
    assert chosen(decision) == ["claude", "mini"]


def referring(**changes: object) -> RoutingRequest:
    return replace(going_on(continues="", refers_to="file_1"), **changes)  # type: ignore[arg-type]


async def test_request_goes_to_who_has_the_file_that_it_names(world: World) -> None:
    world.router.issued("file_1", "", "mini", "")
    world.model.logits = CODE

    decision = await world.router.decide(referring())

    assert said(decision) == ("model", "matched", "code")
    assert chosen(decision) == ["gpt"]


async def test_file_of_a_known_provider_does_not_keep_the_route(world: World) -> None:
    world.router.issued("file_1", "", "mini", "")
    asked = referring(conversation_key="c")
    for world.model.logits, question in ((CODE, "review this"), (TRAVEL, "a flight to Rome")):
        decision = await world.router.decide(replace(asked, conversation=talk(question)))

    assert said(decision) == ("model", "matched", "travel")


async def test_file_of_an_unknown_provider_leads_to_the_default_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.routing.router._ISSUED_TRIES", 1_000_000)
    world.router.watching()

    async with asyncio.timeout(5):
        decision = await world.router.decide(referring())

    assert said(decision) == ("fallback", "unknown_issuer", "")


async def test_unknown_provider_of_an_item_is_that_of_the_conversation(world: World) -> None:
    """Its ids are not seen: they stand behind that of their response."""
    world.model.logits = CODE
    await world.router.decide(going_on(continues="", conversation_key="c"))
    world.model.logits = TRAVEL

    asked = replace(referring(conversation_key="c"), conversation=talk("a flight to Rome"))
    decision = await world.router.decide(asked)

    assert said(decision) == ("pin", "pinned_conversation", "code")
    assert chosen(decision) == ["claude"]


async def test_file_tells_the_provider_where_the_response_does_not(world: World) -> None:
    world.router.issued("file_1", "", "claude", "")
    world.model.logits = CODE

    decision = await world.router.decide(referring(continues="resp_1"))

    assert chosen(decision) == ["claude"]
