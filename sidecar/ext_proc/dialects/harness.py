"""Text that a harness, such as a coding agent, puts into the user's turns.

It describes the machine and the agent's rules, changes from call to call and is often longer than
what the user wrote: the router should read what the user asked.

Patterns are literal beginnings and ends instead of regular expressions: the texts come from
clients, and a regular expression with a lazy `.*?` takes quadratic time on a text that begins many
blocks and ends none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MAX_CHARS = 64

_SEARCHED_AT_ONCE = 128 * 1024
"""Characters. A search holds the interpreter, and with it the event loop: for a tenth of a second
per megabyte of nothing but `<`, which compresses to a kilobyte."""


@dataclass(frozen=True, slots=True)
class HarnessBlock:
    """Everything from `begin` to the next `end`, both included. A block that does not end is kept:
    it may be the user's own words about one.

    Raises:
        ValueError: a text that is empty or longer than `MAX_CHARS`.
    """

    begin: str
    end: str

    def __post_init__(self) -> None:
        for text in (self.begin, self.end):
            if not 0 < len(text) <= MAX_CHARS:
                raise ValueError(
                    f"a harness block begins and ends with 1 to {MAX_CHARS} characters, "
                    f"not with {len(text)}"
                )


def tag(name: str) -> HarnessBlock:
    """The element `<name>…</name>`."""
    return HarnessBlock(f"<{name}>", f"</{name}>")


CODING_AGENTS: tuple[HarnessBlock, ...] = (
    # Claude Code, opencode and others that follow it.
    tag("system-reminder"),
    tag("local-command-caveat"),
    tag("local-command-stdout"),
    tag("local-command-stderr"),
    tag("command-name"),
    tag("command-message"),
    tag("user-prompt-submit-hook"),
    tag("task-notification"),
    tag("bash-stdout"),
    tag("bash-stderr"),
    tag("ide_opened_file"),
    HarnessBlock("[Request interrupted by user", "]"),
    # Codex CLI and its editors.
    tag("environment_context"),
    tag("user_instructions"),
    HarnessBlock("# AGENTS.md instructions for ", "</INSTRUCTIONS>"),
    tag("permissions instructions"),
    tag("skills_instructions"),
    tag("turn_aborted"),
    tag("subagent_notification"),
    tag("user_shell_command"),
    # What follows is the user's own.
    HarnessBlock("# Context from my IDE setup:", "## My request for Codex:"),
    HarnessBlock("# Files mentioned by the user:", "## My request for Codex:"),
    # Cline and Roo Code.
    tag("environment_details"),
    HarnessBlock(
        "[ERROR] You did not use a tool in your previous response",
        "so do not respond to it conversationally.)",
    ),
    # GitHub Copilot Chat.
    tag("environment_info"),
    tag("workspace_info"),
    tag("editorContext"),
    tag("reminderInstructions"),
    # Cursor.
    tag("system_reminder"),
    tag("additional_data"),
    tag("user_info"),
    tag("open_and_recently_viewed_files"),
    tag("git_status"),
    tag("agent_transcripts"),
    tag("agent_skills"),
    # Pochi and forks of Cline.
    tag("user-reminder"),
)

_RESULT = re.compile(r"\[([a-z]+(?:_[a-z]+)+)[ \]]")
_RESULT_ENDS = "] Result:"
_MAX_RESULT_HEAD = 16 * 1024
"""Characters; a command or a question can stand in it."""
_ANSWERED = {"ask_followup_question": "answer", "plan_mode_respond": "user_message"}


def said_in_result(text: str) -> str | None:
    """What the user has said in the result of a tool, empty if nothing; None if `text` is none.

    Cline, Roo Code and others made of them have tools for models that cannot call any: the results
    come as the user's messages, `[read_file for 'a.py'] Result:` and then what the tool found. An
    answer of the user, or a word to what was done, stands in an element at its end.
    """
    tool = _RESULT.match(text)
    if tool is None or text.find(_RESULT_ENDS, 0, _MAX_RESULT_HEAD) < 0:
        return None
    name = _ANSWERED.get(tool[1], "feedback")
    _, begun, said = text.rpartition(f"<{name}>\n")
    words, ended, _ = said.rpartition(f"\n</{name}>")
    return words.strip() if begun and ended else ""


@dataclass(slots=True)
class Beginnings:
    """How many more beginnings of blocks are looked at in a request: each takes microseconds, and
    millions of them compress to some kilobytes. What stands behind them is kept."""

    left: int = 32_768


class HarnessText:
    """Removes harness blocks, in time linear in the text."""

    def __init__(self, blocks: Iterable[HarnessBlock]) -> None:
        self._ends = {block.begin: block.end for block in blocks}
        # One pattern for each first character, which the regular expression then looks for as fast
        # as memory is read; with several it would look at each character of the text by itself.
        by_first: dict[str, list[str]] = {}
        for begin in self._ends:
            by_first.setdefault(begin[0], []).append(begin)
        self._begins = [_any_of(begins) for begins in by_first.values()]

    def cleaned(self, text: str, beginnings: Beginnings | None = None) -> str:
        """`text` without the blocks and the blanks around it; untouched if it has none."""
        beginnings = beginnings or Beginnings()
        found = {begin: _search(begin, text, 0) for begin in self._begins}
        if not any(found.values()):
            return text
        kept: list[str] = []
        position = 0
        endless: set[str] = set()
        while (first := _first(found.values())) is not None and beginnings.left > 0:
            beginnings.left -= 1
            end_mark = self._ends[first[0]]
            # Where none follows one block, none follows a later one: it is not looked for again.
            end = -1 if end_mark in endless else text.find(end_mark, first.end())
            if end < 0:
                endless.add(end_mark)
                after = first.end()
            else:
                kept.append(text[position : first.start()])
                after = position = end + len(end_mark)
            for begin, match in found.items():
                if match is not None and match.start() < after:
                    found[begin] = _search(begin, text, after)
        if position == 0:
            return text
        kept.append(text[position:])
        return "".join(kept).strip()


def _any_of(begins: list[str]) -> re.Pattern[str]:
    # Of two that begin alike the longer one is the one that is meant.
    rest = sorted((begin[1:] for begin in begins), key=len, reverse=True)
    return re.compile(re.escape(begins[0][0]) + f"(?:{'|'.join(map(re.escape, rest))})")


def _search(begin: re.Pattern[str], text: str, start: int) -> re.Match[str] | None:
    for at in range(start, len(text), _SEARCHED_AT_ONCE):
        behind = at + _SEARCHED_AT_ONCE
        match = begin.search(text, at, behind + MAX_CHARS)
        # One that begins later may be cut off.
        if match is not None and match.start() < behind:
            return match
    return None


def _first(matches: Iterable[re.Match[str] | None]) -> re.Match[str] | None:
    return min(
        (match for match in matches if match is not None),
        key=lambda match: match.start(),
        default=None,
    )
