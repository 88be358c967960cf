"""`triton_models/gpu/reference.py` with a real transformers, where it is installed
(`requirements/reference.txt`)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sidecar.engines.trtllm import Question
from sidecar.engines.trtllm.verification import read_readings, write_questions
from tests.engines import reference
from tests.engines.tiny_models import LLAMA
from tests.engines.trtllm import fake_nvidia

SCRIPT = fake_nvidia.REPO / "triton_models" / "gpu" / "reference.py"
INSTALLED = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
LABELS = (7, 30, 31, 120)
LITERALS = ("code", "billing")


@pytest.mark.skipif(not INSTALLED, reason="torch and transformers are not installed")
# bfloat16 has 8 bits of mantissa, and logits here go up to 12; the fixtures have five decimals.
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.6), ("float32", 1e-4)])
def test_logits_are_those_of_the_weights(tmp_path: Path, dtype: str, tolerance: float) -> None:
    prefix, suffixes = reference.prompts(LLAMA.vocab)
    expected = json.loads((reference.FIXTURES / "llama.json").read_text())["logits"]
    model = LLAMA.write(tmp_path / "model")
    special = {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (model / "tokenizer_config.json").write_text(json.dumps(special))
    questions = [
        Question(str(n), (*prefix, *suffix), len(prefix), ("a", "b", "c", "d"), ("a",), LABELS)
        for n, suffix in enumerate(suffixes)
    ]
    text = Question("text", questions[0].input_ids, 0, LITERALS, ("code",), literals=LITERALS)
    write_questions(tmp_path / "questions.jsonl", [*questions, text])
    command = [sys.executable, str(SCRIPT), "--model-dir", str(model), "--device", "cpu"]
    command += ["--questions", str(tmp_path / "questions.jsonl"), "--out", str(tmp_path / "out")]
    command += ["--dtype", dtype]
    subprocess.run(command, check=True, capture_output=True)

    *labels, words = read_readings(tmp_path / "out", [*questions, text])
    for reading, right in zip(labels, expected, strict=True):
        np.testing.assert_allclose(reading.logits, np.array(right)[list(LABELS)], atol=tolerance)
    # Logarithms of probabilities of two texts out of many.
    assert all(logit < 0 for logit in words.logits)
    assert sum(np.exp(words.logits)) < 1
