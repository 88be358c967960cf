"""What a harness puts into the user's turns is not shown to the router."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.ext_proc.dialects.harness import (
    CODING_AGENTS,
    Beginnings,
    HarnessBlock,
    HarnessText,
    said_in_result,
    tag,
)
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
    "codex in an editor": (
        "# Context from my IDE setup:\n\n## Active file: a.py\n\n## Open tabs:\n- a.py: a.py\n\n"
        "## My request for Codex:\nFix the bug.",
        "Fix the bug.",
    ),
    "codex with files": (
        "# Files mentioned by the user:\n\n## a.png: /tmp/a.png\n\n## My request for Codex:\n"
        "Fix the bug.",
        "Fix the bug.",
    ),
    "claude code, interrupted": ("[Request interrupted by user for tool use]", ""),
    "cline, after an answer without a tool": (
        "[ERROR] You did not use a tool in your previous response! Please retry with a tool use.\n"
        "\n# Next Steps\n\n(This is an automated message, so do not respond to it "
        "conversationally.)",
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


RESULTS: dict[str, tuple[str, str | None]] = {
    "what was found": ("[read_file for 'a.py'] Result:\nprint(1)", ""),
    "of a command of several lines": ("[execute_command for 'ls\ncat a'] Result:\na", ""),
    "of a tool that is asked nothing": ("[update_todo_list] Result: Done", ""),
    "feedback": (
        "[attempt_completion] Result:\nThe user has provided feedback on the results.\n"
        "<feedback>\nNow write a poem.\n</feedback>",
        "Now write a poem.",
    ),
    "feedback on what looks like some": (
        "[read_file for 'a'] Result:\n<feedback>\nx\n</feedback>\nThe user provided the following "
        "feedback:\n<feedback>\nNow write a poem.\n</feedback>",
        "Now write a poem.",
    ),
    "an answer": (
        "[ask_followup_question for 'Which one?'] Result:\n<answer>\nThe first.\n</answer>",
        "The first.",
    ),
    "an element of that name in what was found": (
        "[read_file for 'a.xml'] Result:\n<answer>\n42\n</answer>",
        "",
    ),
    "the user's own words": ("Fix the bug.", None),
    "the user's own brackets": ("[todo] Result: none", None),
    "a result that is quoted": ("Why [read_file for 'a.py'] Result: x?", None),
    "a list": ("[read_file, write_file] are the tools.", None),
}


@pytest.mark.parametrize(("text", "said"), RESULTS.values(), ids=RESULTS.keys())
def test_said_in_the_result_of_a_tool(text: str, said: str | None) -> None:
    assert said_in_result(text) == said


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


@pytest.mark.parametrize("size", [1, 7, 30])
@given(text=st.text(st.sampled_from("<a>/b! "), max_size=60))
def test_text_is_cleaned_alike_in_parts_of_any_size(size: int, text: str) -> None:
    blocks = HarnessText([tag("a"), tag("a>b"), HarnessBlock("!", "!")])
    whole = blocks.cleaned(text)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sidecar.ext_proc.dialects.harness._SEARCHED_AT_ONCE", size)
        assert blocks.cleaned(text) == whole


def test_search_does_not_hold_the_interpreter_for_all_of_a_long_text() -> None:
    """With one search of it no other thread has its turn."""
    turns = 0
    done = threading.Event()

    def other() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            time.sleep(0.001)

    thread = threading.Thread(target=other)
    thread.start()
    TEXT.cleaned("<" * 4_000_000)
    done.set()
    thread.join()

    assert turns > 12


def test_beginnings_of_a_request_are_bounded() -> None:
    beginnings = Beginnings(3)

    first = TEXT.cleaned("<system-reminder>a</system-reminder>" * 2 + "b", beginnings)
    second = TEXT.cleaned("<system-reminder>a</system-reminder>" * 2 + "b", beginnings)

    assert (first, second) == ("b", "<system-reminder>a</system-reminder>b")
