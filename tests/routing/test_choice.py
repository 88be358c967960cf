"""From answers to routes: domains, thresholds, `other`."""

from __future__ import annotations

import pytest

from sidecar.core.decision import Candidate, Reason
from sidecar.core.model import Answer
from sidecar.core.policy import ModelList, Policy, Route, WeightedModel
from sidecar.routing.choice import choose

MODELS = ModelList((WeightedModel("m"),))


def policy(*routes: tuple[str, str, float]) -> Policy:
    """Routes as (name, domain, min_confidence)."""
    return Policy(
        "p",
        tuple(Route(name, "text", MODELS, domain, minimum) for name, domain, minimum in routes),
        MODELS,
    )


def answer(**probabilities: float) -> Answer:
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    return Answer(ranked[0][0], tuple(Candidate(name, p) for name, p in ranked))


FLAT = policy(("code", "", 0.0), ("travel", "", 0.5))
DEEP = policy(
    ("travel", "", 0.3), ("book", "travel", 0.4), ("hotel", "travel", 0.4), ("code", "", 0.0)
)
STRICT = policy(("travel", "", 0.5), ("book", "travel", 0.4), ("code", "", 0.0))

CASES = {
    "most probable route": (FLAT, answer(code=0.6, travel=0.3, other=0.1), 0.0, "code", "matched"),
    "other": (FLAT, answer(code=0.2, travel=0.3, other=0.5), 0.0, None, "no_match"),
    "route at its minimum": (
        FLAT,
        answer(travel=0.5, code=0.4, other=0.1),
        0.0,
        "travel",
        "matched",
    ),
    "route below its minimum": (
        FLAT,
        answer(travel=0.49, code=0.4, other=0.11),
        0.0,
        None,
        "low_confidence",
    ),
    "caller raises the minimum": (
        FLAT,
        answer(code=0.6, travel=0.3, other=0.1),
        0.7,
        None,
        "low_confidence",
    ),
    "caller raises the route's own minimum": (
        FLAT,
        answer(travel=0.6, code=0.3, other=0.1),
        0.7,
        None,
        "low_confidence",
    ),
    "caller cannot lower it": (
        FLAT,
        answer(travel=0.49, code=0.4, other=0.11),
        0.1,
        None,
        "low_confidence",
    ),
    "best action of the best domain": (
        DEEP,
        answer(book=0.5, hotel=0.1, travel=0.1, code=0.2, other=0.1),
        0.0,
        "book",
        "matched",
    ),
    "an action that the answer leaves out": (
        DEEP,
        answer(book=0.5, travel=0.1, code=0.3, other=0.1),
        0.0,
        "book",
        "matched",
    ),
    "action below its minimum falls to its domain": (
        DEEP,
        answer(book=0.39, hotel=0.2, travel=0.1, code=0.2, other=0.11),
        0.0,
        "travel",
        "domain",
    ),
    "domain wins over a more probable single route": (
        DEEP,
        answer(code=0.4, book=0.2, hotel=0.15, travel=0.25, other=0.0),
        0.0,
        "travel",
        "matched",
    ),
    "action and domain below their minimum": (
        STRICT,
        answer(book=0.3, travel=0.1, code=0.35, other=0.25),
        0.0,
        None,
        "low_confidence",
    ),
    "other is more probable than a domain and its actions": (
        DEEP,
        answer(book=0.15, hotel=0.07, travel=0.07, code=0.28, other=0.43),
        0.0,
        None,
        "no_match",
    ),
    "domain below the caller's minimum": (
        DEEP,
        answer(book=0.3, hotel=0.2, travel=0.1, code=0.2, other=0.2),
        0.7,
        None,
        "low_confidence",
    ),
    "chosen route without probabilities": (FLAT, Answer("code"), 0.0, "code", "matched"),
    "unknown probability does not reach a minimum": (
        FLAT,
        Answer("travel"),
        0.0,
        None,
        "low_confidence",
    ),
    "probability of the chosen route alone": (
        FLAT,
        Answer("travel", (Candidate("travel", 0.6),)),
        0.0,
        "travel",
        "matched",
    ),
    "unparsable": (
        FLAT,
        Answer("", problem=Reason.UNPARSABLE_ANSWER),
        0.0,
        None,
        "unparsable_answer",
    ),
    "unknown route": (FLAT, Answer("", problem=Reason.UNKNOWN_ROUTE), 0.0, None, "unknown_route"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_choice(case: tuple[Policy, Answer, float, str | None, str]) -> None:
    routes, given, minimum, route, reason = case

    choice = choose(given, routes, minimum)

    assert (choice.route.name if choice.route else None, choice.reason.value) == (route, reason)


def test_domain_candidate_has_the_probability_of_its_actions_too() -> None:
    choice = choose(answer(book=0.5, hotel=0.1, travel=0.1, code=0.2, other=0.1), DEEP)

    assert {c.name: round(c.probability, 6) for c in choice.candidates} == {
        "travel": 0.7,
        "book": 0.5,
        "code": 0.2,
        "hotel": 0.1,
        "other": 0.1,
    }
    assert choice.candidates[0].name == "travel"


def test_domain_is_never_more_probable_than_1() -> None:
    own = {"travel": 0.33, "book": 0.56, "hotel": 0.11}
    assert own["travel"] + own["book"] + own["hotel"] > 1

    choice = choose(answer(**own, code=0.0, other=0.0), DEEP, min_confidence=0.9)

    assert choice.candidates[0] == ("travel", 1.0)
    assert choice.confidence == 1.0


@pytest.mark.parametrize(
    ("confidence", "says"),
    [
        (0.49, "travel (49%) is below its minimum of 50%."),
        (0.497, "travel (49.7%) is below its minimum of 50.0%."),
        (0.4999999, "travel (50.000%) is below its minimum of 50.000%."),
    ],
)
def test_detail_names_the_minimum_that_was_missed(confidence: float, says: str) -> None:
    choice = choose(answer(travel=confidence, code=0.4, other=0.6 - confidence), FLAT)

    assert choice.detail == says
