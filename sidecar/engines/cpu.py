"""Builds the engine that OpenVINO runs on CPUs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from sidecar import __version__
from sidecar.engines.engine_directory import (
    GRAPH_VERSION,
    ROUTER,
    SCHEMA_VERSION,
    EngineInfo,
    RouterFacts,
    WeightStorage,
    compiled_folder,
    read_engine,
    sha256_of,
    write_manifest,
)
from sidecar.engines.errors import EngineError
from sidecar.engines.hf_source import hugging_face_files, open_hugging_face
from sidecar.engines.weights import ModelSource

Progress = Callable[[str], None]
"""Called with one sentence per step."""


def _silent(step: str) -> None:
    del step


def build_cpu_engine(
    source: Path,
    out: Path,
    *,
    model_id: str,
    prompt_format: str,
    temperature: float = 1.0,
    weight_storage: WeightStorage = WeightStorage.F16,
    progress: Progress = _silent,
) -> EngineInfo:
    """Compile weights into an engine directory.

    An engine that is already at `out` and was made from the same weights with the same options is
    reused. A new one takes its place only when complete.

    Args:
        source: a GGUF file, or a Hugging Face directory.
        out: the engine directory; its parent is created.
        model_id: reported with every decision.
        prompt_format: the prompt format the weights were trained for.
        temperature: calibration of the label probabilities.
        weight_storage: trades rounding for memory.

    Raises:
        EngineError: the source cannot be read or is of an unsupported kind, `out` is something
            else than an engine, or the packages of the `cpu` extra are not installed.
    """
    if out.exists() and not (out / ROUTER).exists():
        raise EngineError(f"{out}: exists and is not an engine directory; choose another path")
    progress(f"checksum of {source.name}")
    weights = sha256_of(*source_files(source))
    inputs = _Inputs(model_id, prompt_format, temperature, weight_storage, weights)
    existing = _reusable(out, inputs)
    if existing is not None:
        progress(f"{out} is up to date")
        return existing
    opened = open_source(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write(opened, _facts(opened, inputs), staging, progress)
        _put_in_place(staging, out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return read_engine(out)


def source_files(source: Path) -> tuple[Path, ...]:
    """The files that an engine is made from. Raises EngineError if one is missing."""
    if source.is_dir():
        return hugging_face_files(source)
    if source.is_file():
        return (source,)
    raise EngineError(f"{source}: no such file or directory")


def open_source(source: Path) -> ModelSource:
    """Open weights by what they are: a GGUF file or a Hugging Face directory."""
    if source.is_dir():
        return open_hugging_face(source)
    try:
        from sidecar.engines.gguf_source import open_gguf
    except ImportError as error:
        raise _extra_missing(error) from error
    return open_gguf(source)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What an engine is a function of, beside the versions of the code."""

    model_id: str
    prompt_format: str
    temperature: float
    weight_storage: WeightStorage
    weights_sha256: str


def _facts(source: ModelSource, inputs: _Inputs) -> RouterFacts:
    return RouterFacts(
        schema_version=SCHEMA_VERSION,
        model_id=inputs.model_id,
        prompt_format=inputs.prompt_format,
        runtime="openvino",
        graph_version=GRAPH_VERSION,
        weight_storage=inputs.weight_storage,
        graph_file="model.xml",
        tokenizer_file="tokenizer.json",
        end_id=source.end_id,
        pad_id=source.pad_id,
        context_length=source.architecture.context_length,
        vocab_size=source.architecture.vocab_size,
        temperature=inputs.temperature,
        weights_sha256=inputs.weights_sha256,
        sidecar_version=__version__,
        runtime_version=_runtime_version(),
        architecture=source.architecture,
    )


def _runtime_version() -> str:
    # The installed package's, not the module's: importing it takes a second.
    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError as error:
        raise _extra_missing(ImportError(name="openvino")) from error


def _extra_missing(error: ImportError) -> EngineError:
    return EngineError(
        f"building a CPU engine needs the package {error.name!r}; install it with "
        "`pip install 'llm-routing-sidecar[cpu]'`"
    )


def _reusable(out: Path, inputs: _Inputs) -> EngineInfo | None:
    if not out.exists():
        return None
    try:
        info = read_engine(out)
    except EngineError:
        return None
    router = info.router
    made_from = _Inputs(
        router.model_id,
        router.prompt_format,
        router.temperature,
        router.weight_storage,
        router.weights_sha256,
    )
    made_by = (router.graph_version, router.sidecar_version, router.runtime_version)
    current = (GRAPH_VERSION, __version__, _runtime_version())
    return info if made_from == inputs and made_by == current else None


def _write(source: ModelSource, facts: RouterFacts, folder: Path, progress: Progress) -> None:
    try:
        import openvino

        from sidecar.engines.graph import build_graph
    except ImportError as error:
        raise _extra_missing(error) from error

    progress(f"compiling {facts.architecture.layers} layers")
    model = build_graph(source.architecture, source.weights, facts.weight_storage)
    openvino.serialize(model, folder / facts.graph_file)
    tokenizer = json.dumps(source.tokenizer, ensure_ascii=False)
    (folder / facts.tokenizer_file).write_text(tokenizer, encoding="utf-8")
    (folder / ROUTER).write_text(facts.to_json(), encoding="utf-8")
    progress("manifest")
    write_manifest(folder)


def _put_in_place(staging: Path, out: Path) -> None:
    # A folder cannot replace a non-empty one in one step; the old engine is moved aside first, so
    # that a crash in between leaves none rather than a mixture.
    staging.chmod(0o755)
    shutil.rmtree(compiled_folder(out), ignore_errors=True)
    retired = staging.with_name(staging.name + "-old")
    if out.exists():
        os.replace(out, retired)
    os.replace(staging, out)
    shutil.rmtree(retired, ignore_errors=True)
