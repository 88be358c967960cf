import io

import pytest
from rich.console import Console

from sidecar.cli.decision_view import Row, print_decision, table
from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import (
    Candidate,
    Decision,
    Excluded,
    Explanation,
    PolicyRef,
    Reason,
    Source,
    StepTime,
)
from sidecar.core.policy import Model

MODEL = Model("anthropic/claude-haiku-4-5", "claude-haiku-4-5", "anthropic", "api.anthropic.com")
PROMPT = "<|im_start|>system\n" + "a long line without any break " * 8


def decision(
    route: str = "code_generation",
    source: Source = Source.MODEL,
    reason: Reason = Reason.MATCHED,
    explanation: Explanation | None = None,
) -> Decision:
    return Decision(
        id="d1",
        route=route,
        model=MODEL,
        fallbacks=(Model("openai/gpt-5.5", "gpt-5.5"),),
        source=source,
        reason=reason,
        detail="The routing model chose it.",
        policy=PolicyRef("namespaces/default/policies/default", 3, "sha256:0"),
        prompt_format="compact-v1",
        routing_model="tiny",
        confidence=0.87 if source is Source.MODEL else None,
        candidates=(Candidate("code_generation", 0.87), Candidate("other", 0.13)),
        steps=(StepTime("model", 51.0), StepTime("total", 52.4)),
        explanation=explanation,
    )


def conversation(*texts: str) -> Conversation:
    return Conversation(tuple(Message(Role.USER, text) for text in texts))


def shown(rows: list[Row], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table(rows, console))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_a_table_fits_and_keeps_names_whole(width: int) -> None:
    long = "Could you please have a look at this rather long message " * 5
    rows = [
        Row(conversation("first", long), decision(), expected="code_generation"),
        Row(conversation(long), decision(), expected="general_knowledge"),
        Row(
            conversation("bye"),
            decision("", Source.FALLBACK, Reason.DEADLINE_EXCEEDED),
            expected="",
        ),
    ]
    text = shown(rows, width)
    assert all(len(line) <= width for line in text.splitlines())
    for part in (
        "✓ code_generation",
        "✗ code_generation",
        "not general_knowledge",
        "✓ (default)",
        "claude-haiku-4-5",
        "0.87",
        "52",
        "fallback",
        "deadline",
    ):
        assert part in text


def test_the_newest_user_message_is_the_one_shown() -> None:
    text = shown([Row(conversation("oldest words", "newest\nwords"), decision())], 80)
    assert "newest words" in text
    assert "oldest" not in text


def test_marks_are_words_where_the_terminal_has_no_unicode() -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    console = Console(file=output, width=80)
    rows = [Row(conversation("a"), decision(), expected) for expected in ("code_generation", "x")]
    console.print(table(rows, console))
    output.seek(0)
    text = output.read()
    assert "ok code_generation" in text
    assert "no code_generation" in text


def test_nothing_is_marked_right_or_wrong_where_nothing_is_expected() -> None:
    text = shown([Row(conversation("a"), decision())], 120)
    assert "✓" not in text
    assert "✗" not in text


def test_a_decision_is_shown_with_model_route_source_and_time() -> None:
    console = Console(file=io.StringIO(), width=100)
    print_decision(decision(), console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for part in (
        "anthropic/claude-haiku-4-5  (claude-haiku-4-5 at api.anthropic.com)",
        "openai/gpt-5.5",
        "code_generation",
        "0.87",
        "model, matched: The routing model chose it.",
        "revision 3",
        "tiny, compact-v1",
        "model 51.0, total 52.4",
    ):
        assert part in text


def test_an_explanation_has_candidates_what_was_passed_over_and_the_exact_prompt() -> None:
    explanation = Explanation(
        prompt=PROMPT,
        prompt_tokens=300,
        prefix_tokens=250,
        truncated=True,
        excluded=(Excluded("openai/gpt-5.5", "It cannot read images."),),
        answer="generation",
    )
    console = Console(file=io.StringIO(), width=80)
    print_decision(decision(explanation=explanation), console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for part in (
        "87.0% code_generation",
        "13.0% other",
        "openai/gpt-5.5: It cannot read images.",
        "300 tokens, 250 of them the policy's, shortened to fit",
        PROMPT.strip(),
    ):
        assert part in text
