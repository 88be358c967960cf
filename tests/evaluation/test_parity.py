"""Whether two computations of the same weights count as alike."""

from __future__ import annotations

import math

import pytest

from sidecar.engines.trtllm import Reading
from sidecar.evaluation.parity import parity

NAMES = ("a", "b", "other")


def reading(*probabilities: float, id: str = "1") -> Reading:
    logits = tuple(math.log(p) for p in probabilities)
    return Reading(id, NAMES[logits.index(max(logits))], logits)


SURE = reading(0.8, 0.1, 0.1)


def test_the_largest_gap_is_that_of_any_answer_of_any_case() -> None:
    found = parity(
        [SURE, reading(0.6, 0.3, 0.1)],
        [SURE, reading(0.6, 0.25, 0.15)],
    )
    assert (found.cases, found.same, found.alike, found.differences) == (2, 1.0, True, ())
    assert found.largest_gap == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("ours", "theirs", "margin"),
    [
        ((0.41, 0.40, 0.19), (0.40, 0.41, 0.19), 0.01),
        ((0.41, 0.40, 0.19), (0.38, 0.43, 0.19), 0.05),
        ((0.43, 0.38, 0.19), (0.40, 0.41, 0.19), 0.05),
        ((0.40, 0.20, 0.40 + 1e-9), (0.40 + 1e-9, 0.20, 0.40), 0.0),
    ],
)
def test_the_margin_of_a_difference_is_the_wider_of_the_two(
    ours: tuple[float, ...], theirs: tuple[float, ...], margin: float
) -> None:
    pair = reading(*ours), reading(*theirs)
    (difference,) = parity([pair[0]], [pair[1]]).differences
    assert (difference.answer, difference.reference) == (pair[0].name, pair[1].name)
    assert difference.margin == pytest.approx(margin, abs=1e-6)


def test_margins_are_those_of_the_confidences_that_people_see() -> None:
    ours, theirs = reading(0.64, 0.36, 1e-9), reading(0.36, 0.64, 1e-9)
    (difference,) = parity([ours], [theirs], temperature=2.0).differences
    # Square roots of the probabilities, scaled to a sum of 1.
    assert difference.margin == pytest.approx((0.8 - 0.6) / 1.4, abs=1e-4)


@pytest.mark.parametrize(
    ("cases", "turned", "by", "alike"),
    [
        (200, 0, 0.0, True),
        (200, 1, 0.019, True),
        (199, 1, 0.019, False),
        (200, 1, 0.021, False),
    ],
)
def test_alike_is_nearly_all_cases_the_same_and_the_rest_nearly_a_tie(
    cases: int, turned: int, by: float, alike: bool
) -> None:
    ours = [SURE] * (cases - turned) + [reading(0.4 + by / 2, 0.4 - by / 2, 0.2)] * turned
    theirs = [SURE] * (cases - turned) + [reading(0.4 - by / 2, 0.4 + by / 2, 0.2)] * turned
    found = parity(ours, theirs)
    assert found.same == 1 - turned / cases
    assert found.alike is alike
