"""Builds routing-model engines and their manifests, and renders what serves them.

`openvino` and `gguf` (extra `cpu`) are imported when an engine is built, not before.
"""

from sidecar.engines.cpu import build_cpu_engine
from sidecar.engines.cpu_repository import CpuRepositoryOptions, render_cpu_repository
from sidecar.engines.engine_directory import (
    EngineInfo,
    RouterFacts,
    WeightStorage,
    load_engine,
    read_engine,
    read_routing_facts,
)
from sidecar.engines.errors import EngineError

__all__ = [
    "CpuRepositoryOptions",
    "EngineError",
    "EngineInfo",
    "RouterFacts",
    "WeightStorage",
    "build_cpu_engine",
    "load_engine",
    "read_engine",
    "read_routing_facts",
    "render_cpu_repository",
]
