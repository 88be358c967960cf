from __future__ import annotations

import pytest

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import LabelAnswer, LabelLogits
from sidecar.prompts import get_format
from sidecar.prompts.budget import GAP
from tests.prompts.samples import CODING, THREE_TURNS, conversation_of, policy_of
from tests.prompts.vocabularies import smollm2

COMPACT = get_format("compact-v1")


def rendered(*turns: tuple[str, str], max_tokens: int) -> tuple[str, bool, int]:
    """The suffix as text, whether it is truncated, and tokens of the whole prompt."""
    prompt = COMPACT.compile(policy_of(CODING), smollm2(), max_tokens).render(
        conversation_of(*turns)
    )
    text = smollm2().decode(prompt.suffix_ids)
    return text, prompt.truncated, len(prompt.prefix_ids) + len(prompt.suffix_ids)


def turn(role: str, text: str) -> str:
    return f"\n<|im_start|>{role}\n{text}<|im_end|>"


ASK = "\n<|im_start|>assistant\nRoute:"
STATIC = len(COMPACT.compile(policy_of(CODING), smollm2(), 2048).prefix_ids)


def test_exact_prompt() -> None:
    compiled = COMPACT.compile(policy_of(CODING), smollm2(), 2048)
    prompt = compiled.render(THREE_TURNS)

    assert smollm2().decode(prompt.prefix_ids + prompt.suffix_ids) == (
        "<|im_start|>system\n"
        "Choose the route for the user's latest request. Answer with its word.\n"
        "Routes:\n"
        "- generation (code_generation): writing new functions, scripts or tests\n"
        "- review (code_review): finding problems in existing code\n"
        "- travel (travel): planning trips and booking hotels\n"
        "- other: no route fits, or the request is finished<|im_end|>\n"
        "<|im_start|>user\n"
        "hi<|im_end|>\n"
        "<|im_start|>assistant\n"
        "Hello! How can I assist you today?<|im_end|>\n"
        "<|im_start|>user\n"
        "please write a Python function that parses dates<|im_end|>\n"
        "<|im_start|>assistant\n"
        "Route:"
    )
    assert prompt.truncated is False


def test_answer_is_the_token_of_a_label_and_other_stands_last() -> None:
    tokenizer = smollm2()
    compiled = COMPACT.compile(policy_of(CODING), tokenizer, 2048)

    assert isinstance(compiled.answer_form, LabelAnswer)
    assert [tokenizer.decode([token]) for token in compiled.answer_form.token_ids] == [
        " generation",
        " review",
        " travel",
        " other",
    ]
    assert compiled.read(LabelLogits((0.0, 3.0, 1.0, 2.0))).name == "code_review"


def test_line_breaks_in_a_policy_cannot_add_a_route() -> None:
    compiled = COMPACT.compile(policy_of({"a": "x\n- fake (b):\t y"}), smollm2(), 2048)

    assert "): x - fake (b): y\n- other" in smollm2().decode(compiled.prefix_ids)


def test_only_user_and_assistant_text_is_shown() -> None:
    text, truncated, _ = rendered(
        ("system", "be brief"), ("user", "hello"), ("tool", "secret"), max_tokens=2048
    )

    assert text == turn("user", "hello") + ASK
    assert truncated is False


def test_oldest_turns_go_first() -> None:
    turns = [("user", "one"), ("assistant", "two " * 40), ("user", "three " * 30)]
    whole = rendered(*turns, max_tokens=2048)[2]

    text, truncated, tokens = rendered(*turns, max_tokens=whole - 1)

    assert text == turn("assistant", "two " * 40) + turn("user", "three " * 30) + ASK
    assert truncated is True
    assert tokens < whole


def test_everything_is_shown_that_just_fits() -> None:
    turns = [("user", "one"), ("assistant", "two " * 40), ("user", "three " * 30)]
    whole = rendered(*turns, max_tokens=2048)

    assert rendered(*turns, max_tokens=whole[2]) == whole


def test_an_older_turn_that_does_not_fit_hides_those_before_it() -> None:
    text, _, _ = rendered(
        ("user", "one"), ("assistant", "two " * 400), ("user", "three"), max_tokens=STATIC + 100
    )

    assert text == turn("user", "three") + ASK


def test_newest_user_message_is_cut_in_the_middle() -> None:
    words = " ".join(f"word{number}" for number in range(1000))

    text, truncated, tokens = rendered(("user", "old"), ("user", words), max_tokens=STATIC + 200)

    head, gap, tail = text.removeprefix("\n<|im_start|>user\n").partition(GAP)
    assert gap
    assert words.startswith(head)
    assert words.endswith(tail.removesuffix(f"<|im_end|>{ASK}"))
    assert len(head) > 1.2 * len(tail.removesuffix(f"<|im_end|>{ASK}"))
    assert truncated is True
    assert STATIC + 190 < tokens <= STATIC + 200


def test_newest_user_message_outlives_what_the_assistant_said_after_it() -> None:
    text, _, _ = rendered(
        ("user", "question"), ("assistant", "long " * 500), max_tokens=STATIC + 100
    )

    assert text == turn("user", "question") + ASK


def test_what_the_assistant_said_after_it_outlives_what_was_said_before() -> None:
    before, after = (" ".join([word] * 30) for word in ("before", "after"))

    text, truncated, _ = rendered(
        ("assistant", before), ("user", "question"), ("assistant", after), max_tokens=STATIC + 70
    )

    assert text == turn("user", "question") + turn("assistant", after) + ASK
    assert truncated


@pytest.mark.parametrize(("more", "most"), [(100, 10_000), (1000, 80)])
def test_conversation_has_the_lesser_of_the_prompts_room_and_its_own(more: int, most: int) -> None:
    compiled = COMPACT.compile(
        policy_of(CODING), smollm2(), STATIC + more, max_conversation_tokens=most
    )
    ask = len(compiled.render(conversation_of(("user", "x"))).suffix_ids)
    prompt = compiled.render(conversation_of(("user", "word " * 2000)))

    assert 70 < len(prompt.suffix_ids) <= min(more, most + ask)


def test_without_a_user_message_the_newest_one_is_shown() -> None:
    text, _, _ = rendered(
        ("assistant", "a " * 500), ("assistant", "b " * 500), max_tokens=STATIC + 100
    )

    assert text.startswith("\n<|im_start|>assistant\nb b")


def test_whitespace_is_text() -> None:
    assert rendered(("user", " \n"), max_tokens=2048)[0] == turn("user", " \n") + ASK


def test_cut_never_splits_a_character() -> None:
    text, _, _ = rendered(("user", "👩‍👩‍👧🏽" * 500), max_tokens=STATIC + 100)

    assert "\ufffd" not in text


class Watched:
    """The tokenizer, and what it was asked to read."""

    vocab_size = smollm2().vocab_size
    special = staticmethod(smollm2().special)
    decode = staticmethod(smollm2().decode)

    def __init__(self) -> None:
        self.longest = self.tokens = 0

    def encode(self, text: str) -> list[int]:
        ids = smollm2().encode(text)
        self.longest, self.tokens = max(self.longest, len(text)), self.tokens + len(ids)
        return ids


def test_megabytes_are_cut_before_they_are_tokenized() -> None:
    watched = Watched()
    compiled = COMPACT.compile(policy_of(CODING), watched, STATIC + 200)
    for text in ("word " * 1_600_000, " " * 8_000_000, "a" * 8_000_000):
        prompt = compiled.render(conversation_of(("user", text), ("user", text)))
        assert len(prompt.prefix_ids + prompt.suffix_ids) <= STATIC + 200

    assert watched.longest < 5_000


@pytest.mark.parametrize("text", ["word ", "0123456789", "\u91d1\u878d", "    if a[i] == b[j]:\n"])
def test_what_is_cut_is_hardly_read_more_often_than_it_has_to_be(text: str) -> None:
    watched = Watched()
    compiled = COMPACT.compile(policy_of(CODING), watched, STATIC + 4000)
    watched.tokens = 0
    prompt = compiled.render(conversation_of(("user", text * 20_000)))

    assert len(prompt.suffix_ids) > 3_900
    # Once to find both ends, and twice in place.
    assert watched.tokens < 4 * 4_000


def test_ends_that_say_nothing_of_the_rest_are_read_on() -> None:
    dense, sparse = "0123456789" * 60, "internationalization " * 20_000
    compiled = COMPACT.compile(policy_of(CODING), smollm2(), STATIC + 4000)
    prompt = compiled.render(conversation_of(("user", dense + sparse + dense)))

    assert len(prompt.suffix_ids) > 3_900


def test_policy_that_leaves_no_room_is_too_large_with_the_numbers() -> None:
    with pytest.raises(SidecarError, match=rf"takes {STATIC} of {STATIC + 63} tokens") as caught:
        COMPACT.compile(policy_of(CODING), smollm2(), STATIC + 63)

    assert caught.value.code is ErrorCode.POLICY_TOO_LARGE
    assert COMPACT.compile(policy_of(CODING), smollm2(), STATIC + 64)


def test_tokenizer_without_chat_tokens_is_refused() -> None:
    class Bare:
        vocab_size = 1
        encode = staticmethod(smollm2().encode)
        decode = staticmethod(smollm2().decode)

        @staticmethod
        def special(token: str) -> int:
            raise KeyError(token)

    with pytest.raises(SidecarError, match=r"<\|im_start\|>") as caught:
        COMPACT.compile(policy_of(CODING), Bare(), 2048)

    assert caught.value.code is ErrorCode.UNSUPPORTED
