"""Answers of the model, read as upstream's tests want them read, save for the table below."""

from __future__ import annotations

import pytest

from sidecar.core.decision import Reason
from sidecar.core.model import TextOutput
from sidecar.core.policy import OTHER
from sidecar.prompts import get_format
from tests.conformance.arch_router import Case, case_id, load, policy_in
from tests.prompts.samples import policy_of
from tests.prompts.vocabularies import qwen

# Upstream calls each of these "no route" and an error alike ends in the default model here, but an
# operator must see the difference between a model that decides and one that does not work.
DELIBERATE = {
    "v1_case_4.1_empty_string": (
        Reason.UNPARSABLE_ANSWER,
        "a model that says nothing has not decided anything",
    ),
    "orch_case_5.1_empty_string": (
        Reason.UNPARSABLE_ANSWER,
        "a model that says nothing has not decided anything",
    ),
    "orch_case_8_unknown_route": (
        Reason.UNKNOWN_ROUTE,
        "a route that the policy does not have is a labelled fallback, not a decision",
    ),
}

# Of several routes the first counts, as upstream has it where it routes to a model.
FIRST_OF_SEVERAL = "routes"


def read(text: str, case: Case) -> tuple[str, Reason | None]:
    """Name and problem of the answer `text`."""
    compiled = get_format("arch-router/archgw-v1").compile(policy_in(case), qwen(), 4096)
    answer = compiled.read(TextOutput(tuple(qwen().encode(text))))
    return answer.name, answer.problem


@pytest.mark.parametrize("case", load("decision_cases.json"), ids=case_id)
def test_answer_is_read_as_upstream_reads_it(case: Case) -> None:
    expected = case["expected"]

    name, problem = read(case["raw_model_output"], case)

    if case["case"] in DELIBERATE:
        assert (name, problem) == ("", DELIBERATE[case["case"]][0])
    elif expected["status"] == "error":
        assert name == ""
        assert problem is not None
    elif expected["status"] == "no_route":
        assert (name, problem) == (OTHER, None)
    elif FIRST_OF_SEVERAL in expected:
        assert (name, problem) == (expected[FIRST_OF_SEVERAL][0]["route"], None)
    else:
        assert (name, problem) == (expected["route"], None)


def test_deliberate_differences_name_cases_that_exist() -> None:
    assert set(DELIBERATE) <= {case["case"] for case in load("decision_cases.json")}


@pytest.mark.parametrize(
    "output",
    [
        case.get("expected_raw_output") or case["expected_message"]["content"]
        for case in load("golden_model_outputs.json")
        if "expected_parsed_route" not in case
    ],
)
def test_what_the_real_model_said_is_read_and_is_what_the_guide_admits(output: str) -> None:
    name = output.removeprefix("{'route': '").removesuffix("'}")
    compiled = get_format("arch-router/archgw-v1").compile(
        policy_of({"unlike": "x", name: "y"}), qwen(), 4096
    )

    assert compiled.read(TextOutput(tuple(qwen().encode(output)))).name == name
    assert f'"{output}"' in getattr(compiled.answer_form, "guide", "")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        pytest.param("""{'route': "user's question"}""", "user's question", id="apostrophe"),
        pytest.param('Sure: {"route": "code"}', "code", id="preamble"),
        pytest.param('{"route": "code"} is best', "code", id="text after it"),
        pytest.param("```\n{'route': 'code'}\n```", "code", id="plain fence"),
        pytest.param(' {"route": "Code "}', "code", id="case and blanks"),
    ],
)
def test_upstream_fails_on_these_and_the_sidecar_does_not(text: str, name: str) -> None:
    """archgw turned each of them into HTTP 500 or into no route."""
    compiled = get_format("arch-router/archgw-v1").compile(
        policy_of({"code": "writing code", "user's question": "questions"}), qwen(), 4096
    )

    answer = compiled.read(TextOutput(tuple(qwen().encode(text))))

    assert (answer.name, answer.problem) == (name, None)
