"""A model to score or export: a checkpoint of a run, an adapter over the base, or a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from router_training.base import Base
from router_training.checkpoint import load_weights, read_checkpoint
from router_training.llama import Llama
from sidecar.engines.adapter import open_adapter, open_merged


def load_model(base: Base, checkpoint: Path | None = None, adapter: Path | None = None) -> Llama:
    """`base` as it is, with the weights of a `checkpoint.pt`, or with an adapter merged into it as
    the sidecar merges it.

    Raises EngineError for an adapter that was made for another base, InputError for a checkpoint of
    another model.
    """
    model = base.model()
    if checkpoint:
        state = read_checkpoint(checkpoint, "average", "plan")
        load_weights(model, state["model"], checkpoint)
        if state["average"]:
            for parameter, average in zip(trained_of(model, state), state["average"], strict=True):
                parameter.data.copy_(average)
    if adapter:
        weights = open_merged(base.path, open_adapter(adapter)).weights
        merged = {name: np.array(weights.tensor(name), np.float32) for name in base.weights}
        model.load_state_dict({name: torch.from_numpy(array) for name, array in merged.items()})
    return model


def trained_of(model: Llama, state: dict[str, dict[str, int]]) -> list[torch.nn.Parameter]:
    model.freeze(state["plan"]["frozen_layers"])
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def numpy_weights(model: Llama) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
