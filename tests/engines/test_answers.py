import math

import numpy as np
import numpy.typing as npt
import pytest
from cpu_engine.answers import FreeAnswer, LiteralAnswer
from cpu_engine.errors import RefusedError
from cpu_engine.vocabulary import Vocabulary

END = 0
PIECES = ["", "a", "b", "c", "ab", "abc", "x", "y", "xy"]
VOCABULARY = Vocabulary({piece.encode(): index for index, piece in enumerate(PIECES) if piece})


def scores(**values: float) -> npt.NDArray[np.float32]:
    """Logits by token text; `end` for the end token."""
    row = np.full(len(PIECES), -20.0, np.float32)
    for name, value in values.items():
        row[END if name == "end" else PIECES.index(name)] = value
    return row


def answer(*literals: str, max_tokens: int = 10) -> LiteralAnswer:
    return LiteralAnswer(tuple(text.encode() for text in literals), VOCABULARY, END, max_tokens)


def text(tokens: list[int]) -> str:
    return "".join(PIECES[token] for token in tokens)


def test_a_single_literal_needs_no_logits() -> None:
    certain = answer("abxy")
    assert certain.done
    assert text(certain.tokens) == "abxy"
    assert certain.log_probs == [0.0, 0.0]
    assert certain.cum_log_prob == 0.0


def test_tokens_outside_every_literal_are_not_chosen() -> None:
    choosing = answer("a", "x")
    choosing.take(scores(b=9, y=8, a=1, x=2))
    assert text(choosing.tokens) == "x"


def test_the_end_token_is_not_chosen_before_a_literal_is_complete() -> None:
    choosing = answer("a", "x")
    choosing.take(scores(end=9, a=1))
    assert text(choosing.tokens) == "a"


def test_probability_is_conditional_on_what_the_literals_allow() -> None:
    choosing = answer("a", "x")
    choosing.take(scores(b=50, a=math.log(3), x=math.log(1)))
    assert choosing.cum_log_prob == pytest.approx(math.log(3 / 4))
    assert choosing.log_probs == pytest.approx([math.log(3 / 4)])


def test_a_token_may_cover_several_characters_and_cut_across_literals() -> None:
    choosing = answer("abc", "abx")
    choosing.take(scores(ab=3, a=1))
    assert not choosing.done
    choosing.take(scores(c=1, x=2))
    assert text(choosing.tokens) == "abx"


def test_a_literal_that_begins_another_can_end_or_go_on() -> None:
    ends, goes_on = answer("a", "ab"), answer("a", "ab")
    for choosing in (ends, goes_on):
        choosing.take(scores(a=5))
    ends.take(scores(end=math.log(4), b=0))
    goes_on.take(scores(end=0, b=math.log(4)))
    assert (text(ends.tokens), text(goes_on.tokens)) == ("a", "ab")
    assert ends.done
    assert ends.cum_log_prob - sum(ends.log_probs) == pytest.approx(math.log(4 / 5))


def test_a_token_without_alternative_is_taken_at_once_with_probability_one() -> None:
    choosing = answer("ccx", "ccy")
    assert text(choosing.tokens) == "cc"
    assert choosing.log_probs == [0.0, 0.0]
    assert not choosing.done


def test_stops_at_the_length() -> None:
    cut = answer("abxyabxy", max_tokens=3)
    assert cut.done
    assert len(cut.tokens) == 3


def test_refuses_a_literal_that_no_tokens_spell() -> None:
    for literals in (("q",), ("a", "aq"), ("abcq", "abcx")):
        with pytest.raises(RefusedError, match="no token for byte 0x71"):
            answer(*literals)


def test_free_text_ends_before_the_end_token() -> None:
    free = FreeAnswer(END, 5)
    free.take(scores(a=1))
    free.take(scores(end=1))
    assert free.done
    assert text(free.tokens) == "a"
    assert len(free.log_probs) == 1


def test_free_text_is_as_long_as_asked() -> None:
    free = FreeAnswer(END, 2)
    for _ in range(2):
        assert not free.done
        free.take(scores(a=1))
    assert free.done


def test_free_text_reports_the_probability_among_all_tokens() -> None:
    free = FreeAnswer(END, 1)
    row = np.zeros(len(PIECES), np.float32)
    row[1] = math.log(2)
    free.take(row)
    assert free.cum_log_prob == pytest.approx(math.log(2 / (len(PIECES) + 1)))


def test_the_fewest_tokens_spell_a_text() -> None:
    # Taking the longest token first would need three: "abc", "x", "y" has a shorter way.
    vocabulary = Vocabulary({b"a": 1, b"b": 2, b"c": 3, b"d": 4, b"abc": 5, b"ab": 6, b"cd": 7})
    assert vocabulary.fewest_tokens(b"abcd") in ([6, 7], [5, 4])
    assert vocabulary.fewest_tokens(b"") == []
