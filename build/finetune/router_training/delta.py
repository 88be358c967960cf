"""What training changed, small enough to ship: each matrix's delta in 1, 2 or 4 bits a weight.

A delta has far less to say than the weights themselves, so signs with a scale per row hold most of
it (BitDelta, arXiv 2402.10193); two bits hold four levels per row, placed as Lloyd and Max place
them for a normal distribution, and lose a third of the error that signs alone leave.

The format, and how it is read: `sidecar.engines.delta`. Only numpy and safetensors are needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from router_training.files import written_whole
from sidecar.engines.delta import FORMAT, LEVELS

Weights = Mapping[str, NDArray[np.float32]]

_REFINEMENTS = 6


@dataclass(frozen=True, slots=True)
class RowCodes:
    """A matrix in few bits per weight: packed codes [rows, bytes] and a scale per row."""

    packed: NDArray[np.uint8]
    scale: NDArray[np.float16]


def encode_rows(delta: NDArray[np.float32], bits: int) -> RowCodes:
    """`delta` [rows, columns] with the least squared error that alternating between codes and
    scales finds. Raises ValueError for bits other than 1, 2 and 4."""
    if bits not in LEVELS:
        raise ValueError(f"bits is {bits}; a delta has 1, 2 or 4 bits a weight")
    levels = LEVELS[bits]
    scale = delta.std(1) if bits > 1 else np.abs(delta).mean(1)
    codes = _nearest(delta, scale, levels)
    for _ in range(_REFINEMENTS if bits > 1 else 0):
        values = levels[codes]
        scale = (delta * values).sum(1) / (values * values).sum(1)
        codes = _nearest(delta, scale, levels)
    padding = -delta.shape[1] % (8 // bits)
    codes = np.pad(codes, ((0, 0), (0, padding))).reshape(len(delta), -1, 8 // bits)
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    packed = np.bitwise_or.reduce(codes << shifts, axis=2).astype(np.uint8)
    return RowCodes(packed, scale.astype(np.float16))


def _nearest(
    delta: NDArray[np.float32], scale: NDArray[np.float32], levels: NDArray[np.float32]
) -> NDArray[np.uint8]:
    between = (levels[1:] + levels[:-1]) / 2
    in_units = delta / np.where(scale > 0, scale, 1)[:, None]
    return np.searchsorted(between, in_units, side="right").astype(np.uint8)


def write_delta(
    path: Path,
    base: Weights,
    tuned: Weights,
    bits: int,
    base_sha256: str,
    added: Weights | None = None,
) -> None:
    """The difference `tuned` - `base`, weights that are the same in both left out.

    Args:
        added: vectors that the base has not.

    Raises ValueError if the two do not have the same names and shapes; OSError or InputError if it
    cannot be written.
    """
    if {n: w.shape for n, w in base.items()} != {n: w.shape for n, w in tuned.items()}:
        raise ValueError("base and tuned weights differ in their names or shapes")
    tensors: dict[str, NDArray[np.generic]] = dict(added or {})
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
    with written_whole(path) as file:
        save_file(tensors, file, metadata=metadata)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
