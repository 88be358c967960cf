"""In which numbers an engine keeps its weights and computes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sidecar.engines.engine_directory import WeightStorage
from sidecar.engines.errors import EngineError
from sidecar.engines.weights import Architecture


class Precision(StrEnum):
    """What `sidecar model build --precision` takes."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    INT4_AWQ = "int4_awq"

    @property
    def facts(self) -> PrecisionFacts:
        return _FACTS[self]


@dataclass(frozen=True, slots=True)
class PrecisionFacts:
    """What follows from a precision.

    Args:
        dtype: of everything that is not quantised, as NVIDIA's programs spell it.
        qformat: of `quantize.py`; empty where the checkpoint is converted as it is.
        gemm_plugin: NVIDIA's tuning guide recommends the plugin for 16-bit weights and advises
            against it for FP8.
        weight_bits: of a weight inside the layers, scales included; embedding and head stay in
            16 bits.
        min_compute_capability: the oldest GPUs that compute it.
    """

    dtype: str
    qformat: str
    gemm_plugin: str
    weight_bits: float
    min_compute_capability: float
    storage: WeightStorage
    experimental: bool = False


_AWQ_BLOCKS = (128, 64)
"""Weights that share a scale. TensorRT-LLM computes with these alone
(https://github.com/NVIDIA/TensorRT-LLM/issues/988); the larger is NVIDIA's default."""

_FACTS = {
    Precision.BF16: PrecisionFacts("bfloat16", "", "bfloat16", 16, 8.0, WeightStorage.BF16),
    Precision.FP16: PrecisionFacts("float16", "", "float16", 16, 8.0, WeightStorage.F16),
    Precision.FP8: PrecisionFacts("bfloat16", "fp8", "disable", 8, 8.9, WeightStorage.FP8),
    Precision.INT4_AWQ: PrecisionFacts(
        "bfloat16",
        "int4_awq",
        "auto",
        4 + 16 / _AWQ_BLOCKS[0],
        8.0,
        WeightStorage.INT4_AWQ,
        experimental=True,
    ),
}


def awq_block(architecture: Architecture) -> int:
    """How many weights share a scale in INT4-AWQ: along the inputs of every layer, whose widths it
    must divide.

    Raises:
        EngineError: no block does.
    """
    widths = {
        "hidden_size": architecture.hidden_size,
        "num_attention_heads * head_dim": architecture.heads * architecture.head_dim,
        "intermediate_size": architecture.intermediate_size,
    }
    for block in _AWQ_BLOCKS:
        if all(width % block == 0 for width in widths.values()):
            return block
    name, width = next((n, w) for n, w in widths.items() if w % _AWQ_BLOCKS[-1])
    raise EngineError(
        f"{Precision.INT4_AWQ} keeps weights in blocks of {_AWQ_BLOCKS[-1]} or more, and {name} is "
        f"{width}, no multiple of it; choose another --precision"
    )
