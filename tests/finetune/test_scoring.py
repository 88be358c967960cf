"""Scores in batches are those of one pack at a time. Skipped where torch is not installed."""

from __future__ import annotations

from random import Random

import pytest

pytest.importorskip("torch", reason="torch is not installed; only training needs it")
pytest.importorskip("safetensors", reason="safetensors is not installed; only training needs it")

from router_training import scoring
from router_training.cases import Case, Request, RouteText
from router_training.encoding import Encoder
from router_training.llama import Llama

from sidecar.inference.tokenizer import HfTokenizer
from tests.finetune.test_training import WORDS, tiny_model, tokenizer  # noqa: F401


@pytest.fixture(scope="module")
def model() -> Llama:
    return tiny_model()


@pytest.fixture
def encoder(tokenizer: HfTokenizer) -> Encoder:  # noqa: F811
    return Encoder(tokenizer, max_prompt=512, max_pack=420)


def cases() -> list[Case]:
    """Over four route lists of two to five routes, in turn; requests of any length."""
    rng = Random(0)
    lists = [tuple(RouteText(name, name) for name in WORDS[:count]) for count in range(2, 6)]
    made = []
    for number in range(30):
        routes = lists[number % 4]
        label = rng.choice(["other", *(route.name for route in routes)])
        request = Request((("user", "about " * rng.randrange(12) + label),), frozenset({label}))
        made.append(
            Case(f"c{number}", "own", "", routes, request, label, f"d{number}", frozenset())
        )
    return made


@pytest.mark.parametrize(("packs", "window"), [(32, 16), (3, 16), (1, 16), (2, 1)])
def test_batches_give_the_scores_of_one_pack_at_a_time(
    model: Llama, encoder: Encoder, packs: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_WINDOW", window)
    alone = scoring.score(model, encoder, cases())
    together = scoring.score_in_batches(model, encoder, cases(), packs)

    assert len(alone) == 30
    assert [one.case.id for one in together] == [one.case.id for one in alone]
    assert [one.answer for one in together] == [one.answer for one in alone]
    for one, two in zip(together, alone, strict=True):
        assert one.probabilities == pytest.approx(two.probabilities, abs=1e-5)


def test_cases_whose_routes_do_not_fit_have_no_score(
    model: Llama, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    fits = cases()[0]
    routes = tuple(RouteText(name, "long " * 200) for name in WORDS)
    request = Request((("user", "hello"),), frozenset({"other"}))
    too_long = Case("long", "own", "", routes, request, "other", "d", frozenset())
    for score in (scoring.score, scoring.score_in_batches):
        assert [one.case.id for one in score(model, encoder, [too_long, fits])] == ["c0"]
        nothing = scoring.summary(score(model, encoder, [too_long]))
        assert (nothing["cases"], nothing["macro_turn_accuracy"]) == (0, None)
    assert f"1 of 2 cases are not scored: {encoder.limit}" in caplog.text
