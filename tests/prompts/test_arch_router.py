from __future__ import annotations

import json
from functools import cache

import pytest

from sidecar.core.conversation import Message, Role
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import TextAnswer, TextOutput
from sidecar.prompts import FORMATS, get_format
from sidecar.prompts.arch_router import ARCHGW_V1, AnswerStyle, ArchRouterFormat, upstream_trim
from sidecar.prompts.budget import GAP
from tests.prompts.samples import CODING, conversation_of, policy_of
from tests.prompts.vocabularies import qwen

PLAIN = get_format("arch-router/archgw-v1")


def shown(max_tokens: int, *turns: tuple[str, str]) -> tuple[list[tuple[str, str]], bool, int]:
    """The turns in the prompt, whether it is truncated, and its tokens."""
    compiled = PLAIN.compile(policy_of(CODING), qwen(), max_tokens)
    prompt = compiled.render(conversation_of(*turns))
    text, _, _ = qwen().decode(prompt.suffix_ids).partition("\n</conversation>")
    messages = [(turn["role"], turn["content"]) for turn in json.loads(text)]
    return messages, prompt.truncated, len(prompt.prefix_ids) + len(prompt.suffix_ids)


@cache
def static() -> int:
    """Tokens of a prompt without its conversation."""
    asked = len(qwen().encode('[{"role":"user","content":"hi"}]\n'))
    return shown(8192, ("user", "hi"))[2] - asked


def test_answer_is_guided_to_the_routes_and_other_in_the_models_own_style() -> None:
    compiled = PLAIN.compile(policy_of({"a": "x", "user's": "y", "back\\s": "z"}), qwen(), 4096)

    assert compiled.answer_form == TextAnswer(
        guide=(
            "root ::= \"{'route': 'a'}\" | "
            r""""{'route': \"user's\"}" | """
            r""""{'route': 'back\\\\s'}" | """
            "\"{'route': 'other'}\""
        ),
        # A byte a token, and the end token.
        max_tokens=len(r"{'route': 'back\\s'}") + 1,
    )


def test_answer_style_is_a_property_of_the_format() -> None:
    json_style = ArchRouterFormat("json", ARCHGW_V1, answer_style=AnswerStyle.JSON)

    form = json_style.compile(policy_of({"a": "x"}), qwen(), 4096).answer_form

    assert isinstance(form, TextAnswer)
    assert form.guide == r'root ::= "{\"route\": \"a\"}" | "{\"route\": \"other\"}"'


@pytest.mark.parametrize("name", ['it\'s "quoted"', "{'route': 'a'}", "line\nbreak", "日本", "\\n"])
def test_guided_answer_is_read_back_whatever_the_name(name: str) -> None:
    compiled = PLAIN.compile(policy_of({name: "x", "a": "y"}), qwen(), 4096)

    ids = tuple(qwen().encode(AnswerStyle.PYTHON.write(name)))

    assert compiled.read(TextOutput(ids)).name == name


TURNS = [("user", "one"), ("assistant", "two " * 60), ("user", "three " * 60)]


def test_everything_is_shown_that_just_fits() -> None:
    whole = shown(8192, *TURNS)

    assert whole[:2] == (TURNS, False)
    assert shown(whole[2], *TURNS) == whole


def test_oldest_turns_go_first() -> None:
    _, _, tokens = shown(8192, *TURNS)

    messages, truncated, _ = shown(tokens - 1, *TURNS)

    assert (messages, truncated) == (TURNS[1:], True)


def test_newest_user_message_is_cut_in_the_middle() -> None:
    words = " ".join(f"word{number}" for number in range(5000))

    [(role, text)], truncated, tokens = shown(static() + 200, ("assistant", "old"), ("user", words))

    head, gap, tail = text.partition(GAP)
    assert (role, bool(gap), truncated) == ("user", True, True)
    assert words.startswith(head)
    assert words.endswith(tail)
    assert static() + 180 < tokens <= static() + 200


def test_text_that_grows_when_escaped_stays_within_the_budget() -> None:
    [(_, text)], truncated, tokens = shown(static() + 100, ("user", '"\\\x01\n' * 1000))

    assert truncated is True
    assert len(text) > 10
    assert static() + 60 < tokens <= static() + 100


def test_many_small_messages_are_not_read_beyond_the_budget() -> None:
    messages, truncated, tokens = shown(static() + 100, *([("user", "a")] * 100_000))

    assert truncated is True
    assert len(messages) > 5
    assert tokens <= static() + 100


def test_policy_that_leaves_no_room_is_too_large_with_the_numbers() -> None:
    with pytest.raises(
        SidecarError, match=rf"takes {static()} of {static() + 63} tokens"
    ) as caught:
        PLAIN.compile(policy_of(CODING), qwen(), static() + 63)

    assert caught.value.code is ErrorCode.POLICY_TOO_LARGE


def test_upstream_rule_counts_bytes_and_keeps_the_user_message_that_overflows() -> None:
    def user(text: str) -> Message:
        return Message(Role.USER, text)

    def assistant(text: str) -> Message:
        return Message(Role.ASSISTANT, text)

    messages = [user("12345678"), assistant("é" * 4), user("123"), assistant("1234")]
    # A template of 40 bytes counts 10; then 1, 0 (3 bytes), 2 (8 bytes of 4 characters), 2.
    kept = {limit: len(upstream_trim(messages, limit, 40)) for limit in (10, 11, 12, 13, 14, 15)}

    assert kept == {10: 1, 11: 2, 12: 2, 13: 4, 14: 4, 15: 4}


def test_upstream_rule_is_a_mode_and_the_budget_holds_all_the_same() -> None:
    trimmed = get_format("arch-router/archgw-v1+upstream-trim")
    compiled = trimmed.compile(policy_of(CODING), qwen(), static() + 100)

    prompt = compiled.render(conversation_of(("user", "old"), ("user", "word " * 10_000)))

    assert prompt.truncated is True
    assert len(prompt.prefix_ids) + len(prompt.suffix_ids) <= static() + 100


def test_upstream_rule_drops_what_the_budget_would_keep() -> None:
    trimmed = get_format("arch-router/archgw-v1+upstream-trim")
    turns = conversation_of(("assistant", "old"), ("user", "word " * 2000))

    texts = [
        qwen().decode(one.compile(policy_of(CODING), qwen(), 8192).render(turns).suffix_ids)
        for one in (PLAIN, trimmed)
    ]

    assert ["old" in text for text in texts] == [True, False]


def test_names_of_the_formats() -> None:
    assert list(FORMATS) == [
        "compact-v1",
        "arch-router/archgw-v1",
        "arch-router/archgw-v1+upstream-trim",
        "arch-router/model-card",
        "arch-router/archgw-v1+hardened",
        "arch-router/archgw-v1+hardened+upstream-trim",
        "arch-router/model-card+hardened",
        "arch-router/archgw-v1+skeleton",
        "arch-router/model-card+skeleton",
        "arch-router/archgw-v1+hardened+skeleton",
        "arch-router/model-card+hardened+skeleton",
    ]
    assert all(one.name == name for name, one in FORMATS.items())


def test_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(SidecarError, match="'compact-v0' does not exist; take one of compact-v1, "):
        get_format("compact-v0")
