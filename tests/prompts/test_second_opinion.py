"""What the encoder of a second opinion reads, and how its logits join the language model's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import Reason
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import Enough, LabelLogits, Prompt, SecondOpinionIds
from sidecar.core.policy import ModelList, Policy, Route, WeightedModel
from sidecar.prompts import get_format
from sidecar.prompts.second_opinion import (
    EARLIER_MESSAGE_TOKENS,
    EARLIER_TOKENS,
    REQUEST_TOKENS,
    ROUTE_TOKENS,
    EncoderTexts,
    FusedPrompt,
    Fusion,
    encoder_texts,
    name_words,
    with_second_opinion,
)

START, END = 900, 901


class Numbers:
    """A tokenizer of numbers: `7 8` is [7, 8]. Counts characters that it reads."""

    vocab_size = 1000

    def __init__(self) -> None:
        self.read = 0

    def encode(self, text: str) -> list[int]:
        self.read = max(self.read, len(text))
        return [int(word) if word.isdigit() else len(word) for word in text.split()]

    def special(self, token: str) -> int:
        return {"[CLS]": START, "[SEP]": END}[token]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def texts() -> EncoderTexts:
    return encoder_texts(Numbers())


def said(*turns: tuple[Role, str]) -> tuple[Message, ...]:
    return tuple(Message(role, text) for role, text in turns)


def numbers(*values: int) -> str:
    return " ".join(map(str, values))


USER, ASSISTANT = Role.USER, Role.ASSISTANT


class TestRequest:
    def test_stands_before_what_was_said_earlier(self) -> None:
        messages = said((USER, "1 2"), (ASSISTANT, "3"), (USER, "4 5"))
        assert texts().request(messages) == (
            (START, 4, 5, END, 1, 2, END, 3, END),
            (0, 0, 0, 0, 1, 1, 1, 1, 1),
        )

    def test_is_the_newest_user_message(self) -> None:
        messages = said((USER, "1"), (USER, "2"), (ASSISTANT, "3"))
        assert texts().request(messages)[0] == (START, 2, END, 1, END)

    def test_is_the_newest_message_where_no_user_spoke(self) -> None:
        messages = said((ASSISTANT, "1"), (ASSISTANT, "2"))
        assert texts().request(messages)[0] == (START, 2, END, 1, END)

    def test_loses_its_middle_when_it_is_long(self) -> None:
        ids, _ = texts().request(said((USER, numbers(*range(100)))))
        assert len(ids) == REQUEST_TOKENS + 2
        assert ids[1:-1] == (*range(48), *range(84, 100))

    def test_ends_as_the_message_does_however_long_that_is(self) -> None:
        pasted = numbers(*[5] * 5000, *range(100, 120))
        ids, _ = texts().request(said((USER, pasted)))
        assert ids[1:-1] == (*[5] * 48, *range(104, 120))

    def test_earlier_messages_are_cut_and_the_oldest_go(self) -> None:
        long = numbers(*range(100, 140))
        messages = said((USER, "1"), (USER, long), (ASSISTANT, "5 6"), (USER, "9"))
        ids, types = texts().request(messages)
        cut = (*range(100, 118), *range(134, 140))
        assert len(cut) == EARLIER_MESSAGE_TOKENS
        assert ids == (START, 9, END, 1, END, *cut, END, 5, 6, END)
        assert types.count(1) <= EARLIER_TOKENS

    def test_what_does_not_fit_whole_ends_what_is_shown(self) -> None:
        longer = numbers(*range(100, 124))
        messages = said((USER, "1"), (USER, longer), (USER, longer), (USER, "9"))
        ids, _ = texts().request(messages)
        assert ids == (START, 9, END, *range(100, 124), END)

    def test_reads_no_more_of_a_long_text_than_it_may(self) -> None:
        tokenizer = Numbers()
        encoder_texts(tokenizer).request(said((USER, "1 " * 10_000_000)))
        assert tokenizer.read == 4000


def test_a_route_is_its_name_in_words_and_its_description() -> None:
    tokenizer = Numbers()
    assert encoder_texts(tokenizer).route("codeReview", "7 8") == (START, 4, 7, 7, 8, END)


def test_a_long_description_is_cut() -> None:
    ids = texts().route("a", numbers(*range(200)))
    assert len(ids) == ROUTE_TOKENS + 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("code_review", ["code", "review"]),
        ("HTTPServer2", ["HTTP", "Server", "2"]),
        ("größe", ["gr", "öße"]),
        ("__", []),
    ],
)
def test_names_in_words(name: str, words: list[str]) -> None:
    assert name_words(name) == words


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    class Other(Numbers):
        def special(self, token: str) -> int:
            raise KeyError(token)

    with pytest.raises(SidecarError) as caught:
        encoder_texts(Other())
    assert caught.value.code is ErrorCode.UNSUPPORTED


class TestFusion:
    def test_adds_weighted_opinions(self) -> None:
        fused = Fusion(0.5, 2.0, other_bias=0.25).fuse((0.0, math.log(3)), (1.0, -1.0))
        expected = (0.5 * math.log(1 / 4) + 2, 0.5 * math.log(3 / 4) - 2 + 0.25)
        assert fused == pytest.approx(expected)

    def test_does_not_depend_on_an_offset_of_the_logits(self) -> None:
        fusion = Fusion(0.7, 1.0)
        one, other = fusion.fuse((1.0, 2.0), (0, 0)), fusion.fuse((501.0, 502.0), (0, 0))
        assert one == pytest.approx(other)


class Words(Numbers):
    """Gives `compact-v1` what it needs: ChatML and one token a word."""

    def encode(self, text: str) -> list[int]:
        return [1 + sum(map(ord, word)) % 800 for word in text.split()]

    def special(self, token: str) -> int:
        return {"<|im_start|>": 950, "<|im_end|>": 951}.get(token) or super().special(token)


MODELS = ModelList((WeightedModel("m"),))
POLICY = Policy(
    "p", (Route("billing", "an invoice", MODELS), Route("travel", "a trip", MODELS)), MODELS
)


def compiled(fusion: Fusion, enough: Enough | None = None) -> FusedPrompt:
    alone = get_format("compact-v1").compile(POLICY, Words(), 2000, 2.0)
    prompt = with_second_opinion(alone, POLICY, texts(), fusion, enough)
    assert isinstance(prompt, FusedPrompt)
    return prompt


class TestFusedPrompt:
    def test_adds_the_ids_to_the_same_prompt(self) -> None:
        prompt = compiled(Fusion(1, 1))
        conversation = Conversation(said((USER, "5 6")))
        rendered = prompt.render(conversation)
        alone = prompt.alone.render(conversation)
        assert (rendered.prefix_ids, rendered.suffix_ids) == (alone.prefix_ids, alone.suffix_ids)
        assert rendered.second_opinion == SecondOpinionIds(
            (START, 5, 6, END), (0, 0, 0, 0), prompt.route_texts
        )
        assert len(prompt.route_texts) == 2

    def test_the_encoder_can_turn_the_decision(self) -> None:
        prompt = compiled(Fusion(1.0, 1.0, temperature=2.0))
        answer = prompt.read(LabelLogits((1.0, 0.0, 0.0), second_opinion=(0.0, 5.0, 0.0)))
        assert answer.name == "travel"
        weights = [math.exp(x / 2) for x in (1.0, 5.0, 0.0)]
        assert answer.candidates[0].probability == pytest.approx(weights[1] / sum(weights))

    def test_says_what_each_thought(self) -> None:
        prompt = compiled(Fusion(1.0, 1.0))
        answer = prompt.read(LabelLogits((9.0, 0.0, 0.0), second_opinion=(0.0, 5.0, 0.0)))
        assert "language model billing 0.9" in answer.text
        assert "encoder travel 0.99" in answer.text

    @pytest.mark.parametrize(
        "second",
        [None, (1.0,), (math.nan, 0.0, 0.0), (math.inf, 0.0, 0.0)],
        ids=["none", "too few", "nan", "infinite"],
    )
    def test_without_a_second_opinion_the_first_decides(
        self, second: tuple[float, ...] | None
    ) -> None:
        prompt = compiled(Fusion(1.0, 1.0, other_bias=50.0))
        output = LabelLogits((0.0, 3.0, 0.0), second)
        alone = prompt.alone.read(output)
        assert prompt.read(output) == replace(
            alone,
            text=f"{alone.text} (language model alone)",
            missing="the sentence encoder's second opinion",
        )
        assert alone.name == "travel"

    def test_what_is_enough_goes_with_the_request(self) -> None:
        enough = Enough(0.7, -0.5, 0.9)
        rendered = compiled(Fusion(1, 1), enough).render(Conversation(said((USER, "5 6"))))
        assert rendered.second_opinion is not None
        assert rendered.second_opinion.enough == enough

    def test_the_encoder_alone_has_a_scale_of_its_own(self) -> None:
        prompt = compiled(Fusion(9.0, 9.0, other_bias=9.0), Enough(0.5, -1.0, 0.6))
        answer = prompt.read(LabelLogits((), second_opinion=(0.0, 6.0, 4.0)))
        weights = [math.exp(0.0), math.exp(3.0), math.exp(2.0 - 1.0)]
        assert answer.name == "travel"
        assert answer.candidates[0].probability == pytest.approx(weights[1] / sum(weights))
        assert answer.text.endswith("(encoder alone)")

    @pytest.mark.parametrize(
        ("enough", "second"),
        [(None, (0.0, 6.0, 4.0)), (Enough(0.5, 0.0, 0.6), None), (Enough(0.5, 0.0, 0.6), (1.0,))],
        ids=["not asked to decide", "no opinion", "too few"],
    )
    def test_an_answer_of_nobody_is_none(
        self, enough: Enough | None, second: tuple[float, ...] | None
    ) -> None:
        answer = compiled(Fusion(1.0, 1.0), enough).read(LabelLogits((), second))
        assert (answer.name, answer.problem) == ("", Reason.UNPARSABLE_ANSWER)

    def test_a_text_answer_is_left_as_it_is(self) -> None:
        guided = get_format("arch-router/model-card").compile(POLICY, Words(), 2000)
        assert with_second_opinion(guided, POLICY, texts(), Fusion(1, 1)) is guided


def test_prompts_differ_by_what_the_encoder_reads() -> None:
    one = Prompt((1,), (2, 3), second_opinion=SecondOpinionIds((4,), (0,), ()))
    other = Prompt((1,), (2, 3), second_opinion=SecondOpinionIds((5,), (0,), ()))
    assert len({one.asked, other.asked, Prompt((1,), (2, 3)).asked}) == 3
