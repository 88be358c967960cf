"""Where the models lie that the sidecar brings along for Triton."""

from __future__ import annotations

from pathlib import Path

from sidecar.engines.errors import EngineError


def triton_models() -> Path:
    """The folder of those for CPUs and GPUs. Raises EngineError if it is not there."""
    package = Path(__file__).resolve().parents[1]
    # In a wheel the folder lies inside the package, in a checkout beside it.
    for folder in (package / "_triton_models", package.parent / "triton_models"):
        if folder.is_dir():
            return folder
    raise EngineError(f"{package.parent / 'triton_models'}: missing; reinstall the sidecar")
