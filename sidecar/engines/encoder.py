"""Reads a sentence encoder (BERT) out of a Hugging Face directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.engines.delta import Delta, MergedWeights
from sidecar.engines.errors import EngineError
from sidecar.engines.safetensors_file import SafetensorsFile
from sidecar.engines.weights import FloatArray, Weights

SCALES = "second_opinion.scales"
"""Weights of the three similarities."""

HEADS = tuple(f"second_opinion.{name}" for name in ("request_gate", "route_gate", "other"))
"""Vectors that turn a state into the weight of a request's token, that of a route's, and the part
of the logit of `other`."""

OTHER_BIAS = "second_opinion.other_bias"

ADDED = (SCALES, *HEADS, OTHER_BIAS)
"""What a second opinion has and its base has not."""


@dataclass(frozen=True, slots=True)
class EncoderArchitecture:
    """Facts of a BERT."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    positions: int
    types: int
    norm_eps: float

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, those of the second opinion included."""
        hidden, inner = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, hidden),
            "embeddings.position_embeddings.weight": (self.positions, hidden),
            "embeddings.token_type_embeddings.weight": (self.types, hidden),
            SCALES: (3,),
            OTHER_BIAS: (1,),
            **{name: (hidden,) for name in HEADS},
        }
        norms = ["embeddings.LayerNorm"]
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
            linears = {f"attention.self.{x}": (hidden, hidden) for x in ("query", "key", "value")}
            linears["attention.output.dense"] = (hidden, hidden)
            linears["intermediate.dense"] = (inner, hidden)
            linears["output.dense"] = (hidden, inner)
            for part, shape in linears.items():
                shapes[f"{name}.{part}.weight"] = shape
                shapes[f"{name}.{part}.bias"] = shape[:1]
        for name in norms:
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)
        return shapes


@dataclass(frozen=True, slots=True)
class EncoderSource:
    """An encoder on disk, opened.

    Args:
        weights: under the names of `EncoderArchitecture.shapes`.
        tokenizer: content of `tokenizer.json`.
        delta: what training changed; None for the base.
    """

    architecture: EncoderArchitecture
    weights: Weights
    weights_file: Path
    tokenizer: Mapping[str, Any]
    delta: Delta | None = None

    def changed_by(self, delta: Delta) -> EncoderSource:
        """With the change added. Raises EngineError if the delta is not one of a second opinion
        from such an encoder."""
        delta.check(self.architecture.shapes())
        missing = sorted({*ADDED} - delta.changed)
        if missing:
            raise EngineError(f"{delta.path}: has no {missing[0]!r}; export the encoder again")
        return replace(self, weights=MergedWeights(self.weights, delta), delta=delta)

    def scales(self) -> tuple[float, float, float]:
        """Raises EngineError for a base that was not trained."""
        first, second, third = map(float, self._added(SCALES))
        return first, second, third

    def head_weights(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """[heads, hidden] and [heads]; a softmax follows on all but the last, so only that has a
        bias. Raises EngineError for a base that was not trained."""
        biases = np.zeros(len(HEADS), np.float32)
        biases[-1:] = self._added(OTHER_BIAS)
        return np.stack([self._added(name) for name in HEADS]), biases

    def _added(self, name: str) -> npt.NDArray[np.float32]:
        if self.delta is None:
            raise EngineError(f"{self.weights_file}: has no {name!r}: it was not trained to route")
        return self.delta.vector(name)


def open_encoder(folder: Path) -> EncoderSource:
    """Open a BERT in the layout of Hugging Face.

    Raises:
        EngineError: a file is missing or damaged, or it is a model of another kind.
    """
    config = _read_json(folder / "config.json")
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
        raise EngineError(
            f"{folder}: model_type is {config.get('model_type')!r}, hidden_act "
            f"{config.get('hidden_act')!r}; the second opinion needs 'bert' and 'gelu'"
        )
    try:
        architecture = EncoderArchitecture(
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            positions=int(config["max_position_embeddings"]),
            types=int(config["type_vocab_size"]),
            norm_eps=float(config["layer_norm_eps"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{folder / 'config.json'}: {error!r}") from error
    file = folder / "model.safetensors"
    weights = _FileWeights(SafetensorsFile(file), file)
    return EncoderSource(architecture, weights, file, _read_json(folder / "tokenizer.json"))


@dataclass(frozen=True, slots=True)
class _FileWeights:
    file: SafetensorsFile
    path: Path

    def tensor(self, name: str) -> FloatArray:
        if name not in self.file.names:
            raise EngineError(f"{self.path}: tensor {name!r} is missing")
        return self.file.read(name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise EngineError(f"{path}: not valid JSON ({error})") from error
