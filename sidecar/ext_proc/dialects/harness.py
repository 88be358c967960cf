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
    # Codex CLI: codex-rs/core, environment_context.rs and user_instructions.rs.
    tag("environment_context"),
    tag("user_instructions"),
    HarnessBlock("# AGENTS.md instructions for ", "</INSTRUCTIONS>"),
    tag("permissions instructions"),
    tag("turn_aborted"),
    # Cline and Roo Code.
    tag("environment_details"),
    # GitHub Copilot Chat.
    tag("environment_info"),
    tag("workspace_info"),
    tag("editorContext"),
    tag("reminderInstructions"),
    tag("reminder"),
    # Cursor.
    tag("additional_data"),
    tag("user_info"),
    tag("open_and_recently_viewed_files"),
    # Pochi and forks of Cline.
    tag("user-reminder"),
)


class HarnessText:
    """Removes harness blocks, in time linear in the text."""

    def __init__(self, blocks: Iterable[HarnessBlock]) -> None:
        # Of two that begin alike the longer beginning is the one that is meant.
        self._ends = {block.begin: block.end for block in blocks}
        begins = sorted(self._ends, key=len, reverse=True)
        self._begin = re.compile("|".join(map(re.escape, begins))) if begins else None

    def cleaned(self, text: str) -> str:
        """`text` without the blocks and the blanks around it; untouched if it has none."""
        found = self._begin.search(text) if self._begin else None
        if self._begin is None or found is None:
            return text
        kept: list[str] = []
        position = 0
        endless: set[str] = set()
        while found is not None:
            end_mark = self._ends[found[0]]
            end = -1 if end_mark in endless else text.find(end_mark, found.end())
            if end < 0:
                # None follows this one, so none follows a later one: not looked for again.
                endless.add(end_mark)
                found = self._begin.search(text, found.end())
                continue
            kept.append(text[position : found.start()])
            position = end + len(end_mark)
            found = self._begin.search(text, position)
        kept.append(text[position:])
        return "".join(kept).strip()
