"""Builds TensorRT-LLM engines out of Hugging Face folders and what Triton needs to serve them.

NVIDIA's programs run as commands inside NVIDIA's container, with that container's Python; nothing
of theirs is imported here.
"""

from sidecar.engines.trtllm.build import BuildRequest, Plan, build_trtllm_engine, plan_build
from sidecar.engines.trtllm.ensemble import EnsembleOptions, render_ensemble
from sidecar.engines.trtllm.precision import Precision
from sidecar.engines.trtllm.preflight import Machine, inspect_machine
from sidecar.engines.trtllm.repository import GpuRepositoryOptions, render_gpu_repository
from sidecar.engines.trtllm.second_opinion import SecondOpinionOptions, render_second_opinion
from sidecar.engines.trtllm.sizing import EngineLimits
from sidecar.engines.trtllm.toolchain import IMAGE, Toolchain
from sidecar.engines.trtllm.verification import Question, Reading, Verdict, compare

__all__ = [
    "IMAGE",
    "BuildRequest",
    "EngineLimits",
    "EnsembleOptions",
    "GpuRepositoryOptions",
    "Machine",
    "Plan",
    "Precision",
    "Question",
    "Reading",
    "SecondOpinionOptions",
    "Toolchain",
    "Verdict",
    "build_trtllm_engine",
    "compare",
    "inspect_machine",
    "plan_build",
    "render_ensemble",
    "render_gpu_repository",
    "render_second_opinion",
]
