"""Baselines."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from sidecar.core.policy import OTHER
from sidecar.evaluation.baselines import best_route, majority, overlap_scores, word_overlap
from sidecar.evaluation.minilm import Encoder, minilm
from sidecar.evaluation.policies import CaseRoute
from sidecar.local import data_file
from tests.evaluation.making import ROUTES, case


def test_majority_answers_the_most_frequent_label_that_the_case_may_answer() -> None:
    cases = [case("code"), case("code"), case("weather"), case("weather", routes=ROUTES[2:])]
    assert [o.answer for o in majority(cases).outcomes] == ["code", "code", "code", "weather"]


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("Please refund my payment", "billing"),
        ("the program crashed, fixing it is hard", "code"),
        ("FORECASTS for tomorrow?", "weather"),
    ],
)
def test_word_overlap_finds_shared_words(text: str, best: str) -> None:
    scores = overlap_scores(case(text=text))
    assert ROUTES[scores.index(max(scores))].name == best


@pytest.mark.parametrize("name", ["book_flight", "bookFlight", "Book flight", "book.flight"])
def test_words_of_names_count(name: str) -> None:
    routes = [CaseRoute(name, "x"), CaseRoute("rest", "y")]
    scores = overlap_scores(case(name, routes=routes, text="I want to book a flight"))
    assert scores[0] > scores[1] == 0.0


def test_other_is_answered_below_the_threshold_that_is_best() -> None:
    scored = {"1": ("code", 0.9), "2": ("code", 0.6), "3": (OTHER, 0.5), "4": (OTHER, 0.2)}
    cases = [case(label, id=id) for id, (label, _) in scored.items()]
    found = best_route(cases, lambda c: [0.0, scored[c.id][1], 0.0])
    assert found.threshold == pytest.approx(0.6)
    assert [o.right for o in found.outcomes] == [True] * 4


@pytest.mark.parametrize("label", ["code", OTHER])
def test_threshold_of_cases_with_one_right_answer_stands_in_json(label: str) -> None:
    cases = [case(label, id="1"), case(label, id="2")]
    found = best_route(cases, lambda c: [0.0, float(c.id), 0.0])
    assert [o.answer for o in found.outcomes] == [label, label]
    assert found.threshold is not None
    assert math.isfinite(found.threshold)


def test_no_threshold_is_better_than_one_that_costs() -> None:
    cases = [case("code", id="1"), case(OTHER, id="2")]
    found = best_route(cases, lambda c: [0.0, 0.1 if c.id == "1" else 0.9, 0.0])
    assert found.threshold == 0.1
    assert [o.answer for o in found.outcomes] == ["code", "code"]


def test_a_request_without_words_is_no_error() -> None:
    assert len(word_overlap([case(text="?!")]).outcomes) == 1


def test_texts_are_embedded_alone_as_in_a_batch(tmp_path: Path) -> None:
    encoder = Encoder(_tiny_bert(tmp_path))
    texts = ["a", "a b c d e", "c b", ""]
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    assert together[0] @ together[1] < 0.999


def test_half_an_emoji_is_embedded(tmp_path: Path) -> None:
    half, question = Encoder(_tiny_bert(tmp_path)).encode(["a \ud83d", "a ?"])
    np.testing.assert_allclose(half, question, atol=1e-5)


def test_minilm_is_the_real_one() -> None:
    """The numbers are those of transformers 5.24 with the same weights."""
    weights = data_file("minilm")
    encoder = Encoder(weights)
    flight, plane, unlike = encoder.encode(
        ["How do I book a flight?", "Reserve a seat on a plane.", "naïve Ünïcode 你好 emoji 🙂"]
    )
    expected = [0.12328985, -0.01066715, -0.07793028, 0.05858062]
    np.testing.assert_allclose(flight[:4], expected, atol=1e-5)
    assert flight @ plane == pytest.approx(0.60540, abs=1e-4)
    assert flight @ unlike == pytest.approx(-0.06270, abs=1e-4)
    found = minilm([case(text="Will it rain?")], weights, lambda done, total: None)
    assert found.outcomes[0].answer == "weather"


def _tiny_bert(folder: Path) -> Path:
    """Random weights of BERT's form: one layer, two heads, eight dimensions."""
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5, "c": 6, "d": 7}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"num_attention_heads": 2, "num_hidden_layers": 1}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 6}')
    layer = "encoder.layer.0"
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (8, 8),
        "embeddings.position_embeddings.weight": (6, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
    }
    linear = {
        **{f"{layer}.attention.self.{part}": (8, 8) for part in ("query", "key", "value")},
        f"{layer}.attention.output.dense": (8, 8),
        f"{layer}.intermediate.dense": (16, 8),
        f"{layer}.output.dense": (8, 16),
    }
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in ("embeddings", f"{layer}.attention.output", f"{layer}.output"):
        shapes |= {f"{name}.LayerNorm.weight": (8,), f"{name}.LayerNorm.bias": (8,)}
    _write_safetensors(folder / "model.safetensors", shapes)
    return folder


def _write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    header, data = {}, b""
    for name, shape in shapes.items():
        block = rng.normal(size=shape).astype(np.float32).tobytes()
        offsets = [len(data), len(data) + len(block)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        data += block
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
