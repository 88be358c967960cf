"""The forms of answer that are compared: their trees, probabilities and training."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed; only training needs it")
pytest.importorskip("safetensors", reason="safetensors is not installed; only training needs it")

import torch
from compare_answers import Material, Training, made_ahead, makers, same_routes, score, summary
from router_training.answers import (
    ANSWERS,
    Answer,
    AnswerEncoder,
    Prefix,
    answer_log_probs,
    answers_by_length,
    collate_answers,
    partings,
    prefix_of,
)
from router_training.batched import batch_log_probs, collate
from router_training.cases import Draw, Request, RouteText
from router_training.encoding import Encoder, conversation_of, policy_of
from router_training.llama import Llama
from router_training.loop import Plan
from router_training.mixture import build_mixture

from sidecar.inference.tokenizer import HfTokenizer
from sidecar.prompts.compact import CompactFormat, CompactPrompt
from tests.finetune.test_training import WORDS, forty_cases, tiny_model, tokenizer_of

CPU = torch.device("cpu")
LETTERS = ("A", "B", "C", "D", "E", "AB")
ROUTES = (
    RouteText("parcel", "where a parcel is"),
    RouteText("parcel status", "what became of it"),
    RouteText("parcel_returns", "sending one back"),
    RouteText("other music", "songs"),
    RouteText("garden", "plants"),
)
DRAW = Draw(
    "own",
    ROUTES,
    (
        Request((("user", "a parcel, please"),), frozenset({"parcel"})),
        Request(
            (("user", "a parcel, please"), ("assistant", "sure"), ("user", "grow weed")),
            frozenset({"garden", "other music"}),
        ),
        Request((("user", "no more"),), frozenset({"other"})),
    ),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    return tokenizer_of((*WORDS, "other", *LETTERS), tmp_path_factory.mktemp("tokenizer"))


def compiled(tokenizer: HfTokenizer) -> CompactPrompt:
    return CompactFormat().compile(policy_of(ROUTES), tokenizer, 2048)


def prefix(answer: Answer, tokenizer: HfTokenizer) -> Prefix:
    found = prefix_of(answer, ROUTES, compiled(tokenizer), tokenizer)
    assert found is not None
    return found


def log_probs(
    model: Llama, tokenizer: HfTokenizer, answer: Answer, every: bool = True
) -> torch.Tensor:
    encoded = AnswerEncoder(tokenizer, answer, every, max_pack=4096).encode(DRAW)
    assert encoded is not None
    assert len(encoded.right) == len(DRAW.requests)
    with torch.inference_mode():
        return answer_log_probs(model, collate_answers([encoded]), CPU)


def alone(model: Llama, tokenizer: HfTokenizer, answer: Answer) -> torch.Tensor:
    """The same without packs or trees: a prompt for every token of every answer."""
    shared = prefix(answer, tokenizer)
    rows = []
    for request in DRAW.requests:
        suffix = compiled(tokenizer).render(conversation_of(request)).suffix_ids
        for one in shared.answers:
            total = torch.zeros(())
            for end, token in enumerate(one):
                offered = sorted({a[end] for a in shared.answers if a[:end] == one[:end]})
                ids = torch.tensor([*shared.ids, *suffix, *one[:end]])
                places = torch.arange(len(ids))
                hidden = model(ids, places, places[:, None] >= places, places[-1:])
                scores = model.logits(hidden, torch.tensor(offered)).log_softmax(-1)[0]
                total = total + scores[offered.index(token)]
            rows.append(total)
    return torch.stack(rows).view(len(DRAW.requests), -1)


@pytest.mark.parametrize("answer", ANSWERS)
def test_probabilities_are_those_of_prompts_alone_and_sum_to_one(
    answer: Answer, tokenizer: HfTokenizer
) -> None:
    model = tiny_model().eval()
    found = log_probs(model, tokenizer, answer)
    with torch.inference_mode():
        expected = alone(model, tokenizer, answer)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(DRAW.requests)))


@pytest.mark.parametrize("answer", ANSWERS)
def test_training_reads_what_the_right_answers_take_and_finds_the_same(
    answer: Answer, tokenizer: HfTokenizer
) -> None:
    model = tiny_model().eval()
    every = log_probs(model, tokenizer, answer)
    some = log_probs(model, tokenizer, answer, every=False)
    names = [*(route.name for route in ROUTES), "other"]
    for row, request in enumerate(DRAW.requests):
        for column, name in enumerate(names):
            if name in request.right or some[row, column].isfinite():
                torch.testing.assert_close(some[row, column], every[row, column])
    assert some.isinf().any() == (answer == "name")


def test_word_answers_are_those_of_the_sidecar(tokenizer: HfTokenizer) -> None:
    model = tiny_model().eval()
    encoded = Encoder(tokenizer, max_pack=4096).encode(DRAW)
    assert encoded is not None
    with torch.inference_mode():
        expected = batch_log_probs(model, collate([encoded]), CPU)
    torch.testing.assert_close(log_probs(model, tokenizer, "word"), expected)


@pytest.mark.parametrize("answer", ["word", "letter"])
def test_words_and_letters_are_one_token_each(answer: Answer, tokenizer: HfTokenizer) -> None:
    answers = prefix(answer, tokenizer).answers
    assert len(set(answers)) == len(ROUTES) + 1
    assert {len(one) for one in answers} == {1}


def test_letters_stand_where_words_stand(tokenizer: HfTokenizer) -> None:
    text = tokenizer.decode(prefix("word", tokenizer).ids)
    expected = text.replace("its word", "its letter")
    for word, letter in zip(compiled(tokenizer).labels, LETTERS, strict=False):
        if word != "other":
            expected = expected.replace(f"\n- {word} (", f"\n- {letter} (")
    assert tokenizer.decode(prefix("letter", tokenizer).ids) == expected


def test_names_are_answered_as_the_routes_are_listed(tokenizer: HfTokenizer) -> None:
    shared = prefix("name", tokenizer)
    text = tokenizer.decode(shared.ids)
    for route, answer in zip(ROUTES, shared.answers, strict=False):
        assert f"\n- {route.name}: {route.description}" in text
        assert tokenizer.decode(answer) == f" {route.name}<|im_end|>"


def test_more_routes_than_letters_are_not_encoded(tokenizer: HfTokenizer) -> None:
    routes = tuple(RouteText(f"{word}{n}", word) for word in WORDS for n in range(2))
    draw = Draw("own", routes, (Request((("user", "hello"),), frozenset({"other"})),))
    assert AnswerEncoder(tokenizer, "letter").encode(draw) is None


def test_an_answer_that_begins_another_is_refused() -> None:
    with pytest.raises(ValueError, match="begins"):
        partings([(1, 2), (1, 2, 3)])


def test_a_node_with_one_child_is_not_read() -> None:
    nodes = partings([(1, 2, 3, 9), (1, 2, 4, 9), (5, 6, 9)])
    assert [node.path for node in nodes] == [(), (1, 2)]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("processes", [0, 1])
def test_the_loss_falls_in_ten_steps_and_cases_are_scored(
    answer: Answer, processes: int, tokenizer: HfTokenizer, tmp_path: Path
) -> None:
    cases = forty_cases()
    encoder = AnswerEncoder(tokenizer, answer, max_prompt=512, max_pack=512)
    draws = build_mixture({"own": cases}, [], encoder, seed=0)
    groups = same_routes(cases)
    scored = AnswerEncoder(tokenizer, answer, True, max_prompt=512, max_pack=512)
    plan = Plan(minutes=5, steps=1, packs_per_step=8, rate=5e-3, warmup=0, frozen_layers=0)
    model = tiny_model()
    training = Training(model, plan)
    with makers(Material(draws, 8, scored, groups), processes) as workers:
        batches = made_ahead(workers, 2)
        losses = [training.step(next(batches), plan.rate) for _ in range(10)]
        batches.close()
        results = score(model, workers, len(groups))

    means = [loss / decisions for loss, decisions in losses]
    assert sum(means[-3:]) < 0.8 * sum(means[:3])
    assert sorted(one.id for one in results) == sorted(case.id for case in cases)
    assert summary(results)["families"]["own"]["cases"] == len(cases)


def test_draws_of_a_step_keep_all_their_requests(tokenizer: HfTokenizer) -> None:
    encoder = AnswerEncoder(tokenizer, "name", max_prompt=512, max_pack=512)
    draws = build_mixture({"own": forty_cases()}, [], encoder, seed=0)
    encoded = [draws.draw(number) for number in range(6)]
    batches = answers_by_length(encoded)
    assert sum(len(b.right) for b in batches) == sum(len(one.right) for one in encoded)
    assert sum(b.tokens for b in batches) == sum(len(one.pack.ids) for one in encoded)
