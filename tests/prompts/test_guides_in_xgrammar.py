"""Guides, read by the xgrammar that TensorRT-LLM 1.2.1 reads them with: one that it cannot compile
fails every request that the model server is working on.

Where xgrammar 0.1.32 is installed (`requirements/xgrammar.txt` says how); the sidecar does without.
"""

from __future__ import annotations

import importlib.util
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.prompts.answers import literal_guide
from sidecar.prompts.arch_router import AnswerStyle

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xgrammar") is None,
    reason="xgrammar is not installed: requirements/xgrammar.txt",
)

# Whatever could mean something to a grammar: quotes, escapes, operators, other scripts.
_LETTERS = string.ascii_letters + string.digits + " _-.\"'\\|()[]{}*+?:=<>#/&éßж中🙂"
NAMES = st.text(_LETTERS, min_size=1, max_size=20)


def accepts(guide: str, text: str) -> bool:
    import xgrammar  # type: ignore[import-not-found]
    from xgrammar.testing import _is_grammar_accept_string  # type: ignore[import-not-found]

    return bool(_is_grammar_accept_string(xgrammar.Grammar.from_ebnf(guide), text))


@given(st.lists(NAMES, min_size=1, max_size=6, unique=True), st.sampled_from(AnswerStyle), NAMES)
@settings(max_examples=60)
def test_a_guide_admits_its_answers_and_nothing_else(
    names: list[str], style: AnswerStyle, other: str
) -> None:
    answers = [style.write(name) for name in names]
    guide = literal_guide(answers)
    for answer in answers:
        assert accepts(guide, answer)
        assert not accepts(guide, answer[:-1])
        assert not accepts(guide, answer + "x")
    if other not in names:
        assert not accepts(guide, style.write(other))


# Names of routes and answers have no control characters (sidecar/policies/rules.py).
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
@settings(max_examples=60)
def test_any_text_without_control_characters_can_be_a_literal(text: str) -> None:
    assert accepts(literal_guide([text]), text)
