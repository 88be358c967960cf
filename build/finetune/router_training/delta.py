"""What training changed, small enough to ship: each matrix's delta in one or two bits a weight.

A delta has far less to say than the weights themselves, so signs with a scale per row hold most of
it (BitDelta, arXiv 2402.10193); two bits hold four levels per row, placed as Lloyd and Max place
them for a normal distribution, and lose a third of the error that signs alone leave.

File: safetensors. A matrix `NAME` is `NAME.codes`, uint8 [rows, ceil(columns * bits / 8)], the
first weight in the lowest bits, and `NAME.scale`, float16 [rows]; everything else that changed
(norms) is kept as its new value in float32. Metadata: `format`, `bits`, and `base_sha256`, that of
the base's weights file.
Only numpy is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

FORMAT = "row-scaled-delta-v1"

Weights = Mapping[str, NDArray[np.float32]]

# Levels in units of the row's standard deviation, by code; and where the outer level begins.
_LEVELS = {
    1: np.array([-1.0, 1.0], dtype=np.float32),
    2: np.array([-1.510, -0.4528, 0.4528, 1.510], dtype=np.float32),
}
_OUTER = 0.9816
_REFINEMENTS = 6


@dataclass(frozen=True, slots=True)
class RowCodes:
    """A matrix in `bits` per weight: packed codes [rows, bytes] and a scale per row."""

    packed: NDArray[np.uint8]
    scale: NDArray[np.float16]

    def decode(self, bits: int, columns: int) -> NDArray[np.float32]:
        """[rows, columns]"""
        per_byte = 8 // bits
        shifts = np.arange(per_byte, dtype=np.uint8) * bits
        codes = (self.packed[:, :, None] >> shifts) & (2**bits - 1)
        codes = codes.reshape(len(self.packed), -1)[:, :columns]
        decoded: NDArray[np.float32] = _LEVELS[bits][codes]
        return decoded * self.scale.astype(np.float32)[:, None]


def encode_rows(delta: NDArray[np.float32], bits: int) -> RowCodes:
    """`delta` [rows, columns] with the least squared error that alternating between codes and
    scales finds. Raises ValueError for bits other than 1 and 2."""
    if bits not in _LEVELS:
        raise ValueError(f"bits is {bits}; a delta has 1 or 2 bits a weight")
    levels = _LEVELS[bits]
    scale = delta.std(1) if bits > 1 else np.abs(delta).mean(1)
    codes = _nearest(delta, scale, bits)
    for _ in range(_REFINEMENTS if bits > 1 else 0):
        values = levels[codes]
        scale = (delta * values).sum(1) / (values * values).sum(1)
        codes = _nearest(delta, scale, bits)
    padding = -delta.shape[1] % (8 // bits)
    codes = np.pad(codes, ((0, 0), (0, padding))).reshape(len(delta), -1, 8 // bits)
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    packed = np.bitwise_or.reduce(codes << shifts, axis=2).astype(np.uint8)
    return RowCodes(packed, scale.astype(np.float16))


def _nearest(
    delta: NDArray[np.float32], scale: NDArray[np.float32], bits: int
) -> NDArray[np.uint8]:
    positive = (delta >= 0).astype(np.uint8)
    if bits == 1:
        return positive
    outer = (np.abs(delta) > _OUTER * np.abs(scale)[:, None]).astype(np.uint8)
    return np.where(positive, 2 + outer, 1 - outer).astype(np.uint8)


def write_delta(path: Path, base: Weights, tuned: Weights, bits: int, base_sha256: str) -> None:
    """The difference `tuned` - `base`, weights that are the same in both left out.

    Raises ValueError if the two do not have the same names and shapes.
    """
    if {n: w.shape for n, w in base.items()} != {n: w.shape for n, w in tuned.items()}:
        raise ValueError("base and tuned weights differ in their names or shapes")
    tensors: dict[str, NDArray[np.generic]] = {}
    for name, old in base.items():
        new = tuned[name]
        if np.array_equal(old, new):
            continue
        if new.ndim == 2:
            rows = encode_rows(new - old, bits)
            tensors[f"{name}.codes"], tensors[f"{name}.scale"] = rows.packed, rows.scale
        else:
            tensors[name] = new
    metadata = {"format": FORMAT, "bits": str(bits), "base_sha256": base_sha256}
    save_file(tensors, path, metadata=metadata)


def merge_delta(path: Path, base: Weights, base_sha256: str = "") -> dict[str, NDArray[np.float32]]:
    """`base` with the delta applied.

    Raises ValueError for a file of another format, one made for another base (where `base_sha256`
    is given), or one that does not match the base's weights.
    """
    merged = dict(base)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} has format {metadata.get('format')!r}; expected {FORMAT!r}")
        if base_sha256 and metadata["base_sha256"] != base_sha256:
            raise ValueError(
                f"{path} was made for base weights with sha256 {metadata['base_sha256']}, "
                f"these have {base_sha256}"
            )
        bits = int(metadata["bits"])
        for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            if key.endswith(".scale"):
                continue
            name = key.removesuffix(".codes")
            if name not in base:
                raise ValueError(f"{path} changes {name!r}, which the base does not have")
            if name == key:
                merged[name] = file.get_tensor(key)
            else:
                rows = RowCodes(file.get_tensor(key), file.get_tensor(f"{name}.scale"))
                merged[name] = base[name] + rows.decode(bits, base[name].shape[1])
    return merged


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
