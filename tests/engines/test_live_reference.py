"""The same comparisons against transformers itself, where it is installed.

transformers and torch are several hundred megabytes and no dependency of the sidecar; the fixtures
stand in for them. To run this: `pip install torch transformers` beside the `dev` and `cpu` extras.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from sidecar.engines import EngineInfo, build_cpu_engine
from tests.engines import reference
from tests.engines.parts import ask, compile_engine, logits_of, new_decider
from tests.engines.tiny_models import TINY_MODELS

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="torch and transformers are not installed; the fixtures stand in for them",
)

# Weights are stored in float16; SmolLM2's logits have a standard deviation of about 5.
SMOLLM2_TOLERANCE = 0.05


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_fixtures_are_what_transformers_computes(
    name: str, engines: Mapping[str, EngineInfo], tmp_path: Path
) -> None:
    model = TINY_MODELS[name]
    fresh = reference.reference(model.write(tmp_path), model.vocab)
    stored = json.loads((reference.FIXTURES / f"{name}.json").read_text())
    np.testing.assert_allclose(fresh["logits"], stored["logits"], atol=1e-4)
    assert [entry["tokens"] for entry in fresh["free"]] == [
        entry["tokens"] for entry in stored["free"]
    ]
    assert [entry["text"] for entry in fresh["literal"]] == [
        entry["text"] for entry in stored["literal"]
    ]


def test_smollm2_from_gguf(tmp_path: Path) -> None:
    from sidecar.local import data_file

    gguf = data_file("smollm2.gguf")
    engine = build_cpu_engine(
        gguf, tmp_path / "engine", model_id="smollm2", prompt_format="compact-v1"
    )
    decider = new_decider(compile_engine(engine.path, "f32"), engine.tokenizer_path)
    prefix, suffix = _chat(engine.tokenizer_path)
    right = reference.transformers_logits(gguf.parent, gguf_file=gguf.name)([*prefix, *suffix])
    for requests in ([ask(prefix, suffix, logits=True)], [ask([], prefix + suffix, logits=True)]):
        (row,) = logits_of(decider, requests)
        np.testing.assert_allclose(row, right, rtol=0, atol=SMOLLM2_TOLERANCE)


def _chat(tokenizer_path: Path) -> tuple[list[int], list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    system = "<|im_start|>system\nYou are a geography teacher.<|im_end|>\n"
    user = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer.encode(system).ids, tokenizer.encode(user).ids
