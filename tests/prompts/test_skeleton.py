"""The beginning of Arch-Router's answers in the prompt, to the id."""

from __future__ import annotations

import math

import pytest

from sidecar.core.decision import Reason
from sidecar.core.model import Answer, TextAnswer, TextOutput
from sidecar.prompts import get_format
from sidecar.prompts.arch_router import ARCHGW_V1, AnswerStyle, ArchRouterFormat, ArchRouterPrompt
from tests.conformance.arch_router import Case, case_id, conversation_in, load, policy_in
from tests.prompts.samples import CODING, THREE_TURNS, policy_of
from tests.prompts.vocabularies import qwen

# `{'`, `route`, `':`, ` '` and `{"`, `route`, `":`, ` "` of Qwen2.5's vocabulary.
SKELETONS = {
    AnswerStyle.PYTHON: ("{'route': '", (13608, 8966, 1210, 364)),
    AnswerStyle.JSON: ('{"route": "', (4913, 8966, 788, 330)),
}
ROUTER_CASES = [each for each in load("prompt_cases.json") if "plano" not in each["prompt_version"]]


def compiled(*names: str, style: AnswerStyle = AnswerStyle.PYTHON) -> ArchRouterPrompt:
    begun = ArchRouterFormat("begun", ARCHGW_V1, answer_style=style, skeleton=True)
    return begun.compile(policy_of(dict.fromkeys(names, "x")), qwen(), 4096)


def form_of(prompt: ArchRouterPrompt) -> TextAnswer:
    assert isinstance(prompt.answer_form, TextAnswer)
    return prompt.answer_form


@pytest.mark.parametrize("style", AnswerStyle)
def test_ids_are_those_that_the_answer_itself_would_begin_with(style: AnswerStyle) -> None:
    text, ids = SKELETONS[style]
    assert tuple(qwen().encode(text)) == ids
    suffix = compiled("code", style=style).render(THREE_TURNS).suffix_ids
    assert suffix[-len(ids) :] == ids
    assert qwen().decode(suffix).endswith(f"<|im_start|>assistant\n{text}")


@pytest.mark.parametrize("case", ROUTER_CASES, ids=case_id)
@pytest.mark.parametrize("name", ["arch-router/archgw-v1", "arch-router/model-card+hardened"])
def test_everything_before_it_is_as_without(case: Case, name: str) -> None:
    policy, conversation = policy_in(case), conversation_in(case)
    plain, begun = (
        get_format(each).compile(policy, qwen(), 8192).render(conversation)
        for each in (name, f"{name}+skeleton")
    )
    ids = SKELETONS[AnswerStyle.PYTHON][1]
    assert begun.prefix_ids == plain.prefix_ids
    assert begun.suffix_ids == (*plain.suffix_ids, *ids)


@pytest.mark.parametrize("case", ROUTER_CASES, ids=case_id)
@pytest.mark.parametrize("name", ["arch-router/archgw-v1", "arch-router/model-card+hardened"])
def test_with_the_rest_it_is_what_a_free_answer_would_make_of_the_prompt(
    case: Case, name: str
) -> None:
    """To the id, for every answer that the case allows. So whatever the model thinks of a route's
    name after the beginning is what it would think had it written the beginning itself."""
    policy, conversation = policy_in(case), conversation_in(case)
    free, begun = (
        get_format(each).compile(policy, qwen(), 8192) for each in (name, f"{name}+skeleton")
    )
    asked, told = free.render(conversation), begun.render(conversation)
    opening = SKELETONS[AnswerStyle.PYTHON][1]
    form = begun.answer_form
    assert isinstance(form, TextAnswer)
    for route in (*(route.name for route in policy.routes), "other"):
        answer = tuple(qwen().encode(AnswerStyle.PYTHON.write(route)))
        rest = answer[len(opening) :]
        assert (*asked.suffix_ids, *answer) == (*told.suffix_ids, *rest)
        # And the tokens that are still asked for tell the name.
        assert begun.read(TextOutput(rest[: form.max_tokens])).name == route


GOLDEN = [
    (case_id(each), each.get("expected_raw_output") or each["expected_message"]["content"])
    for each in load("golden_model_outputs.json")
    if "expected_raw_output" in each or "expected_message" in each
]


@pytest.mark.parametrize(("case", "written"), GOLDEN, ids=[case for case, _ in GOLDEN])
def test_answers_that_the_served_model_was_seen_to_write_begin_so(case: str, written: str) -> None:
    text, ids = SKELETONS[AnswerStyle.PYTHON]
    assert written.startswith(text)
    assert tuple(qwen().encode(written))[: len(ids)] == ids


def test_the_model_was_seen_to_write_as_many_tokens_as_the_tokenizer_splits() -> None:
    """Where the server counted them, the end token included: no sign of another split."""
    [counted] = [each for each in load("golden_model_outputs.json") if "eval_count" in each]
    assert len(qwen().encode(counted["expected_raw_output"])) + 1 == counted["eval_count"]


def test_the_guide_admits_what_is_left() -> None:
    form = form_of(compiled("code", "it's"))
    # The second name makes Python write other quotes: the answers share no beginning.
    assert form.guide.startswith("root ::= \"{'route': 'code'}\"")
    assert form_of(compiled("code")).guide == 'root ::= "code\'}" | "other\'}"'


@pytest.mark.parametrize(
    ("names", "tokens"),
    [
        (("billing", "travel"), 1),
        (("code_generation", "code_review"), 2),
        # Only what follows the name tells.
        (("code", "code_review"), 2),
        (("plan a", "plan b", "plan b2"), 3),
    ],
)
def test_no_more_is_said_than_tells_the_names_apart(names: tuple[str, ...], tokens: int) -> None:
    prompt = compiled(*names)
    assert form_of(prompt).max_tokens == tokens
    for name in (*names, "other"):
        ids = qwen().encode(f"{{'route': '{name}'}}")[4:]
        answer = prompt.read(TextOutput(tuple(ids[:tokens]), (-0.1,) * len(ids[:tokens])))
        assert answer.name == name
        likely = answer.candidates[0].probability
        assert likely == pytest.approx(math.exp(-0.1 * len(ids[:tokens])))


def test_names_of_a_policy_are_read_at_its_length_whatever_their_script() -> None:
    names = ("日本語の翻訳", "日本の旅行", "🙂 smile", "🙃 smile", "Übersetzung")
    prompt = compiled(*names)
    for name in names:
        ids = qwen().encode(f"{{'route': '{name}'}}")[4:]
        assert prompt.read(TextOutput(tuple(ids[: form_of(prompt).max_tokens]))).name == name


@pytest.mark.parametrize("name", ["'quoted'", "'}", "it's", "\\n", '"'])
def test_a_policy_whose_names_would_be_split_otherwise_is_asked_for_whole_answers(
    name: str,
) -> None:
    prompt, plain = compiled("code", name), compiled_plain("code", name)
    assert prompt.answer_form == plain.answer_form
    assert prompt.render(THREE_TURNS) == plain.render(THREE_TURNS)
    whole = tuple(qwen().encode(AnswerStyle.PYTHON.write(name)))
    assert prompt.read(TextOutput(whole)).name == name


def compiled_plain(*names: str) -> ArchRouterPrompt:
    plain = ArchRouterFormat("plain", ARCHGW_V1)
    return plain.compile(policy_of(dict.fromkeys(names, "x")), qwen(), 4096)


def read(text: str) -> Answer:
    prompt = get_format("arch-router/archgw-v1+skeleton").compile(policy_of(CODING), qwen(), 4096)
    return prompt.read(TextOutput(tuple(qwen().encode(text))))


@pytest.mark.parametrize(
    ("text", "name", "problem"),
    [
        ("code_review'}", "code_review", None),
        ("code_r", "code_review", None),
        # A server without grammars may say more.
        ("Code Review'}\nBecause", "code_review", None),
        ("code_", "", Reason.UNKNOWN_ROUTE),
        ("cooking'}", "", Reason.UNKNOWN_ROUTE),
        ("", "", Reason.UNPARSABLE_ANSWER),
    ],
)
def test_what_is_left_of_an_answer_is_read(text: str, name: str, problem: Reason | None) -> None:
    answer = read(text)
    assert (answer.name, answer.problem) == (name, problem)
    assert answer.text in ("", f"{{'route': '{text}")
