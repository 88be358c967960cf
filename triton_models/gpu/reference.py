#!/usr/bin/env python3
"""What the unconverted model decides: the reference that an engine is compared with.

Runs with the Python of NVIDIA's container, which has torch and transformers; the sidecar's packages
do not fit beside them. One question at a time, without the engine's tricks.

    reference.py --model-dir FOLDER --questions questions.jsonl --out reference.jsonl

A question is {"id", "input_ids", "label_ids" or "literals"}; an answer {"id", "logits"}: a number
for each label or literal, the logarithm of its probability up to a constant.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Reference:
    """The model, and the tokens that its answers consist of."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        self._device = device
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._model = model.to(device).eval()

    @torch.inference_mode()
    def logits(self, question: dict[str, Any]) -> list[float]:
        """Of every answer to `question`."""
        ids = torch.tensor([question["input_ids"]], device=self._device)
        read = self._model(ids, use_cache=True, logits_to_keep=1)
        last = read.logits[0, -1].float()
        if question["label_ids"]:
            return [float(last[token]) for token in question["label_ids"]]
        return [
            self._log_probability(text, last, read.past_key_values) for text in question["literals"]
        ]

    def _log_probability(self, text: str, last: torch.Tensor, cache: Any) -> float:
        """Of `text` and the end after it, given the prompt in `cache`, whose last logits are
        `last`."""
        tokens = self._tokenizer.encode(text, add_special_tokens=False)
        tokens = [*tokens, self._tokenizer.eos_token_id]
        ids = torch.tensor([tokens[:-1]], device=self._device)
        # Reading on changes the cache.
        read = self._model(ids, past_key_values=copy.deepcopy(cache))
        rows = torch.cat([last[None], read.logits[0].float()]).log_softmax(-1)
        return float(sum(row[token] for row, token in zip(rows, tokens, strict=True)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    given = parser.parse_args(arguments)
    reference = Reference(given.model_dir, given.device, getattr(torch, given.dtype))
    with given.questions.open(encoding="utf-8") as lines, given.out.open("w") as out:
        for number, line in enumerate(lines, 1):
            question = json.loads(line)
            answer = {"id": question["id"], "logits": reference.logits(question)}
            out.write(json.dumps(answer) + "\n")
            if number % 100 == 0:
                print(f"{number} cases", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
