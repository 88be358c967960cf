from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.policy import OTHER, Policy
from sidecar.inference.tokenizer import HfTokenizer
from sidecar.prompts.labels import assign_labels, label_token
from sidecar.prompts.words import SPARE
from tests.prompts.samples import policies, policy_of
from tests.prompts.vocabularies import qwen, smollm2


@pytest.mark.parametrize(
    ("routes", "labels"),
    [
        pytest.param(
            {"code_generation": "new code", "code_review": "old code"},
            {"code_generation": "generation", "code_review": "review"},
            id="word that no other route uses",
        ),
        pytest.param(
            {"travel": "booking hotels", "Image Editing": "changing pictures"},
            {"travel": "travel", "Image Editing": "editing"},
            id="name before description, rarer word first",
        ),
        pytest.param(
            {"legalAdvice": "law", "HTTPErrors": "status codes"},
            {"legalAdvice": "advice", "HTTPErrors": "errors"},
            id="camel case",
        ),
        pytest.param(
            {"user's trip": "x", "b": "what they don't need"},
            {"user's trip": "trip", "b": SPARE[0]},
            id="apostrophes do not make words of what follows them",
        ),
        pytest.param(
            {"model_a": "writes poems", "model_b": "solves equations"},
            {"model_a": "poems", "model_b": "solves"},
            id="name of a generic word and a letter",
        ),
        pytest.param(
            {"r1": "writes poems", "tier_2": "solves equations"},
            {"r1": "poems", "tier_2": "solves"},
            id="name of letters and numbers",
        ),
        pytest.param(
            {"plan_b": "cheap travel", "plan_c": "travel in luxury"},
            {"plan_b": "cheap", "plan_c": "luxury"},
            id="names that a letter alone tells apart",
        ),
        pytest.param(
            {"code": "anything", "code_generation": "snippets"},
            {"code": "code", "code_generation": "generation"},
            id="word that is all of another name",
        ),
        pytest.param(
            {"book journey": "x", "journey": "x", "food": "book tables"},
            {"book journey": "book", "journey": "journey", "food": "food"},
            id="shared word goes to the route that has no other",
        ),
        pytest.param(
            {"other_topics": "weather", "task": "the weather"},
            {"other_topics": "weather", "task": SPARE[0]},
            id="generic words and other are no labels",
        ),
        pytest.param(
            {"图像": "生成图像", "écriture": "rédaction"},
            {"écriture": SPARE[0], "图像": SPARE[1]},
            id="no one-token word: neutral words in order of the names",
        ),
    ],
)
def test_label_is_the_most_telling_word(routes: dict[str, str], labels: dict[str, str]) -> None:
    assert assign_labels(policy_of(routes), smollm2()) == labels


def test_neutral_words_do_not_occur_in_the_policy() -> None:
    labels = assign_labels(policy_of({"x": "1", SPARE[0]: "fruit"}), smollm2())

    assert labels == {"x": SPARE[1], SPARE[0]: SPARE[0]}


@pytest.mark.parametrize("vocabulary", [smollm2, qwen])
def test_every_neutral_word_is_one_token(vocabulary: Callable[[], HfTokenizer]) -> None:
    assert [word for word in SPARE if label_token(word, vocabulary()) is None] == []


def test_hundreds_of_routes_without_a_word_get_one_each() -> None:
    labels = assign_labels(policy_of({f"r{i}": f"{i}" for i in range(600)}), smollm2())

    assert len(set(labels.values())) == 600


@settings(max_examples=60)
@given(policy=policies, data=st.data())
def test_labels_are_unique_single_tokens_and_independent_of_order(
    policy: Policy, data: st.DataObject
) -> None:
    tokenizer = smollm2()
    labels = assign_labels(policy, tokenizer)
    shuffled = data.draw(st.permutations(policy.routes))

    assert list(labels) == [route.name for route in policy.routes]
    assert len(set(labels.values())) == len(labels)
    assert OTHER not in labels.values()
    for label in labels.values():
        assert label.isalpha()
        assert label == label.lower()
        assert len(tokenizer.encode(f" {label}")) == 1
    again = Policy(policy.name, tuple(shuffled), policy.default)
    assert assign_labels(again, tokenizer) == labels
