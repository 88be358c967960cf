"""Reads and writes safetensors files with numpy arrays.

Format: https://github.com/huggingface/safetensors#format. The safetensors package's numpy
interface has no bfloat16, which is what these models are published in.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.engines.errors import EngineError
from sidecar.engines.weights import FloatArray

_DTYPES: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}


class SafetensorsFile:
    """One file, mapped into memory.

    Raises:
        EngineError: not a safetensors file, or one that was cut or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                (header_size,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(header_size))
            self._data = np.memmap(path, np.uint8, "r", offset=8 + header_size)
            self.metadata: Mapping[str, str] = header.pop("__metadata__", None) or {}
            self._entries: dict[str, dict[str, Any]] = header
            for name in header:
                self._check_extent(name)
        except (
            *(OSError, ValueError, struct.error, MemoryError, OverflowError),
            *(AttributeError, KeyError, TypeError),  # a header of another form
        ) as error:
            raise EngineError(f"{path}: not a readable safetensors file ({error})") from error

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def form(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The format's name of the tensor's type (`F16`, `U8`, ...), and the tensor's shape."""
        entry = self._entries[name]
        return entry["dtype"], tuple(entry["shape"])

    def read(self, name: str) -> FloatArray:
        """The tensor in float32 (bfloat16, float32) or float16."""
        entry = self._entries[name]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise EngineError(
                f"{self._path}: tensor {name!r} is {entry['dtype']}; supported are "
                f"{', '.join(_DTYPES)} (quantised checkpoints are not)"
            )
        raw = np.frombuffer(self._bytes(name), dtype).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw

    def read_codes(self, name: str) -> npt.NDArray[np.uint8]:
        """A tensor of type U8."""
        return np.frombuffer(self._bytes(name), np.uint8).reshape(self._entries[name]["shape"])

    def _bytes(self, name: str) -> bytes:
        begin, end = self._entries[name]["data_offsets"]
        return self._data[begin:end].tobytes()

    def _check_extent(self, name: str) -> None:
        entry = self._entries[name]
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= len(self._data):
            raise ValueError(f"tensor {name!r} ends at byte {end} of {len(self._data)}")
        size = _SIZES.get(entry["dtype"])
        if size is not None and end - begin != size * math.prod(entry["shape"]):
            raise ValueError(f"tensor {name!r} of shape {entry['shape']} has {end - begin} bytes")


def write_float16(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], npt.NDArray[np.float16]],
) -> None:
    """Write tensors one after another, so that one is in memory at a time.

    Args:
        shapes: of every tensor, in the order in which they are written.
        read: gives a tensor of that shape.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # readers map the tensors, which wants them aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            values = read(name)
            if values.shape != shape:
                raise EngineError(f"tensor {name!r} has shape {values.shape}; expected {shape}")
            file.write(np.ascontiguousarray(values).tobytes())
