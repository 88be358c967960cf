"""Renders the Triton model repository that serves a CPU engine."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

from sidecar.engines.cpu_quota import threads_within_quota
from sidecar.engines.engine_directory import GRAPH_VERSION, compiled_folder, read_engine
from sidecar.engines.errors import EngineError
from sidecar.engines.triton_models import triton_models

MODEL_NAME = "tensorrt_llm"
"""The name that TensorRT-LLM's own repository uses, so that only the address differs."""


@dataclass(frozen=True, slots=True)
class CpuRepositoryOptions:
    """What bounds the served model.

    Args:
        max_batch_size: requests that Triton hands over together.
        max_queue_size: requests that wait for the language model; more are answered UNAVAILABLE. 0
            sets no bound: each sidecar bounds how many it asks at a time and takes them back when
            its budget is over.
        prefix_cache_bytes: bound of the kept prefixes' keys and values.
        route_cache_bytes: bound of the kept states of routes, for a second opinion.
        max_pass_tokens: new tokens of one pass over the graph. Where the CPU computes as fast as it
            reads the weights, a longer pass saves nothing and everybody waits for its end.
        max_output_tokens: longest answer.
        threads: of computation; 0: all cores, or as many as the container's CPU limit allows where
            Triton runs here, too.
        precision: of the arithmetic, `f32` or `bf16`; empty takes bfloat16 where the CPU computes
            in it, else float32.
        keep_compiled: keep what OpenVINO compiles for this CPU beside the engine, where that
            folder can be written: the next start takes a third of the time, and the unpacked
            weights are mapped from there instead of held (as large as the weights in float32).
    """

    max_batch_size: int = 16
    max_queue_size: int = 0
    prefix_cache_bytes: int = 512 * 1024 * 1024
    route_cache_bytes: int = 64 * 1024 * 1024
    max_pass_tokens: int = 256
    max_output_tokens: int = 256
    threads: int = 0
    precision: str = ""
    keep_compiled: bool = True


def render_cpu_repository(
    engine: Path,
    destination: Path,
    *,
    options: CpuRepositoryOptions | None = None,
    served_at: Path | None = None,
) -> Path:
    """Write a model repository with one model, `tensorrt_llm`, that serves `engine`.

    What was in `destination` under that name is replaced.

    Args:
        served_at: absolute path of the engine where Triton will run, if not here.

    Returns:
        `destination`, to be given to `tritonserver --model-repository`.

    Raises:
        EngineError: `engine` is not a whole engine directory, was built by another version, or its
            path cannot stand in config.pbtxt.
    """
    info = read_engine(engine)
    source = triton_models() / "cpu" / MODEL_NAME
    if info.router.graph_version != GRAPH_VERSION:
        raise EngineError(
            f"{engine}: graph_version is {info.router.graph_version}, this version serves "
            f"{GRAPH_VERSION}; build the engine again"
        )
    path = str(served_at or info.path.resolve())
    if any(character in path for character in '"\\\n'):
        raise EngineError(f"{path}: an engine's path must not contain quotes or backslashes")
    model = destination / MODEL_NAME
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(source / "1", model / "1", ignore=shutil.ignore_patterns("__pycache__"))
    template = Template((source / "config.pbtxt").read_text(encoding="utf-8"))
    options = options or CpuRepositoryOptions()
    compiled = compiled_folder(Path(path))
    # Elsewhere the model server finds out by itself whether it can write there.
    writable = served_at is not None or os.access(compiled.parent, os.W_OK)
    values = {
        **asdict(options),
        "threads": options.threads or (threads_within_quota() if served_at is None else 0),
        "gpt_model_path": path,
        "compiled_folder": str(compiled) if options.keep_compiled and writable else "",
        "routing_model": info.router.build_id,
    }
    # Comments speak of ${…} itself; a missing name in a value would stop Triton, not pass.
    (model / "config.pbtxt").write_text(template.safe_substitute(values), encoding="utf-8")
    return destination
