"""What a harness puts into the user's turns is not shown to the router."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.ext_proc.dialects.harness import CODING_AGENTS, HarnessBlock, HarnessText, tag
from tests.ext_proc.dialects.requests import PROPERTY

TEXT = HarnessText(CODING_AGENTS)

STRIPPED: dict[str, tuple[str, str]] = {
    "nothing to strip": (" Fix the bug. ", " Fix the bug. "),
    "claude code": (
        "<system-reminder>\nToday is Monday.\n</system-reminder>\nFix the bug.",
        "Fix the bug.",
    ),
    "several, around": (
        "<command-name>/init</command-name>Fix <system-reminder>a</system-reminder>the bug."
        "<system-reminder>b</system-reminder>",
        "Fix the bug.",
    ),
    "codex": (
        "# AGENTS.md instructions for /src\n\n<INSTRUCTIONS>\nUse tabs.\n</INSTRUCTIONS>\n\n"
        "<environment_context>\n  <cwd>/src</cwd>\n</environment_context>",
        "",
    ),
    "cline": (
        "<task>\nFix the bug.\n</task>\n<environment_details>\nVisible files\n"
        "</environment_details>",
        "<task>\nFix the bug.\n</task>",
    ),
    "a block that does not end": (
        "What does <system-reminder> mean?",
        "What does <system-reminder> mean?",
    ),
    "an end without a beginning": ("What is </system-reminder>?", "What is </system-reminder>?"),
    "a block that does not end before one that does": (
        "<system-reminder> <user_info>Linux</user_info> Hi",
        "<system-reminder>  Hi",
    ),
    "another case": (
        "<System-Reminder>a</System-Reminder>",
        "<System-Reminder>a</System-Reminder>",
    ),
}


@pytest.mark.parametrize(("text", "kept"), STRIPPED.values(), ids=STRIPPED.keys())
def test_cleaned(text: str, kept: str) -> None:
    assert TEXT.cleaned(text) == kept


def test_of_two_that_begin_alike_the_longer_beginning_counts() -> None:
    text = HarnessText([HarnessBlock("[[", "]]"), HarnessBlock("[[note", "note]]")])

    assert text.cleaned("[[note ]] x note]]kept") == "kept"


def test_no_blocks_leave_everything() -> None:
    assert HarnessText([]).cleaned("<system-reminder>a</system-reminder>") != ""


@pytest.mark.parametrize(("begin", "end"), [("", "x"), ("x", ""), ("x" * 65, "y")])
def test_a_block_needs_a_beginning_and_an_end(begin: str, end: str) -> None:
    with pytest.raises(ValueError, match="1 to 64 characters"):
        HarnessBlock(begin, end)


pieces = st.lists(
    st.sampled_from(["<a>", "</a>", "<b>", "</b>", "x", " ", "<", "\n"]), max_size=30
).map("".join)


@PROPERTY
@given(pieces)
def test_what_is_kept_is_a_subsequence_without_whole_blocks(text: str) -> None:
    kept = HarnessText([tag("a"), tag("b")]).cleaned(text)

    remaining = iter(text)
    assert all(character in remaining for character in kept)
    assert len(kept) <= len(text)


def test_many_beginnings_without_an_end_are_read_once() -> None:
    """Quadratic work on this text would take minutes and meet the limit of every test."""
    text = "<system-reminder>" * 200_000

    assert TEXT.cleaned(text) == text
