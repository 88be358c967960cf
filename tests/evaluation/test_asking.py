"""Asking, with a stand-in for the router, and what is made of its decisions."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sidecar.core.decision import (
    Candidate,
    Decision,
    Explanation,
    PolicyRef,
    Reason,
    RoutingRequest,
    Source,
    StepTime,
)
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import OTHER, Model, Policy
from sidecar.evaluation.asking import ask
from sidecar.evaluation.outcomes import Outcome, outcome_of
from sidecar.evaluation.policies import CaseRoute, Presentation, opaque, plain, policy_of, shuffled
from sidecar.policies import check_policy
from tests.evaluation.making import ROUTES, case

DECISION = Decision(
    id="1",
    route="code",
    model=Model("m", "m"),
    fallbacks=(),
    source=Source.MODEL,
    reason=Reason.MATCHED,
    detail="",
    policy=PolicyRef("", 0, ""),
    prompt_format="f",
    routing_model="r",
    confidence=0.7,
    candidates=(Candidate("code", 0.7), Candidate("billing", 0.2), Candidate(OTHER, 0.1)),
    steps=(StepTime("model", 3.0), StepTime("total", 5.0)),
)


class StandInRouter:
    """Answers with the route at `position` of the policy it is asked with."""

    def __init__(self, position: int = 0) -> None:
        self.position = position
        self.asked: list[Policy] = []
        self.in_flight = self.most_in_flight = 0

    async def decide(self, request: RoutingRequest) -> Decision:
        assert isinstance(request.policy, Policy)
        self.asked.append(request.policy)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        return replace(DECISION, route=request.policy.routes[self.position].name, candidates=())


@pytest.mark.parametrize(
    ("source", "reason", "route", "answer"),
    [
        (Source.MODEL, Reason.MATCHED, "code", "code"),
        (Source.FALLBACK, Reason.NO_MATCH, "", OTHER),
        (Source.FALLBACK, Reason.LOW_CONFIDENCE, "", OTHER),
        (Source.FALLBACK, Reason.NOTHING_TO_ROUTE, "", OTHER),
        (Source.FALLBACK, Reason.DEADLINE_EXCEEDED, "", ""),
        (Source.FALLBACK, Reason.MODEL_UNAVAILABLE, "", ""),
        (Source.FALLBACK, Reason.UNPARSABLE_ANSWER, "", ""),
        (Source.FALLBACK, Reason.WARMING, "", ""),
    ],
)
def test_only_decisions_about_the_request_are_answers(
    source: Source, reason: Reason, route: str, answer: str
) -> None:
    decision = replace(DECISION, source=source, reason=reason, route=route)
    found = outcome_of(plain(case()), decision, prefix_shared=False)
    assert (found.answer, found.source, found.reason) == (answer, source, reason)
    assert (found.confidence, found.latency_ms) == (0.7, 5.0)


@pytest.mark.parametrize(
    ("answer", "alone"),
    [
        ("travel (encoder alone)", True),
        ("travel (language model alone)", True),
        ("travel (language model travel 0.62, encoder travel 0.55)", False),
        ("travel", False),
    ],
)
async def test_explanations_say_what_one_model_decided_alone(answer: str, alone: bool) -> None:
    async def decide(request: RoutingRequest) -> Decision:
        explanation = Explanation("", 0, 0, truncated=False, answer=answer)
        return replace(DECISION, explanation=explanation if request.explain else None)

    outcomes: list[Outcome] = []
    await ask([case()], decide, outcomes.append, explain=True)
    assert [each.alone for each in outcomes] == [alone]


def test_the_policy_has_the_routes_in_their_order_and_meets_the_rules() -> None:
    policy = policy_of(ROUTES)
    assert [(r.name, r.description) for r in policy.routes] == [
        (r.name, r.description) for r in ROUTES
    ]
    assert check_policy(policy, None) == ()


async def test_each_case_is_asked_once_and_those_with_the_same_routes_together() -> None:
    others = [CaseRoute("a", "d"), CaseRoute("b", "d")]
    cases = [
        case(id="1"),
        case("a", id="2", routes=others),
        case(id="3"),
        case("a", id="4", routes=others),
    ]
    router = StandInRouter()
    outcomes: list[Outcome] = []
    await ask(cases, router.decide, outcomes.append)
    assert [o.case.id for o in outcomes] == ["1", "3", "2", "4"]
    assert [o.prefix_shared for o in outcomes] == [False, True, False, True]
    assert router.most_in_flight == 1


async def test_concurrency_bounds_what_is_in_flight() -> None:
    router = StandInRouter()
    outcomes: list[Outcome] = []
    cases = [case(id=str(n)) for n in range(20)]
    await ask(cases, router.decide, outcomes.append, concurrency=4)
    assert len(outcomes) == 20
    assert router.most_in_flight == 4


async def test_a_refused_case_is_wrong_and_the_rest_is_asked() -> None:
    async def decide(request: RoutingRequest) -> Decision:
        if request.conversation.messages[0].text == "too large":
            raise SidecarError(ErrorCode.POLICY_TOO_LARGE, "too large")
        return DECISION

    outcomes: list[Outcome] = []
    await ask([case(id="1", text="too large"), case(id="2")], decide, outcomes.append)
    assert [(o.right, o.reason) for o in outcomes] == [
        (False, "policy_too_large"),
        (True, "matched"),
    ]


async def test_what_was_done_is_kept_when_asking_fails() -> None:
    async def decide(request: RoutingRequest) -> Decision:
        if request.conversation.messages[0].text == "break":
            raise ConnectionError("gone")
        return DECISION

    outcomes: list[Outcome] = []
    with pytest.raises(ConnectionError, match="gone"):
        await ask([case(id="1"), case(id="2", text="break")], decide, outcomes.append)
    assert [o.case.id for o in outcomes] == ["1"]


async def test_shuffled_routes_are_answered_in_the_names_of_the_case() -> None:
    router = StandInRouter()
    outcomes: list[Outcome] = []
    await ask([case()], router.decide, outcomes.append, presentation=shuffled(1))
    shown = [route.name for route in router.asked[0].routes]
    assert outcomes[0].answer == shown[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_shuffled_order_differs_and_is_the_same_for_the_same_routes(seed: int) -> None:
    present = shuffled(seed)
    shown = present(case(id="1")).routes
    assert shown != ROUTES
    assert sorted(shown, key=str) == sorted(ROUTES, key=str)
    assert present(case(id="2", text="other")).routes == shown


def test_one_route_cannot_be_shuffled() -> None:
    assert shuffled(1)(case(routes=ROUTES[1:2])).routes == ROUTES[1:2]


def test_opaque_names_keep_order_and_descriptions() -> None:
    question = opaque(case())
    assert [route.name for route in question.routes] == ["route_1", "route_2", "route_3"]
    assert [r.description for r in question.routes] == [r.description for r in ROUTES]


@pytest.mark.parametrize("present", [plain, shuffled(3), opaque])
def test_every_form_is_answered_in_the_names_of_the_case(present: Presentation) -> None:
    question = present(case())
    code = next(i for i, r in enumerate(question.routes) if r.description == ROUTES[1].description)
    shown = question.routes[code].name
    decision = replace(DECISION, route=shown, candidates=(Candidate(shown, 0.7),))
    found = outcome_of(question, decision, prefix_shared=False)
    assert (found.answer, found.right, found.candidates[0].name) == ("code", True, "code")


def test_a_case_whose_own_names_are_like_opaque_ones_is_not_confused() -> None:
    routes = [CaseRoute("route_2", "first"), CaseRoute("route_1", "second")]
    question = opaque(case("route_2", routes=routes))
    assert [question.original(route.name) for route in question.routes] == ["route_2", "route_1"]
