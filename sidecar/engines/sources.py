"""Opens weights by what they are, and names the files that they consist of."""

from __future__ import annotations

from pathlib import Path

from sidecar.engines.errors import EngineError
from sidecar.engines.hf_source import hugging_face_files, open_hugging_face, safetensors_files
from sidecar.engines.weights import ModelSource


def open_source(source: Path) -> ModelSource:
    """Open weights by what they are: a GGUF file or a Hugging Face directory."""
    if source.is_dir():
        return open_hugging_face(source)
    try:
        from sidecar.engines.gguf_source import open_gguf
    except ImportError as error:
        raise extra_missing(error) from error
    return open_gguf(source)


def source_files(source: Path) -> tuple[Path, ...]:
    """The files that an engine is made from. Raises EngineError if one is missing."""
    if source.is_dir():
        return hugging_face_files(source)
    if source.is_file():
        return (source,)
    raise EngineError(f"{source}: no such file or directory")


def weight_files(source: Path) -> tuple[Path, ...]:
    """Those of them that hold tensors. Raises EngineError if one is missing."""
    return safetensors_files(source) if source.is_dir() else source_files(source)


def extra_missing(error: ImportError) -> EngineError:
    return EngineError(
        f"building a model needs the package {error.name!r}; install it with "
        "`pip install 'llm-routing-sidecar[cpu]'`"
    )
