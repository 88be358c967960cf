"""Reads `checkpoint.pt` of a run."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from router_training.errors import InputError


def read_checkpoint(path: Path, *needed: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Raises OSError; InputError if it is no checkpoint, or one without what is `needed`, as one of
    another program is."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a checkpoint.pt that can be read") from error
    missing = [key for key in ("model", *needed) if not isinstance(state, dict) or key not in state]
    if missing:
        raise InputError(f"{path}: not a checkpoint.pt of such a model: it has no {missing[0]!r}")
    return dict(state)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Give `model` the weights that `path` has. Raises InputError for those of another model."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in weights.items()}:
        raise InputError(f"{path}: has the weights of another model, or of another size of it")
    model.load_state_dict(weights)
