"""Renders the model `second_opinion`: the sentence encoder of an engine, beside its language model.

TensorRT-LLM's backend computes the language model and nothing else. The encoder is small enough for
the CPUs that a GPU's machine has: it runs in Triton's Python backend on OpenVINO, by the modules of
the CPU model, copied beside it. The sidecar asks both models at once.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from sidecar.engines.engine_directory import read_engine
from sidecar.engines.errors import EngineError
from sidecar.engines.triton_models import triton_models
from sidecar.engines.trtllm.repository import (
    Parameter,
    checked_path,
    render_parameters,
    render_tensors,
)
from sidecar.engines.trtllm.tensors import Tensor

SECOND_OPINION = "second_opinion"

INPUTS = (
    Tensor("second_opinion_request_ids", "INT32", (-1,), ragged=True),
    Tensor("second_opinion_request_types", "INT32", (-1,), ragged=True),
    Tensor("second_opinion_route_ids", "INT32", (-1,), optional=False, ragged=True),
    Tensor("second_opinion_route_lengths", "INT32", (-1,), optional=False, ragged=True),
)
OUTPUTS = (Tensor("second_opinion_logits", "FP32", (-1,)),)


@dataclass(frozen=True, slots=True)
class SecondOpinionOptions:
    """What bounds the model.

    Args:
        max_batch_size: requests that are computed together.
        threads: of computation; 0: all cores that OpenVINO sees.
        precision: of the arithmetic, `f32` or `bf16`; empty takes bfloat16 where the CPU computes
            in it, else float32.
        route_cache_bytes: bound of what is kept of routes.
    """

    max_batch_size: int = 16
    threads: int = 2
    precision: str = ""
    route_cache_bytes: int = 64 * 1024 * 1024


def render_second_opinion(
    engine: Path,
    destination: Path,
    *,
    options: SecondOpinionOptions | None = None,
    served_at: Path | None = None,
) -> Path:
    """Add the model `second_opinion` to a repository that has `tensorrt_llm`.

    Args, Returns: as `render_gpu_repository`.

    Raises:
        EngineError: as `render_gpu_repository`, or the engine has no sentence encoder.
    """
    info = read_engine(engine)
    if info.router.second_opinion is None:
        raise EngineError(f"{engine}: has no second opinion to serve")
    text = render_second_opinion_config(
        served_at or info.path.resolve(), options or SecondOpinionOptions()
    )
    model = destination / SECOND_OPINION
    shutil.rmtree(model, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    models = triton_models()
    shutil.copytree(models / "gpu" / SECOND_OPINION / "1", model / "1", ignore=ignored)
    modules = models / "cpu" / "tensorrt_llm" / "1" / "cpu_engine"
    shutil.copytree(modules, model / "1" / modules.name, ignore=ignored)
    (model / "config.pbtxt").write_text(text, encoding="utf-8")
    return destination


def render_second_opinion_config(engine: Path, options: SecondOpinionOptions) -> str:
    """config.pbtxt for the engine that lies at `engine` where Triton runs. Raises EngineError."""
    parameters = (
        Parameter("engine", checked_path(engine), "Of it the files second_opinion.* are read."),
        Parameter(
            "threads",
            options.threads,
            "Of computation; 0: all cores. One core is the C++ backend's, which does not sleep.",
        ),
        Parameter(
            "precision",
            options.precision,
            "f32 or bf16; empty: bfloat16 where the CPU computes in it, else float32.",
        ),
        Parameter("route_cache_bytes", options.route_cache_bytes, "What is kept of routes."),
    )
    lines = [
        "# Written by the sidecar (sidecar/engines/trtllm/second_opinion.py).",
        "#",
        "# Tensors: as those of that name of the CPU model. Without a request the routes are kept.",
        f'name: "{SECOND_OPINION}"',
        'backend: "python"',
        f"max_batch_size: {options.max_batch_size}",
        "model_transaction_policy { decoupled: false }",
        "# No bound of the queue: with one, Triton 2.51's batcher overlooks requests for 500 ms at",
        "# times. The sidecars bound what they ask.",
        "dynamic_batching { max_queue_delay_microseconds: 0 }",
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
        *render_tensors("input", INPUTS),
        *render_tensors("output", OUTPUTS),
        *render_parameters(parameters),
    ]
    return "\n".join(lines) + "\n"
