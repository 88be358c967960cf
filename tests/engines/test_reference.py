"""The CPU engine computes what transformers computes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_engine.decisions import Decider
from cpu_engine.forward import Forward

from sidecar.engines import EngineInfo, WeightStorage, build_cpu_engine
from tests.engines import reference
from tests.engines.parts import ask, compile_engine, logits_of, new_decider, outcomes
from tests.engines.tiny_models import TINY_MODELS, tiny_tokenizer

# Largest difference of a logit; their standard deviation is 2.6 to 3.9. Fixtures are rounded to 5
# places. bfloat16 has 8 bits of precision and the values pass through three layers.
FLOAT32_TOLERANCE = 2e-4
BFLOAT16_TOLERANCE = 0.5
# Root mean square of the differences.
INT8_TOLERANCE = 0.3

by_name = pytest.mark.parametrize("name", sorted(TINY_MODELS))


def expected(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((reference.FIXTURES / f"{name}.json").read_text())
    return content


def check(name: str, actual: Any, tolerance: float = FLOAT32_TOLERANCE) -> None:
    np.testing.assert_allclose(actual, expected(name)["logits"], rtol=0, atol=tolerance)


@by_name
class TestLogits:
    @pytest.fixture
    def model(
        self, name: str, engines: Mapping[str, EngineInfo], forwards: Mapping[str, Forward]
    ) -> Decider:
        return new_decider(forwards[name], engines[name].tokenizer_path)

    def test_of_the_whole_prompt(self, name: str, model: Decider) -> None:
        prefix, suffixes = reference.prompts(TINY_MODELS[name].vocab)
        rows = [logits_of(model, [ask([], prefix + s, logits=True)])[0] for s in suffixes]
        check(name, rows)

    def test_over_a_cached_prefix(self, name: str, model: Decider) -> None:
        prefix, suffixes = reference.prompts(TINY_MODELS[name].vocab)
        rows = [logits_of(model, [ask(prefix, s, logits=True)])[0] for s in suffixes]
        check(name, rows)

    def test_of_a_batch_over_a_cached_prefix(self, name: str, model: Decider) -> None:
        prefix, suffixes = reference.prompts(TINY_MODELS[name].vocab)
        check(name, logits_of(model, [ask(prefix, s, logits=True) for s in suffixes]))

    def test_of_a_batch_without_a_prefix(self, name: str, model: Decider) -> None:
        prefix, suffixes = reference.prompts(TINY_MODELS[name].vocab)
        check(name, logits_of(model, [ask([], prefix + s, logits=True) for s in suffixes]))

    def test_in_the_precision_that_this_cpu_prefers(
        self, name: str, model: Decider, engines: Mapping[str, EngineInfo]
    ) -> None:
        engine = engines[name]
        preferred = new_decider(compile_engine(engine.path, ""), engine.tokenizer_path)
        prefix, suffixes = reference.prompts(TINY_MODELS[name].vocab)
        rows = logits_of(preferred, [ask(prefix, s, logits=True) for s in suffixes])
        check(name, rows, BFLOAT16_TOLERANCE)


@by_name
class TestText:
    @pytest.fixture
    def model(
        self, name: str, engines: Mapping[str, EngineInfo], forwards: Mapping[str, Forward]
    ) -> Decider:
        return new_decider(forwards[name], engines[name].tokenizer_path)

    @pytest.mark.parametrize("together", [True, False], ids=["batch", "alone"])
    def test_free(self, name: str, model: Decider, together: bool) -> None:
        prefix, suffixes = reference.prompts(TINY_MODELS[name].vocab)
        requests = [ask(prefix, s, max_tokens=reference.FREE_TOKENS) for s in suffixes]
        batches = [requests] if together else [[request] for request in requests]
        answers = [o.answer for batch in batches for o in outcomes(model, batch)]
        for answer, right in zip(answers, expected(name)["free"], strict=True):
            assert answer.tokens == right["tokens"]
            np.testing.assert_allclose(answer.log_probs, right["log_probs"], atol=1e-3)

    @pytest.mark.parametrize("together", [True, False], ids=["batch", "alone"])
    def test_one_of_the_literals(self, name: str, model: Decider, together: bool) -> None:
        prefix, suffixes = reference.prompts(TINY_MODELS[name].vocab)
        requests = [ask(prefix, s, max_tokens=40, literals=reference.LITERALS) for s in suffixes]
        batches = [requests] if together else [[request] for request in requests]
        answers = [o.answer for batch in batches for o in outcomes(model, batch)]
        pieces = _pieces(name)
        for answer, right in zip(answers, expected(name)["literal"], strict=True):
            assert b"".join(pieces[token] for token in answer.tokens) == right["text"].encode()
            assert answer.cum_log_prob == pytest.approx(right["log_prob"], abs=1e-3)


def _pieces(name: str) -> dict[int, bytes]:
    tokenizer = tiny_tokenizer(TINY_MODELS[name].vocab)
    return {
        index: tokenizer.decode([index], skip_special_tokens=False).encode()
        for index in range(tokenizer.get_vocab_size())
        if index < 3 or tokenizer.decode([index]).isascii()
    }


@by_name
def test_weights_in_8_bits_stay_close(name: str, tmp_path: Path) -> None:
    model = TINY_MODELS[name]
    engine = build_cpu_engine(
        model.write(tmp_path / "weights"),
        tmp_path / "engine",
        model_id="tiny",
        prompt_format="compact-v1",
        weight_storage=WeightStorage.INT8,
    )
    decider = new_decider(compile_engine(engine.path, "f32"), engine.tokenizer_path)
    prefix, suffixes = reference.prompts(model.vocab)
    rows = logits_of(decider, [ask(prefix, s, logits=True) for s in suffixes])
    error = np.sqrt(np.mean(np.square(rows - expected(name)["logits"])))
    assert FLOAT32_TOLERANCE < error < INT8_TOLERANCE
