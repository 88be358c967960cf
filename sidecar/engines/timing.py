"""How long an engine takes on this CPU: a pass, and each token of it.

A decision reads its conversation on the policy's kept prefix in one pass, whose time is a constant
(the weights come from memory once) and a part for each token. The sidecar derives from both how
much of a conversation is read by default.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.engines.cpu_quota import threads_within_quota
from sidecar.engines.weights import Architecture

_PREFIX_TOKENS = 256
_SHORT, _LONG = 16, 128
_RUNS = 5
"""The best counts: other processes only ever add to it."""


CPU_CONVERSATION_TOKENS = 256
"""The most that is read on a CPU by default; it holds the newest message and usually several before
it. Fewer where the engine was measured to take longer than half of the budget for that."""


@dataclass(frozen=True, slots=True)
class CpuTiming:
    """Milliseconds of a pass over a kept prefix of 256 tokens: `pass_ms` + tokens * `token_ms`.

    Args:
        cpu: the processor's name.
    """

    cpu: str
    pass_ms: float
    token_ms: float

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> CpuTiming:
        """Raises KeyError, TypeError or ValueError if `content` does not say it."""
        cpu, pass_ms, token_ms = (content[each.name] for each in fields(cls))
        timing = cls(str(cpu), float(pass_ms), float(token_ms))
        if not (timing.pass_ms >= 0 and timing.token_ms > 0):
            raise ValueError(f"timing is {dict(content)}")
        return timing

    def tokens_within(self, milliseconds: float) -> int:
        """How many tokens a pass of so long reads; not less than 0."""
        return max(0, int((milliseconds - self.pass_ms) / self.token_ms))


def measure_timing(graph: Path, architecture: Architecture) -> CpuTiming:
    """Compile `graph` (the packed decoder of `graph.py`) and time passes of two lengths; takes
    seconds. All cores are used that the model server uses."""
    passes = _Passes(graph, architecture)
    short, long = (
        min(passes.milliseconds(tokens) for _ in range(_RUNS)) for tokens in (_SHORT, _LONG)
    )
    token_ms = max((long - short) / (_LONG - _SHORT), 1e-3)
    pass_ms = max(short - _SHORT * token_ms, 0.0)
    return CpuTiming(_processor(), round(pass_ms, 2), round(token_ms, 3))


class _Passes:
    def __init__(self, graph: Path, architecture: Architecture) -> None:
        import openvino as ov

        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        if threads := threads_within_quota():
            options["INFERENCE_NUM_THREADS"] = threads
        compiled = ov.Core().compile_model(graph, "CPU", options)
        self._request = compiled.create_infer_request()
        self._threads = max(1, int(compiled.get_property("INFERENCE_NUM_THREADS")))
        self._tensor = ov.Tensor
        past = np.zeros((architecture.kv_heads, _PREFIX_TOKENS, architecture.head_dim), np.float32)
        for layer in range(architecture.layers):
            for kind in "kv":
                self._set(f"past_{kind}.{layer}", past)
        self._set("past_segments", np.zeros(_PREFIX_TOKENS, np.int32))
        for name, values in {"keep": [0], "whole": [], "label_ids": [1, 2]}.items():
            self._set(name, np.array(values, np.int32))
        self.milliseconds(_LONG)  # lays out its memory

    def milliseconds(self, tokens: int) -> float:
        positions = np.arange(_PREFIX_TOKENS, _PREFIX_TOKENS + tokens, dtype=np.int32)
        self._set("input_ids", np.ones(tokens, np.int32))
        self._set("position_ids", positions)
        self._set("segments", np.zeros(tokens, np.int32))
        self._set("rows", np.array([tokens - 1], np.int32))
        started, computed = time.perf_counter(), time.process_time()
        self._request.infer()
        took = time.perf_counter() - started
        # Beside other load a pass waits for a core most of the time: then what it computed counts.
        return min(took, (time.process_time() - computed) / self._threads) * 1000

    def _set(self, name: str, values: Any) -> None:
        self._request.set_tensor(name, self._tensor(np.ascontiguousarray(values)))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
