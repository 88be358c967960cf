from __future__ import annotations

import math

import pytest

from sidecar.core.decision import Candidate, Reason
from sidecar.core.model import LabelLogits, ModelOutput, TextOutput
from sidecar.core.policy import OTHER
from sidecar.prompts.answers import literal_guide, read_labels, read_text
from tests.prompts.vocabularies import qwen

NAMES = ("travel", "code", OTHER)
LABELS = ("trips", "code", OTHER)


def test_probabilities_are_the_softmax_most_probable_first() -> None:
    answer = read_labels(LabelLogits((0.0, math.log(3), 0.0)), NAMES, LABELS, temperature=1.0)

    assert answer.name == "code"
    assert answer.text == "code"
    assert [candidate.name for candidate in answer.candidates] == ["code", "travel", OTHER]
    assert [candidate.probability for candidate in answer.candidates] == pytest.approx(
        [0.6, 0.2, 0.2]
    )


def test_text_of_a_label_answer_is_the_word() -> None:
    assert read_labels(LabelLogits((9.0, 0.0, 0.0)), NAMES, LABELS, 1.0).text == "trips"


def test_temperature_divides_the_logits() -> None:
    answer = read_labels(
        LabelLogits((0.0, 2 * math.log(3), -900.0)), NAMES, LABELS, temperature=2.0
    )

    assert answer.candidates[0].probability == pytest.approx(0.75)


def test_equal_logits_go_to_the_route_declared_first() -> None:
    assert read_labels(LabelLogits((1.0, 1.0, 1.0)), NAMES, LABELS, 1.0).name == "travel"


def test_large_logits_do_not_overflow() -> None:
    answer = read_labels(LabelLogits((1e6, -1e6, 0.0)), NAMES, LABELS, 1.0)

    assert answer.candidates[0] == Candidate("travel", 1.0)


@pytest.mark.parametrize(
    "output",
    [
        pytest.param(LabelLogits((1.0, 2.0)), id="too few"),
        pytest.param(LabelLogits((1.0, math.nan, 0.0)), id="nan"),
        pytest.param(LabelLogits((1.0, math.inf, 0.0)), id="infinite"),
        pytest.param(LabelLogits((-math.inf,) * 3), id="all impossible"),
        pytest.param(TextOutput((1, 2)), id="text"),
    ],
)
def test_output_that_is_no_label_answer_is_unparsable(output: ModelOutput) -> None:
    answer = read_labels(output, NAMES, LABELS, 1.0)

    assert (answer.name, answer.candidates) == ("", ())
    assert answer.problem is Reason.UNPARSABLE_ANSWER


def test_guide_admits_exactly_the_answers() -> None:
    assert literal_guide(["{'route': 'a'}", "{'route': \"b's\"}", "back\\slash"]) == (
        r"""root ::= "{'route': 'a'}" | "{'route': \"b's\"}" | "back\\slash" """.strip()
    )


def said(text: str, log_probs: tuple[float, ...] | None = None) -> TextOutput:
    ids = tuple(qwen().encode(text))
    return TextOutput(ids, tuple(-0.1 for _ in ids) if log_probs is None else log_probs)


def test_confidence_of_a_text_is_the_probability_of_its_tokens() -> None:
    output = said("{'route': 'travel'}")

    answer = read_text(output, NAMES, {}, qwen())

    assert answer.name == "travel"
    assert answer.text == "{'route': 'travel'}"
    [candidate] = answer.candidates
    assert candidate.name == "travel"
    assert candidate.probability == pytest.approx(math.exp(-0.1 * len(output.token_ids)))


@pytest.mark.parametrize(
    "log_probs",
    [
        pytest.param((), id="not given"),
        pytest.param((-0.1,), id="not one per token"),
        pytest.param((math.nan,) * 6, id="nan"),
        pytest.param((-1e308,) * 6, id="a sum that is no number"),
    ],
)
def test_without_sound_log_probabilities_there_is_no_confidence(
    log_probs: tuple[float, ...],
) -> None:
    answer = read_text(said("{'route': 'travel'}", log_probs), NAMES, {}, qwen())

    assert (answer.name, answer.candidates) == ("travel", ())


def test_rounding_above_certainty_is_certainty() -> None:
    output = said("travel")

    [candidate] = read_text(
        TextOutput(output.token_ids, (1e-4,) * len(output.token_ids)), NAMES, {}, qwen()
    ).candidates

    assert candidate.probability == 1.0


def test_guided_answer_is_looked_up_before_it_is_parsed() -> None:
    written = {"{'route': 'a'}": "code"}

    assert read_text(said("{'route': 'a'}"), NAMES, written, qwen()).name == "code"


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        pytest.param(said("{'route': 'cooking'}"), Reason.UNKNOWN_ROUTE, id="unknown"),
        pytest.param(said("no idea"), Reason.UNPARSABLE_ANSWER, id="unparsable"),
        pytest.param(TextOutput(()), Reason.UNPARSABLE_ANSWER, id="empty"),
        pytest.param(TextOutput((-1, 10**9)), Reason.UNPARSABLE_ANSWER, id="impossible ids"),
        pytest.param(LabelLogits((1.0,)), Reason.UNPARSABLE_ANSWER, id="logits"),
    ],
)
def test_problem_of_a_text_is_named(output: ModelOutput, problem: Reason) -> None:
    answer = read_text(output, NAMES, {}, qwen())

    assert (answer.name, answer.candidates, answer.problem) == ("", (), problem)
