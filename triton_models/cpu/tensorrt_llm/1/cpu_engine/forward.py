"""Runs the packed decoder graph (see the sidecar's `engines/graph.py` for its tensors)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov

from cpu_engine.compiled import compile_graph
from cpu_engine.engine_files import EngineFacts

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

SHARED_SEGMENT = -1
"""Segment of past tokens that every sequence of a pass sees."""


class KeyValues:
    """Keys and values of some tokens, all layers. Immutable; shared by any number of passes.

    Args:
        arrays: k.0, v.0, k.1, v.1, … of shape [kv_heads, tokens, head_dim].
        segments: [tokens], the sequence each token belongs to.
    """

    def __init__(self, arrays: Sequence[Floats], segments: Ints) -> None:
        self.arrays = tuple(np.ascontiguousarray(array) for array in arrays)
        self.segments = segments
        # The tensors point at the arrays' memory, so a pass reads them without a copy.
        self.tensors = tuple(ov.Tensor(array, shared_memory=True) for array in self.arrays)
        for array in self.arrays:
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.segments)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def first(self, tokens: int) -> KeyValues:
        """The leading `tokens`, copied unless they are all."""
        if tokens == len(self):
            return self
        arrays = [array[:, :tokens].copy() for array in self.arrays]
        return KeyValues(arrays, self.segments[:tokens])

    def only(self, wanted: npt.NDArray[np.bool_]) -> KeyValues:
        """A copy of the tokens at which `wanted` [tokens] is true."""
        if wanted.all():
            return self
        return KeyValues([array[:, wanted] for array in self.arrays], self.segments[wanted])

    def followed_by(self, other: KeyValues) -> KeyValues:
        if not len(other):
            return self
        if not len(self):
            return other
        joined = [
            np.concatenate(pair, axis=1) for pair in zip(self.arrays, other.arrays, strict=True)
        ]
        return KeyValues(joined, np.concatenate((self.segments, other.segments)))


@dataclass(frozen=True, slots=True)
class Pass:
    """Sequences packed into one row.

    Args:
        ids, positions, segments: [S]
        rows: positions in 0..S-1 whose logits are wanted.
        whole: which of the rows' logits are wanted of the whole vocabulary.
        label_ids: tokens whose logits are wanted of all rows.
        keep: whether the keys and values of the S tokens are wanted.
    """

    ids: Ints
    positions: Ints
    segments: Ints
    rows: Ints
    whole: Ints
    label_ids: Ints
    keep: bool


@dataclass(frozen=True, slots=True)
class Logits:
    """Of a pass: `whole` [whole rows, vocabulary] and `labels` [rows, labels]."""

    whole: Floats
    labels: Floats


class Forward:
    """The compiled graph. Not thread-safe: one pass at a time."""

    def __init__(
        self,
        engine: EngineFacts,
        *,
        threads: int = 0,
        precision: str = "",
        compiled_folder: Path | None = None,
    ) -> None:
        """Load and compile.

        Args:
            threads: of computation; 0 leaves the choice to OpenVINO (all cores it may use).
            precision: of the arithmetic, `f32` or `bf16`; empty leaves the choice to OpenVINO
                (bfloat16 where the CPU computes in it, else float32).
            compiled_folder: where the graph as compiled for this CPU is kept for the next start;
                None for nowhere.
        """
        # Not pinned: OpenVINO pins to the first cores, where a second model server on the machine
        # pins too, and where a pass waits for any other process that has one of them.
        options: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        if precision:
            options["INFERENCE_PRECISION_HINT"] = precision
        self._compiled = compile_graph(engine.graph_path, options, compiled_folder)
        self._request = self._compiled.create_infer_request()
        self._cache_names = [f"{kind}.{layer}" for layer in range(engine.layers) for kind in "kv"]
        blank = np.zeros((engine.kv_heads, 0, engine.head_dim), np.float32)
        self.nothing = KeyValues([blank] * (2 * engine.layers), np.zeros(0, np.int32))
        self.passes = 0

    def warm_up(self, tokens_of_a_pass: int = 64) -> None:
        """Compute something, so that the first caller does not wait for memory to be laid out."""
        tokens = np.zeros(tokens_of_a_pass, np.int32)
        segments = np.full_like(tokens, SHARED_SEGMENT)
        one = tokens[:1]
        self.run(Pass(tokens, tokens, segments, one, one, one, keep=True), self.nothing)

    def run(self, work: Pass, past: KeyValues) -> tuple[Logits, KeyValues]:
        """One pass over the graph.

        Returns:
            Logits, and the keys and values of the pass's tokens (empty unless `work.keep`).
        """
        request = self._request
        keep = np.array([len(work.ids) if work.keep else 0], np.int32)
        inputs = {
            "input_ids": work.ids,
            "position_ids": work.positions,
            "segments": work.segments,
            "past_segments": past.segments,
            "rows": work.rows,
            "whole": work.whole,
            "label_ids": work.label_ids,
            "keep": keep,
        }
        for name, values in inputs.items():
            request.set_tensor(name, ov.Tensor(np.ascontiguousarray(values, np.int32)))
        for name, tensor in zip(self._cache_names, past.tensors, strict=True):
            request.set_tensor(f"past_{name}", tensor)
        request.infer()
        self.passes += 1
        # Output memory belongs to the request and is overwritten by the next pass.
        whole, labels = (request.get_tensor(n).data.copy() for n in ("logits", "label_logits"))
        logits = Logits(whole, labels)
        if not work.keep:
            return logits, self.nothing
        present = [request.get_tensor(f"present_{name}").data.copy() for name in self._cache_names]
        return logits, KeyValues(present, work.segments)
