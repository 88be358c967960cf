"""Builds routing-model engines and their manifests, and renders what serves them.

`openvino` and `gguf` (extra `cpu`) are imported when an engine is built, not before.
"""

from sidecar.engines.adapter import (
    Adapter,
    AdapterFacts,
    BaseFacts,
    describe_adapter,
    open_adapter,
    shipped_adapter,
)
from sidecar.engines.checkpoint import write_checkpoint
from sidecar.engines.cpu import build_cpu_engine
from sidecar.engines.cpu_repository import CpuRepositoryOptions, render_cpu_repository
from sidecar.engines.engine_directory import (
    EngineInfo,
    FusionFacts,
    RouterFacts,
    WeightStorage,
    load_engine,
    read_engine,
    read_routing_facts,
)
from sidecar.engines.errors import EngineError

__all__ = [
    "Adapter",
    "AdapterFacts",
    "BaseFacts",
    "CpuRepositoryOptions",
    "EngineError",
    "EngineInfo",
    "FusionFacts",
    "RouterFacts",
    "WeightStorage",
    "build_cpu_engine",
    "describe_adapter",
    "load_engine",
    "open_adapter",
    "read_engine",
    "read_routing_facts",
    "render_cpu_repository",
    "shipped_adapter",
    "write_checkpoint",
]
