"""Renders the model `ensemble`: text and policy in, a route out, for callers without a sidecar.

NVIDIA's repository has an ensemble of that name that goes from text to text. This one is a Python
model that asks `tensorrt_llm` from inside Triton. The modules that write prompts and read answers
are the sidecar's own, copied beside it: NVIDIA's container has `tokenizers`, and they need no more.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from sidecar.engines.engine_directory import read_engine
from sidecar.engines.triton_models import triton_models
from sidecar.engines.trtllm.repository import (
    Parameter,
    checked_path,
    render_parameters,
    render_tensors,
)
from sidecar.engines.trtllm.tensors import Tensor

ENSEMBLE = "ensemble"
_PACKAGE = Path(__file__).resolve().parents[2]
_MODULES = ("core", "prompts", "inference/__init__.py", "inference/tokenizer.py", "__init__.py")

INPUTS = (
    Tensor("text_input", "STRING", (1,)),
    Tensor("messages", "STRING", (1,)),
    Tensor("policy", "STRING", (1,), optional=False),
)
OUTPUTS = (
    Tensor("route", "STRING", (1,)),
    Tensor("confidence", "FP32", (1,)),
    Tensor("text_output", "STRING", (1,)),
)


@dataclass(frozen=True, slots=True)
class EnsembleOptions:
    """What bounds the model.

    Args:
        max_batch_size: requests that are asked together.
        max_queue_size: requests that wait; more are answered UNAVAILABLE.
        max_policies: compiled policies that are kept.
    """

    max_batch_size: int = 32
    max_queue_size: int = 256
    max_policies: int = 64


def render_ensemble(
    engine: Path,
    destination: Path,
    *,
    options: EnsembleOptions | None = None,
    served_at: Path | None = None,
) -> Path:
    """Add the model `ensemble` to a repository that has `tensorrt_llm`.

    Args, Returns, Raises: as `render_gpu_repository`.
    """
    info = read_engine(engine)
    text = render_ensemble_config(served_at or info.path.resolve(), options or EnsembleOptions())
    model = destination / ENSEMBLE
    shutil.rmtree(model, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(triton_models() / "gpu" / ENSEMBLE / "1", model / "1", ignore=ignored)
    for name in _MODULES:
        source, target = _PACKAGE / name, model / "1" / "sidecar" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copyfile(source, target)
    (model / "config.pbtxt").write_text(text, encoding="utf-8")
    return destination


def render_ensemble_config(engine: Path, options: EnsembleOptions) -> str:
    """config.pbtxt for the engine that lies at `engine` where Triton runs. Raises EngineError."""
    parameters = (
        Parameter(
            "engine", checked_path(engine), "Of it router.json and the tokenizer are read here."
        ),
        Parameter("max_policies", options.max_policies, "Compiled policies that are kept."),
    )
    lines = [
        "# Written by the sidecar (sidecar/engines/trtllm/ensemble.py).",
        "#",
        "# text_input: one user message; or messages: a JSON list of {role, content}.",
        "# policy: JSON, {routes: [{name, description}]}.",
        f'name: "{ENSEMBLE}"',
        'backend: "python"',
        f"max_batch_size: {options.max_batch_size}",
        "model_transaction_policy { decoupled: false }",
        "dynamic_batching {",
        "  # What waits is asked together, so that the engine can compute it together.",
        "  max_queue_delay_microseconds: 0",
        f"  default_queue_policy {{ max_queue_size: {options.max_queue_size} }}",
        "}",
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
        *render_tensors("input", INPUTS),
        *render_tensors("output", OUTPUTS),
        *render_parameters(parameters),
    ]
    return "\n".join(lines) + "\n"
