"""A reader of safetensors files that gives numpy arrays.

Format: https://github.com/huggingface/safetensors#format. The safetensors package's numpy
interface has no bfloat16, which is what these models are published in.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.engines.errors import EngineError
from sidecar.engines.weights import FloatArray

_DTYPES: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


class SafetensorsFile:
    """One file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                (header_size,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(header_size))
            self._data = np.memmap(path, np.uint8, "r", offset=8 + header_size)
        except (OSError, ValueError, struct.error, MemoryError, OverflowError) as error:
            raise EngineError(f"{path}: not a readable safetensors file ({error})") from error
        header.pop("__metadata__", None)
        self._entries: dict[str, dict[str, Any]] = header

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def read(self, name: str) -> FloatArray:
        """The tensor in float32 (bfloat16, float32) or float16."""
        entry = self._entries[name]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise EngineError(
                f"{self._path}: tensor {name!r} is {entry['dtype']}; supported are "
                f"{', '.join(_DTYPES)} (quantised checkpoints are not)"
            )
        begin, end = entry["data_offsets"]
        raw = np.frombuffer(self._data[begin:end].tobytes(), dtype).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw
