from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.decision import Reason
from sidecar.core.policy import OTHER
from sidecar.prompts.arch_router import AnswerStyle
from sidecar.prompts.parsing import find_route
from tests.prompts.samples import route_names, texts

NAMES = ("code_generation", "Image generation", "user's question", "日本 語", "x\\ny", OTHER)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{'route': 'code_generation'}", "code_generation"),
        ('{"route": "code_generation"}', "code_generation"),
        ('{"route":"Image generation"}\n\nBecause the user asks for it.', "Image generation"),
        ('Sure! The answer is {"route": "code_generation"}.', "code_generation"),
        ('```json\n{"route": "code_generation"}\n```', "code_generation"),
        ("```\ncode_generation\n```", "code_generation"),
        ("```code_generation```", "code_generation"),
        ("Here you are:\n```python\n{'route': 'code_generation'}\n```\n", "code_generation"),
        ("{'route': 'code_generation'}\\n", "code_generation"),
        ('{\\n  "route": "code_generation"\\n}', "code_generation"),
        ('```json\\n{"route": "code_generation"}\\n```', "code_generation"),
        ("code_generation", "code_generation"),
        (' "code_generation"\n', "code_generation"),
        ("`code_generation`.", "code_generation"),
        ("route: code_generation", "code_generation"),
        ("**Route:** `code_generation`", "code_generation"),
        ("The best route: Image generation\nIt fits.", "Image generation"),
        ('{"route": "code_generation"', "code_generation"),
        ("{route: code_generation}", "code_generation"),
        ('{"Route": "code_generation"}', "code_generation"),
        ('{"route": ["Image generation", "code_generation"]}', "Image generation"),
        ('["Image generation"]', "Image generation"),
        ('{"route": "code_generation", "why": "it says so"}', "code_generation"),
        ('{"route": "code_generation"} {"route": "code_generation"}', "code_generation"),
        ("""{'route': "user's question"}""", "user's question"),
        ("""{'route': 'user\\'s question'}""", "user's question"),
        ("""{'route': 'user's question'}""", "user's question"),
        ('{"route": "\\u65e5\\u672c \\u8a9e"}', "日本 語"),
        ("{'route': 'x\\ny'}", "x\\ny"),
    ],
)
def test_accepts_what_models_write(text: str, name: str) -> None:
    assert find_route(text, NAMES) == name


@pytest.mark.parametrize(
    "stated", ["code generation", "Code_Generation", "CODE-GENERATION", " code_generation "]
)
def test_case_and_joints_do_not_matter_when_one_name_is_left(stated: str) -> None:
    assert find_route(f"{{'route': '{stated}'}}", NAMES) == "code_generation"


def test_exact_name_comes_before_a_similar_one() -> None:
    assert find_route("Code", ("code", "Code")) == "Code"


def test_name_like_two_routes_is_unknown() -> None:
    assert find_route("{'route': 'CODE'}", ("code", "Code")) is Reason.UNKNOWN_ROUTE


@pytest.mark.parametrize(
    "text",
    ['{"route": "other"}', "other", "Other", "{}", '{"route": ""}', '{"route": null}',
     "{'route': None}", '{"route": []}', "```json\n{}\n```"],
)  # fmt: skip
def test_no_route_is_other(text: str) -> None:
    assert find_route(text, NAMES) == OTHER


@pytest.mark.parametrize(
    "text",
    ['{"route": "route_name"}', "route: cooking", '{"route": ["cooking"]}', '{"route": "cooking"'],
)
def test_name_that_no_route_has_is_unknown(text: str) -> None:
    assert find_route(text, NAMES) is Reason.UNKNOWN_ROUTE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "I cannot help with that.",
        "I think code_generation",
        '{"answer": "code_generation"}',
        '{"route": "code_generation"} {"route": "other"}',
        "not code_generation but Image generation",
    ],
)
def test_text_that_names_no_single_route_is_unparsable(text: str) -> None:
    assert find_route(text, NAMES) is Reason.UNPARSABLE_ANSWER


_fragments = st.sampled_from(
    ("{", "}", "[", "]", '"', "'", "route", ":", "\\", "\\n", "\\u12", "\\ud83d", "```", "null")
)


@given(st.lists(_fragments | texts, max_size=20).map("".join), st.lists(route_names, max_size=3))
def test_never_raises_and_never_invents_a_name(text: str, names: list[str]) -> None:
    known = [*names, OTHER]

    found = find_route(text, known)

    assert isinstance(found, Reason) or found in known


@given(st.lists(route_names, min_size=1, max_size=4, unique=True), st.sampled_from(AnswerStyle))
def test_reads_every_name_in_the_models_own_styles(names: list[str], style: AnswerStyle) -> None:
    # Without an apostrophe beside a quotation mark, which only the escapes tell apart.
    plain = [name for name in names if "\\" not in name and not {"'", '"'} & set(name)]
    for name in plain:
        assert find_route(style.write(name), [*names, OTHER]) == name
