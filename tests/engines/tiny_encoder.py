"""A sentence encoder small enough for a test: random weights by seed, as Hugging Face writes them,
and a second opinion's change of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from sidecar.engines.encoder import OTHER_BIAS, SCALES, EncoderArchitecture
from sidecar.engines.engine_directory import sha256_of
from tests.engines.tiny_adapter import METADATA, Tensors, write_weights

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
CLS, SEP = 2, 3

REQUEST = (CLS, 10, 11, 12, SEP, 20, 21, SEP)
TYPES = (0, 0, 0, 0, 0, 1, 1, 1)
ROUTES = ((CLS, 10, 12, SEP), (CLS, 30, 31, 32, 33, SEP), (CLS, 40, SEP))
"""A request, and the routes of a policy, in ids of the encoder."""

FUSION = {"language_model": 0.5, "encoder": 2.0, "other_bias": 0.25, "temperature": 1.5}


@dataclass(frozen=True)
class TinyEncoder:
    """Shape of a tiny BERT."""

    seed: int = 3
    vocab: int = 120
    hidden: int = 24
    intermediate: int = 48
    layers: int = 2
    heads: int = 3
    positions: int = 128

    @property
    def architecture(self) -> EncoderArchitecture:
        return EncoderArchitecture(
            self.vocab,
            self.hidden,
            self.intermediate,
            self.layers,
            self.heads,
            self.positions,
            2,
            1e-12,
        )

    def config(self) -> dict[str, Any]:
        """Content of config.json."""
        return {
            "model_type": "bert",
            "hidden_act": "gelu",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.positions,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
        }

    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """The weights of the base, in numbers that float16 holds."""
        return self._random(self.seed, added=False)

    def change(self) -> Tensors:
        """The tensors of a second opinion: two matrices, all that the base has not."""
        rng = np.random.default_rng(self.seed + 1)
        change: Tensors = {
            name: values
            for name, values in self._random(self.seed + 2, added=True).items()
            if name.startswith("second_opinion.")
        }
        change[SCALES] = np.array([3.0, 2.0, 1.0], np.float32)
        change[OTHER_BIAS] = np.array([0.5], np.float32)
        for name in ("attention.self.query", "output.dense"):
            name = f"encoder.layer.1.{name}.weight"
            rows, columns = self.architecture.shapes()[name]
            change[f"{name}.codes"] = rng.integers(0, 256, (rows, columns // 2)).astype(np.uint8)
            change[f"{name}.scale"] = (0.1 * rng.random(rows)).astype(np.float16)
        return change

    def _random(self, seed: int, added: bool) -> dict[str, npt.NDArray[np.float32]]:
        rng = np.random.default_rng(seed)
        tensors = {}
        for name, shape in self.architecture.shapes().items():
            shift = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            values = (rng.standard_normal(shape) * 0.2 + shift).astype(np.float16)
            if added or not name.startswith("second_opinion."):
                tensors[name] = values.astype(np.float32)
        return tensors

    def write(self, folder: Path) -> Path:
        """config.json, tokenizer.json and the base's weights."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config()))
        (folder / "tokenizer.json").write_text(tiny_wordpiece(self.vocab).to_str())
        write_weights(folder / "model.safetensors", dict(self.tensors()), {"format": "pt"})
        return folder

    def write_second_opinion(self, adapter: Path, encoder: Path) -> dict[str, Any]:
        """second_opinion.safetensors in the folder `adapter`, for the encoder in `encoder`.

        Returns:
            The section of adapter.json.
        """
        base = sha256_of(encoder / "model.safetensors")
        metadata = {**METADATA, "bits": "4", "base_sha256": base}
        adapter.mkdir(parents=True, exist_ok=True)
        file = write_weights(adapter / "second_opinion.safetensors", self.change(), metadata)
        return {
            "file": file.name,
            "sha256": sha256_of(file),
            "base": {"name": "tiny encoder", "sha256": base},
            "fusion": FUSION,
        }


TINY_ENCODER = TinyEncoder()


def tiny_wordpiece(vocab: int) -> Tokenizer:
    """Letters, and pieces of words that no text has, so that the vocabulary is full."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*SPECIAL, ":", *letters, *(f"##{letter}" for letter in letters)]
    pieces += [f"##unused{number}" for number in range(vocab - len(pieces))]
    tokenizer = Tokenizer(
        models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer
