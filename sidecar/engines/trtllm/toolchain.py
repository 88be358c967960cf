"""NVIDIA's programs: where they are and which versions are known to fit together.

TensorRT-LLM 1.2.1 is the last stable release that builds engines: 1.3 removed `trtllm-build`, the
conversion scripts and the C++ Triton backend
(NVIDIA/TensorRT-LLM docs/source/legacy/tensorrt-backend-removal.md). Earlier ones are refused as
well: 1.2.1 repaired a corruption of the KV cache (NVIDIA/TensorRT-LLM#12770) that prefix reuse
would meet, and brought the xgrammar 0.1.32 that grammars are written for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

IMAGE = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
"""The last container with these programs; 26.04 to 26.06 have the same TensorRT-LLM."""

TRTLLM_VERSION = "1.2.1"
TENSORRT_VERSION = "10.14.1"
"""Of 10.14.1.48; the last number is the build."""

TRTLLM_LINE = (1, 2)


@dataclass(frozen=True, slots=True)
class Toolchain:
    """Where the programs are. The defaults are those of NVIDIA's container.

    Args:
        python: the interpreter that has tensorrt_llm, which is not the one that runs this.
        examples: folder with TensorRT-LLM's conversion scripts.
    """

    python: str = "python3"
    examples: Path = Path("/app/examples")
    trtllm_build: str = "trtllm-build"
    nvidia_smi: str = "nvidia-smi"

    def convert_script(self, family: str) -> Path:
        """Of an `Architecture.family`."""
        folder = {"llama": "llama", "qwen2": "qwen"}[family]
        return self.examples / "models" / "core" / folder / "convert_checkpoint.py"

    @property
    def quantize_script(self) -> Path:
        return self.examples / "quantization" / "quantize.py"

    @property
    def xgrammar_script(self) -> Path:
        return self.examples / "generate_xgrammar_tokenizer_info.py"
