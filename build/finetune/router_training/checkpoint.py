"""`checkpoint.pt` and `progress.json` of a run."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from router_training.errors import InputError
from router_training.files import written_whole
from router_training.options import CHECKPOINT

log = logging.getLogger(__name__)


def write_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """The last one stays whole until this one is. Raises OSError, InputError if it cannot be
    written."""
    with written_whole(folder / CHECKPOINT) as file:
        torch.save(dict(state), file)
    with written_whole(folder / "progress.json") as file:
        file.write_text(json.dumps(state["progress"]) + "\n")


def save_meanwhile(save: Callable[[], None]) -> None:
    """In a run that goes on, also where the disk is full for a while."""
    try:
        save()
    except (InputError, OSError) as error:
        log.warning("%s; the run goes on", error)


def interrupted(folder: Path) -> KeyboardInterrupt:
    return KeyboardInterrupt(f"--resume {folder / CHECKPOINT} goes on")


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
