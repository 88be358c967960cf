"""What transformers computes for the tiny models: run it to write the fixtures anew.

    python -m tests.engines.reference

It needs torch and transformers, which the sidecar does not. Every number is computed from the
whole prompt at once, without cache, packing or batch.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.engines.tiny_models import END_ID, TINY_MODELS

FIXTURES = Path(__file__).with_name("fixtures")

PREFIX_TOKENS = 41
SUFFIX_TOKENS = (1, 9, 23, 14)
FREE_TOKENS = 6
LITERALS = (
    '{"route": "code_review"}',
    '{"route": "code"}',
    '{"route": "billing"}',
    "other",
    "other travel",
)

Logits = npt.NDArray[np.float32]
NextLogits = Callable[[Sequence[int]], Logits]


def prompts(vocab: int) -> tuple[list[int], list[list[int]]]:
    """A prefix and suffixes of it, by seed."""
    rng = np.random.default_rng(3)
    prefix = rng.integers(3, vocab, PREFIX_TOKENS).tolist()
    return prefix, [rng.integers(3, vocab, length).tolist() for length in SUFFIX_TOKENS]


def transformers_logits(source: Path, **options: Any) -> NextLogits:
    """Next-token logits of a model in float32, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options).eval()

    def logits(ids: Sequence[int]) -> Logits:
        with torch.no_grad():
            result: Logits = model(torch.tensor([list(ids)])).logits[0, -1].numpy()
            return result

    return logits


def free_answer(logits: NextLogits, prompt: Sequence[int], max_tokens: int) -> dict[str, Any]:
    """Greedy text: tokens and log-probabilities, the end token not included."""
    tokens: list[int] = []
    log_probs: list[float] = []
    while len(tokens) < max_tokens:
        row = _log_softmax(logits([*prompt, *tokens]))
        token = int(row.argmax())
        if token == END_ID:
            break
        tokens.append(token)
        log_probs.append(float(row[token]))
    return {"tokens": tokens, "log_probs": log_probs}


def literal_answer(
    logits: NextLogits, prompt: Sequence[int], token_bytes: Sequence[bytes]
) -> dict[str, Any]:
    """Greedy text that is one of `LITERALS`, by trying every token of the vocabulary.

    Returns:
        The text, and the log-probability of the choices up to where one literal is left.
    """
    literals = [literal.encode() for literal in LITERALS]
    tokens: list[int] = []
    text, log_prob = b"", 0.0
    while True:
        left = [literal for literal in literals if literal.startswith(text)]
        if len(left) == 1:
            return {"text": left[0].decode(), "log_prob": log_prob}
        allowed = [
            token
            for token, piece in enumerate(token_bytes)
            if piece and any(literal.startswith(text + piece) for literal in left)
        ]
        if text in left:
            allowed.append(END_ID)
        row = _log_softmax(logits([*prompt, *tokens])[allowed])
        best = int(row.argmax())
        log_prob += float(row[best])
        if allowed[best] == END_ID:
            return {"text": text.decode(), "log_prob": log_prob}
        tokens.append(allowed[best])
        text += token_bytes[allowed[best]]


def token_bytes(source: Path) -> list[bytes]:
    """Bytes of every token by decoding them; empty for special tokens."""
    from transformers import AutoTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokenizer = AutoTokenizer.from_pretrained(source)
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    return [
        b"" if index in special else bytes(byte_of[character] for character in token)
        for index, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    ]


def reference(source: Path, vocab: int) -> dict[str, Any]:
    """Everything that the fixtures hold for one model."""
    logits = transformers_logits(source)
    pieces = token_bytes(source)
    prefix, suffixes = prompts(vocab)
    whole = [[*prefix, *suffix] for suffix in suffixes]
    return {
        "logits": [[round(float(x), 5) for x in logits(prompt)] for prompt in whole],
        "free": [free_answer(logits, prompt, FREE_TOKENS) for prompt in whole],
        "literal": [literal_answer(logits, prompt, pieces) for prompt in whole],
    }


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    shifted = wide - wide.max()
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def main() -> None:
    FIXTURES.mkdir(exist_ok=True)
    for name, model in TINY_MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            content = reference(model.write(Path(folder)), model.vocab)
        (FIXTURES / f"{name}.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
