"""What is computed, what is reused and what is dropped."""

from collections.abc import Mapping

import numpy as np
import pytest
from cpu_engine.answers import FreeAnswer, LiteralAnswer
from cpu_engine.decisions import Decider, Outcome
from cpu_engine.errors import CancelledError, RefusedError
from cpu_engine.forward import Forward, KeyValues, Logits, Pass
from cpu_engine.vocabulary import Vocabulary

from sidecar.engines import EngineInfo
from tests.engines import reference
from tests.engines.parts import ask, logits_of, new_decider, outcomes, results_of
from tests.engines.tiny_models import END_ID, LLAMA, tiny_tokenizer

PREFIX = list(range(10, 60))
SUFFIX = list(range(100, 117))
TOLERANCE = 1e-4


@pytest.fixture
def passes(decider: Decider, forwards: Mapping[str, Forward]) -> "Passes":
    return Passes(forwards["llama"])


class Passes:
    """Counts passes over the graph."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._start = forward.passes

    def since(self) -> int:
        """Passes since the last call."""
        start, self._start = self._start, self._forward.passes
        return self._start - start


def test_a_prefix_is_computed_once(decider: Decider, passes: Passes) -> None:
    first = logits_of(decider, [ask(PREFIX, SUFFIX, logits=True)])
    assert passes.since() == 2
    second = logits_of(decider, [ask(PREFIX, SUFFIX, logits=True)])
    assert passes.since() == 1
    np.testing.assert_array_equal(first, second)


def test_reuse_is_reported(decider: Decider) -> None:
    reused = [outcomes(decider, [ask(PREFIX, SUFFIX)])[0].reused_tokens for _ in range(2)]
    assert reused == [0, len(PREFIX)]


def test_a_new_prefix_starts_from_what_it_shares_with_a_held_one(decider: Decider) -> None:
    outcomes(decider, [ask(PREFIX, SUFFIX)])
    revised = [*PREFIX[:30], 7, 8, 9]
    (over_shared,) = outcomes(decider, [ask(revised, SUFFIX, logits=True)])
    assert over_shared.reused_tokens == 30
    alone = logits_of(decider, [ask([], revised + SUFFIX, logits=True)])
    np.testing.assert_allclose(over_shared.logits[0], alone[0], atol=TOLERANCE)


def test_a_prefix_that_another_begins_with_is_not_computed_again(decider: Decider) -> None:
    outcomes(decider, [ask(PREFIX, SUFFIX)])
    (shorter,) = outcomes(decider, [ask(PREFIX[:20], SUFFIX, logits=True)])
    assert shorter.reused_tokens == 20
    alone = logits_of(decider, [ask([], PREFIX[:20] + SUFFIX, logits=True)])
    np.testing.assert_allclose(shorter.logits[0], alone[0], atol=TOLERANCE)


def test_what_shares_a_prefix_is_one_pass(decider: Decider, passes: Passes) -> None:
    outcomes(decider, [ask(PREFIX, SUFFIX)])
    passes.since()
    outcomes(decider, [ask(PREFIX, [token]) for token in range(20, 28)])
    assert passes.since() == 1


def test_packing_changes_no_logits(decider: Decider) -> None:
    suffixes = [SUFFIX[:length] for length in (17, 1, 5, 11)] + [[9, 9, 9]]
    packed = logits_of(decider, [ask(PREFIX, suffix, logits=True) for suffix in suffixes])
    alone = [logits_of(decider, [ask(PREFIX, s, logits=True)])[0] for s in suffixes]
    np.testing.assert_allclose(packed, alone, atol=TOLERANCE)


def test_logits_of_labels_are_those_of_the_whole_vocabulary(
    decider: Decider, passes: Passes
) -> None:
    whole = logits_of(decider, [ask(PREFIX, SUFFIX, logits=True), ask(PREFIX, [9], logits=True)])
    passes.since()
    first, text, second = outcomes(
        decider,
        [
            ask(PREFIX, SUFFIX, label_ids=(7, 200, 30)),
            ask(PREFIX, SUFFIX, logits=True),
            ask(PREFIX, [9], label_ids=(30, 11)),
        ],
    )
    assert passes.since() == 1
    np.testing.assert_allclose(first.logits[0], whole[0][[7, 200, 30]], atol=TOLERANCE)
    np.testing.assert_allclose(text.logits[0], whole[0], atol=TOLERANCE)
    np.testing.assert_allclose(second.logits[0], whole[1][[30, 11]], atol=TOLERANCE)
    assert first.answer.tokens == [(7, 200, 30)[int(np.argmax(whole[0][[7, 200, 30]]))]]


def test_different_prefixes_arriving_together_are_kept_apart(decider: Decider) -> None:
    prefixes = [PREFIX, PREFIX[::-1], PREFIX]
    together = logits_of(decider, [ask(prefix, SUFFIX, logits=True) for prefix in prefixes])
    np.testing.assert_allclose(together[0], together[2], atol=TOLERANCE)
    assert np.abs(together[0] - together[1]).max() > 0.1


@pytest.mark.parametrize("max_pass_tokens", [1, 7, 16, 40])
def test_long_prompts_are_cut_into_passes_without_changing_logits(
    engines: Mapping[str, EngineInfo], forwards: Mapping[str, Forward], max_pass_tokens: int
) -> None:
    whole = new_decider(forwards["llama"], engines["llama"].tokenizer_path)
    cut = new_decider(
        forwards["llama"], engines["llama"].tokenizer_path, max_pass_tokens=max_pass_tokens
    )
    requests = [ask(PREFIX, SUFFIX, logits=True), ask(PREFIX, SUFFIX[:3], logits=True)]
    np.testing.assert_allclose(logits_of(cut, requests), logits_of(whole, requests), atol=TOLERANCE)


@pytest.mark.parametrize("max_pass_tokens", [1, 7, 20])
@pytest.mark.parametrize("literals", [(), reference.LITERALS], ids=["free", "literals"])
def test_texts_are_the_same_however_they_are_cut_into_passes(
    engines: Mapping[str, EngineInfo],
    forwards: Mapping[str, Forward],
    max_pass_tokens: int,
    literals: tuple[str, ...],
) -> None:
    tokenizer = engines["llama"].tokenizer_path
    whole = new_decider(forwards["llama"], tokenizer)
    cut = new_decider(forwards["llama"], tokenizer, max_pass_tokens=max_pass_tokens)
    requests = [
        ask(prefix, SUFFIX[:length], max_tokens=12, literals=literals)
        for prefix in (PREFIX, [])
        for length in (17, 3, 9)
    ]
    right = [outcome.answer.tokens for outcome in outcomes(whole, requests)]
    assert [outcome.answer.tokens for outcome in outcomes(cut, requests)] == right


def test_a_pass_is_bounded_in_tokens(
    engines: Mapping[str, EngineInfo], forwards: Mapping[str, Forward], passes: Passes
) -> None:
    cut = new_decider(forwards["llama"], engines["llama"].tokenizer_path, max_pass_tokens=64)
    outcomes(cut, [ask(PREFIX, SUFFIX)])
    passes.since()
    outcomes(cut, [ask(PREFIX, [token] * 20) for token in range(20, 29)])
    assert passes.since() == 3


def test_a_pass_is_bounded_also_with_what_is_guessed(
    engines: Mapping[str, EngineInfo],
    forwards: Mapping[str, Forward],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward, tokenizer = forwards["llama"], engines["llama"].tokenizer_path
    # Texts that begin alike for long, as route names of a large company may.
    literals = ("customer/support/team/of/the/north", "customer/support/team/of/the/south")
    requests = [ask(PREFIX, [token], max_tokens=40, literals=literals) for token in range(20, 29)]
    whole = new_decider(forward, tokenizer)
    right = [outcome.answer.tokens for outcome in outcomes(whole, requests)]
    cut, sizes, run = new_decider(forward, tokenizer, max_pass_tokens=20), [], forward.run

    def noting(work: Pass, past: KeyValues) -> tuple[Logits, KeyValues]:
        sizes.append(len(work.ids))
        return run(work, past)

    monkeypatch.setattr(forward, "run", noting)
    assert [outcome.answer.tokens for outcome in outcomes(cut, requests)] == right
    assert max(sizes) == 20


def test_warming_needs_one_token_beyond_the_prefix(decider: Decider) -> None:
    outcomes(decider, [ask(PREFIX, [PREFIX[-1]])])
    assert outcomes(decider, [ask(PREFIX, SUFFIX)])[0].reused_tokens == len(PREFIX)


def test_without_retention_nothing_is_kept(decider: Decider) -> None:
    outcomes(decider, [ask([], PREFIX + SUFFIX)])
    assert outcomes(decider, [ask(PREFIX, SUFFIX)])[0].reused_tokens == 0


def test_text_and_label_requests_share_a_pass(decider: Decider, passes: Passes) -> None:
    outcomes(decider, [ask(PREFIX, SUFFIX)])
    passes.since()
    text = ask(PREFIX, SUFFIX, max_tokens=3)
    label = ask(PREFIX, SUFFIX, logits=True)
    answered = outcomes(decider, [text, label])
    assert passes.since() == 3
    assert answered[0].answer.tokens[:1] == answered[1].answer.tokens


class TestCancelled:
    def test_before_anything_is_computed(self, decider: Decider, passes: Passes) -> None:
        gone = [ask(PREFIX, SUFFIX, is_cancelled=lambda: True) for _ in range(3)]
        assert [type(result) for _, result in results_of(decider, gone)] == [CancelledError] * 3
        assert passes.since() == 0

    def test_one_of_several_costs_the_others_nothing(self, decider: Decider) -> None:
        gone = ask(PREFIX, SUFFIX, is_cancelled=lambda: True)
        stays = ask(PREFIX, SUFFIX)
        results = dict(results_of(decider, [gone, stays]))
        assert isinstance(results[gone], CancelledError)
        assert isinstance(results[stays], Outcome)

    def test_between_the_passes_of_a_text(self, decider: Decider, passes: Passes) -> None:
        checks = iter([False] * 4 + [True] * 100)
        gone = ask(PREFIX, SUFFIX, max_tokens=100, is_cancelled=lambda: next(checks))
        ((_, result),) = results_of(decider, [gone])
        assert isinstance(result, CancelledError)
        assert 1 < passes.since() < 10

    def test_between_the_passes_of_a_prefix(
        self, engines: Mapping[str, EngineInfo], forwards: Mapping[str, Forward], passes: Passes
    ) -> None:
        cut = new_decider(forwards["llama"], engines["llama"].tokenizer_path, max_pass_tokens=10)
        checks = iter([False, False, True, True, True])
        gone = ask(PREFIX, SUFFIX, is_cancelled=lambda: next(checks))
        ((_, result),) = results_of(cut, [gone])
        assert isinstance(result, CancelledError)
        assert passes.since() == 2

    def test_between_the_passes_of_a_long_suffix(
        self, engines: Mapping[str, EngineInfo], forwards: Mapping[str, Forward]
    ) -> None:
        cut = new_decider(forwards["llama"], engines["llama"].tokenizer_path, max_pass_tokens=10)
        checks = iter([False, False, False, True, True, True])
        gone = ask([], PREFIX, is_cancelled=lambda: next(checks))
        ((_, result),) = results_of(cut, [gone])
        assert isinstance(result, CancelledError)


def test_a_refused_request_does_not_fail_the_others(
    decider: Decider, forwards: Mapping[str, Forward]
) -> None:
    wordless = Decider(forwards["llama"], decider._cache, None, 512)
    refused = ask(PREFIX, SUFFIX, max_tokens=9, literals=("a", "b"))
    stays = ask(PREFIX, SUFFIX)
    results = dict(results_of(wordless, [refused, stays]))
    assert isinstance(results[refused], RefusedError)
    assert isinstance(results[stays], Outcome)


class Foretold(FreeAnswer):
    """Free text whose guesses are a given text: a double of an answer that can foresee."""

    def __init__(self, guesses: list[int], max_tokens: int) -> None:
        super().__init__(END_ID, max_tokens)
        self._guesses = guesses

    def guess(self) -> list[int]:
        return self._guesses[len(self.tokens) :]


class TestGuesses:
    TOKENS = 8

    @pytest.fixture
    def truth(self, decider: Decider) -> list[int]:
        return outcomes(decider, [ask(PREFIX, SUFFIX, max_tokens=self.TOKENS)])[0].answer.tokens

    @pytest.mark.parametrize(
        ("right", "wrong", "expected_passes"),
        [(0, 0, 8), (0, 3, 8), (8, 0, 1), (7, 0, 1), (4, 0, 4), (4, 4, 4), (3, 1, 5)],
    )
    def test_right_ones_save_passes_and_wrong_ones_change_nothing(
        self,
        decider: Decider,
        passes: Passes,
        truth: list[int],
        monkeypatch: pytest.MonkeyPatch,
        right: int,
        wrong: int,
        expected_passes: int,
    ) -> None:
        guesses = truth[:right] + [token + 1 for token in truth[right : right + wrong]]
        monkeypatch.setattr(
            decider, "_new_answer", lambda asked: Foretold(guesses, asked.max_tokens)
        )
        passes.since()
        together = [ask(PREFIX, SUFFIX, max_tokens=self.TOKENS, logits=True) for _ in range(2)]
        first, second = outcomes(decider, together)
        assert passes.since() == expected_passes
        assert first.answer.tokens == second.answer.tokens == truth
        assert len(first.logits) == self.TOKENS

    def test_what_all_literals_begin_with_is_guessed(
        self, decider: Decider, engines: Mapping[str, EngineInfo]
    ) -> None:
        vocabulary = Vocabulary.from_file(engines["llama"].tokenizer_path)
        literals = (b'{"route": "code"}', b'{"route": "billing"}')
        answer = LiteralAnswer(literals, vocabulary, END_ID, 40)
        tokenizer = tiny_tokenizer(LLAMA.vocab)
        assert tokenizer.decode(answer.guess()) == '{"route": "'
        assert len(LiteralAnswer(literals, vocabulary, END_ID, 2).guess()) == 2
