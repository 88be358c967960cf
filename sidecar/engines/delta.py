"""The format `row-scaled-delta-v1`: what training changed of some weights, in few bits each.

A safetensors file whose metadata are `format`, `bits` (1, 2 or 4) and `base_sha256`. A matrix's
change is `NAME.codes`, uint8 [rows, ceil(columns * bits / 8)], the first weight in the lowest bits,
and `NAME.scale`, float16 [rows]: a code stands for a level, in units of its row's scale, that is
added to the base's weight. Any other tensor is a vector's new value, float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sidecar.engines.errors import EngineError
from sidecar.engines.safetensors_file import SafetensorsFile
from sidecar.engines.weights import FloatArray, Weights, to_float16

FORMAT = "row-scaled-delta-v1"

_UPPER_HALF = {
    1: (1.0,),
    2: (0.4528, 1.510),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733),
}

LEVELS: Mapping[int, npt.NDArray[np.float32]] = {
    bits: np.array([*(-level for level in reversed(upper)), *upper], np.float32)
    for bits, upper in _UPPER_HALF.items()
}
"""By bits: the level of every code, ascending. Beyond one bit the best levels for a normal
distribution (Max, "Quantizing for minimum distortion", 1960, table I)."""


def decode_rows(
    codes: npt.NDArray[np.uint8], scale: npt.NDArray[np.float16], bits: int, columns: int
) -> npt.NDArray[np.float32]:
    """The change of a matrix, [rows, columns], of packed codes [rows, bytes] and scales [rows]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    unpacked = (codes[:, :, None] >> shifts) & np.uint8(2**bits - 1)
    levels: npt.NDArray[np.float32] = LEVELS[bits][unpacked.reshape(len(codes), -1)[:, :columns]]
    return levels * scale.astype(np.float32)[:, None]


class Delta:
    """A file of the format. Raises EngineError if it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SafetensorsFile(path)
        metadata = self._file.metadata
        if metadata.get("format") != FORMAT:
            raise EngineError(
                f"{path}: format is {metadata.get('format')!r}, this version reads {FORMAT!r}; "
                "upgrade, or export the adapter again"
            )
        if metadata.get("bits") not in {str(bits) for bits in LEVELS}:
            raise EngineError(f"{path}: bits is {metadata.get('bits')!r}; it must be 1, 2 or 4")
        self.bits = int(metadata["bits"])
        self.base_sha256 = metadata.get("base_sha256", "")
        names = self._file.names
        self._coded = frozenset(n.removesuffix(".codes") for n in names if n.endswith(".codes"))
        self._scales = frozenset(f"{name}.scale" for name in self._coded)
        self._replaced = frozenset(n for n in names if not n.endswith(".codes")) - self._scales

    @property
    def changed(self) -> frozenset[str]:
        """Names of the tensors that it changes or adds."""
        return self._coded | self._replaced

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises EngineError if a tensor does not match the one of that name in `shapes`."""
        names = set(self._file.names)
        for name in sorted(self.changed):
            shape = shapes.get(name)
            if shape is None or len(shape) != (2 if name in self._coded else 1):
                raise EngineError(f"{self.path}: changes {name!r}, which the base does not have")
            for part, form in self._forms(name, shape).items():
                actual = self._file.form(part) if part in names else None
                if actual != form:
                    raise EngineError(f"{self.path}: {part!r} is {actual}; expected {form}")

    def _forms(
        self, name: str, shape: tuple[int, ...]
    ) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        if name in self._replaced:
            return {name: ("F32", shape)}
        rows, columns = shape
        bytes_per_row = -(-columns * self.bits // 8)
        return {
            f"{name}.codes": ("U8", (rows, bytes_per_row)),
            f"{name}.scale": ("F16", (rows,)),
        }

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """A vector's new value."""
        return self._file.read(name).astype(np.float32)

    def merged(self, name: str, base: Callable[[str], FloatArray]) -> FloatArray:
        """The tensor with its change: added in float32, then rounded to float16. Raises
        EngineError if float16 cannot hold it."""
        if name in self._replaced:
            return to_float16(name, self._file.read(name))
        weight = base(name)
        if name not in self._coded:
            return weight
        codes = self._file.read_codes(f"{name}.codes")
        scale = self._file.read(f"{name}.scale").astype(np.float16)
        change = decode_rows(codes, scale, self.bits, weight.shape[1])
        return to_float16(name, weight.astype(np.float32) + change)


@dataclass(frozen=True, slots=True)
class MergedWeights:
    """`Weights` of base and change."""

    base: Weights
    delta: Delta

    def tensor(self, name: str) -> FloatArray:
        return self.delta.merged(name, self.base.tensor)
