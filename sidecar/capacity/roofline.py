"""How long a decision takes at least, from what a GPU can compute and read in a second.

The roofline model: a step takes as long as its arithmetic at the GPU's peak, or as long as reading
its weights and KV cache at the GPU's bandwidth, whichever is longer (Williams et al., 2009,
doi:10.1145/1498765.1498785). `Efficiency` says how far from that ideal real programs are; its
numbers are assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass

_KV_BYTES = 2
_HEAD_BYTES = 2


@dataclass(frozen=True, slots=True)
class Gpu:
    """What NVIDIA's data sheets say.

    Args:
        tflops_16bit, tflops_fp8: dense, in tensor cores; 0: cannot.
        gigabytes_per_second: of its memory.
    """

    name: str
    tflops_16bit: float
    tflops_fp8: float
    gigabytes_per_second: float


GPUS = (
    Gpu("L4", 121, 242, 300),
    Gpu("L40S", 362, 733, 864),
    Gpu("H100-SXM", 989, 1979, 3350),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a decoder counts for its time.

    Args:
        body: parameters of the layers.
        table: parameters of the embedding, which are also those of the head.
        hidden: width of queries and of the attention's output, all heads together.
    """

    name: str
    body: int
    table: int
    layers: int
    hidden: int
    kv_heads: int
    head_dim: int

    @property
    def kv_bytes_per_token(self) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim * _KV_BYTES


ARCH_ROUTER = Shape("Arch-Router-1.5B", 1_310_340_608, 233_373_696, 28, 1536, 2, 128)
SMOLLM2 = Shape("SmolLM2-135M", 106_203_456, 28_311_552, 30, 576, 3, 64)
SHAPES = (ARCH_ROUTER, SMOLLM2)


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the ideal that are reached, and what comes on top. Assumptions, not measurements.

    Args:
        compute: of the peak, for long steps; `compute_short` for those of up to `short` tokens.
        bandwidth: of the memory's.
        step_ms: launches and scheduling of a step.
        request_ms: Triton, and the millisecond after which its backend looks for answers.
    """

    compute: float = 0.5
    compute_short: float = 0.35
    short: int = 128
    bandwidth: float = 0.75
    step_ms: float = 0.25
    request_ms: float = 1.4


IDEAL = Efficiency(1.0, 1.0, 0, 1.0, 0.0, 0.0)
ASSUMED = Efficiency()


@dataclass(frozen=True, slots=True)
class Work:
    """One decision.

    Args:
        prompt: tokens, the reused ones included.
        reused: leading tokens whose keys and values are in the cache.
        answer: tokens; 1 for a label.
    """

    prompt: int
    reused: int = 0
    answer: int = 1

    @property
    def new(self) -> int:
        return self.prompt - self.reused


@dataclass(frozen=True, slots=True)
class Engine:
    """A model on a GPU. `fp8`: weights of the layers and arithmetic; all else is 16 bits."""

    gpu: Gpu
    shape: Shape
    fp8: bool = False

    @property
    def weight_bytes(self) -> int:
        """Read in every step; of the embedding a few rows alone."""
        return self.shape.body * (1 if self.fp8 else 2) + self.shape.table * _HEAD_BYTES

    def prefill_ms(self, work: Work, efficiency: Efficiency, batch: int = 1) -> float:
        """The step that reads the prompts of `batch` decisions and gives each its first token."""
        shape, new = self.shape, work.new
        attention = 2 * shape.layers * shape.hidden * (work.prompt**2 - work.reused**2)
        flops = batch * (2 * shape.body * new + 2 * shape.table + attention)
        kv = batch * work.prompt * shape.kv_bytes_per_token
        return self._step_ms(flops, kv, batch * new, efficiency)

    def decode_ms(self, work: Work, efficiency: Efficiency, batch: int = 1) -> float:
        """A step that gives each of `batch` decisions one more token."""
        shape = self.shape
        attention = 4 * shape.layers * shape.hidden * work.prompt
        flops = batch * (2 * (shape.body + shape.table) + attention)
        kv = batch * work.prompt * shape.kv_bytes_per_token
        return self._step_ms(flops, kv, batch, efficiency)

    def decision_ms(self, work: Work, efficiency: Efficiency) -> float:
        """One decision on an idle GPU."""
        steps = self.prefill_ms(work, efficiency)
        steps += (work.answer - 1) * self.decode_ms(work, efficiency)
        return steps + efficiency.request_ms

    def batch_ms(self, work: Work, efficiency: Efficiency, batch: int) -> float:
        """The GPU's time for `batch` decisions computed together."""
        steps = self.prefill_ms(work, efficiency, batch)
        return steps + (work.answer - 1) * self.decode_ms(work, efficiency, batch)

    def decisions_per_second(self, work: Work, efficiency: Efficiency, batch: int) -> float:
        """With never fewer than `batch` waiting."""
        return 1000 * batch / self.batch_ms(work, efficiency, batch)

    def _step_ms(self, flops: float, kv_bytes: float, tokens: int, how: Efficiency) -> float:
        peak = (self.gpu.tflops_fp8 if self.fp8 else self.gpu.tflops_16bit) * 1e12
        share = how.compute_short if tokens <= how.short else how.compute
        compute = flops / (peak * share)
        memory = (self.weight_bytes + kv_bytes) / (
            self.gpu.gigabytes_per_second * 1e9 * how.bandwidth
        )
        return 1000 * max(compute, memory) + how.step_ms
