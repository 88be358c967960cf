"""Builds the engine that OpenVINO runs on CPUs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from sidecar import __version__
from sidecar.engines.adapter import Adapter, open_merged
from sidecar.engines.engine_directory import (
    GRAPH_VERSION,
    ROUTER,
    SCHEMA_VERSION,
    EngineInfo,
    RouterFacts,
    SecondOpinionFacts,
    WeightStorage,
    compiled_folder,
    load_engine,
    read_engine,
    router_facts,
    sha256_of,
    write_manifest,
)
from sidecar.engines.errors import EngineError
from sidecar.engines.second_opinion import (
    SecondOpinionSource,
    open_second_opinion,
    write_second_opinion,
)
from sidecar.engines.sources import extra_missing, source_files
from sidecar.engines.staging import refuse_foreign, staged
from sidecar.engines.timing import measure_timing
from sidecar.engines.weights import ModelSource

RUNTIME = "openvino"
"""What computes the engines; the name under which an adapter's calibration for them is found."""

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
    adapter: Adapter | None = None,
    encoder: Path | None = None,
    trained: bool = True,
    timed: bool = False,
    progress: Progress = _silent,
) -> EngineInfo:
    """Compile weights into an engine directory.

    An engine that is already at `out` and was made from the same weights with the same options is
    reused. A new one takes its place only when complete, and keeps a temperature that was fitted to
    the one before, if all else that it is made from is the same.

    Args:
        source: a GGUF file, or a Hugging Face directory.
        out: the engine directory; its parent is created.
        model_id: reported with every decision.
        prompt_format: the prompt format the weights were trained for.
        temperature: calibration of the label probabilities.
        weight_storage: trades rounding for memory.
        adapter: merged into the weights.
        encoder: the folder of the encoder that the adapter's second opinion was trained from;
            needed if it has one.
        trained: whether the weights, with the adapter, were trained to route.
        timed: whether a new engine is measured on this CPU, which takes seconds.

    Raises:
        EngineError: the source cannot be read or is of an unsupported kind, the adapter was made
            for other weights or needs an encoder, `out` is something else than an engine, or the
            packages of the `cpu` extra are not installed.
    """
    refuse_foreign(out, ROUTER, "an engine directory")
    progress(f"checksum of {source.name}")
    merged = (adapter.weights,) if adapter else ()
    weights = sha256_of(*source_files(source), *merged)
    adapter_sha256 = adapter.facts.sha256 if adapter else ""
    second = open_second_opinion(adapter, encoder)
    inputs = _Inputs(
        model_id,
        prompt_format,
        temperature,
        weight_storage,
        weights,
        adapter_sha256,
        trained,
        second.facts if second else None,
    )
    existing = _existing(out)
    if existing is not None:
        inputs = _with_fitted_temperature(inputs, existing.router)
        if _is_current(existing.router, inputs) and _is_unchanged(out):
            progress(f"{out} is up to date")
            return existing
    opened = open_merged(source, adapter)
    with staged(out) as staging:
        _write(opened, second, _facts(opened, inputs), staging, progress)
        if timed:
            progress("measuring it on this CPU")
            _add_timing(staging)
        progress("manifest")
        write_manifest(staging)
        shutil.rmtree(compiled_folder(out), ignore_errors=True)
    return read_engine(out)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What an engine is a function of, beside the versions of the code."""

    model_id: str
    prompt_format: str
    temperature: float
    weight_storage: WeightStorage
    weights_sha256: str
    adapter_sha256: str
    trained: bool
    second_opinion: SecondOpinionFacts | None
    temperature_fitted: bool = False


def _facts(source: ModelSource, inputs: _Inputs) -> RouterFacts:
    return RouterFacts(
        schema_version=SCHEMA_VERSION,
        model_id=inputs.model_id,
        prompt_format=inputs.prompt_format,
        runtime=RUNTIME,
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
        trained=inputs.trained,
        adapter_sha256=inputs.adapter_sha256,
        second_opinion=inputs.second_opinion,
        temperature_fitted=inputs.temperature_fitted,
    )


def _runtime_version() -> str:
    # The installed package's, not the module's: importing it takes a second.
    try:
        return metadata.version(RUNTIME)
    except metadata.PackageNotFoundError as error:
        raise extra_missing(ImportError(name=RUNTIME)) from error


def _existing(out: Path) -> EngineInfo | None:
    if not out.exists():
        return None
    try:
        return read_engine(out)
    except EngineError:
        return None


def _with_fitted_temperature(inputs: _Inputs, before: RouterFacts) -> _Inputs:
    """`inputs` with the temperature that was fitted to the engine before; as they are where none
    was, or where that was made from something else."""
    kept = replace(inputs, temperature=before.temperature, temperature_fitted=True)
    second, fitted = inputs.second_opinion, before.second_opinion
    if second is not None and fitted is not None:
        # The language model's own is not fitted then.
        fusion = replace(second.fusion, temperature=fitted.fusion.temperature)
        second = replace(second, fusion=fusion)
        kept = replace(kept, temperature=inputs.temperature, second_opinion=second)
    return kept if _made_from(before) == kept else inputs


def _is_current(router: RouterFacts, inputs: _Inputs) -> bool:
    made_by = (router.graph_version, router.sidecar_version, router.runtime_version)
    return _made_from(router) == inputs and made_by == (
        GRAPH_VERSION,
        __version__,
        _runtime_version(),
    )


def _is_unchanged(out: Path) -> bool:
    # The model server refuses a file of the right size with other content, and says to build anew.
    try:
        load_engine(out)
    except EngineError:
        return False
    return True


def _made_from(router: RouterFacts) -> _Inputs:
    return _Inputs(
        router.model_id,
        router.prompt_format,
        router.temperature,
        router.weight_storage,
        router.weights_sha256,
        router.adapter_sha256,
        router.trained,
        router.second_opinion,
        router.temperature_fitted,
    )


def _write(
    source: ModelSource,
    second: SecondOpinionSource | None,
    facts: RouterFacts,
    folder: Path,
    progress: Progress,
) -> None:
    try:
        from sidecar.engines.graph import build_graph
        from sidecar.engines.graph_nodes import write_graph
    except ImportError as error:
        raise extra_missing(error) from error

    progress(f"compiling {facts.architecture.layers} layers")
    model = build_graph(source.architecture, source.weights, facts.weight_storage)
    write_graph(model, folder / facts.graph_file)
    _write_json(folder / facts.tokenizer_file, source.tokenizer)
    if second is not None:
        write_second_opinion(second, folder, progress)
    (folder / ROUTER).write_text(facts.to_json(), encoding="utf-8")


def _add_timing(folder: Path) -> None:
    facts = router_facts(folder)
    timing = measure_timing(folder / facts.graph_file, facts.architecture)
    (folder / ROUTER).write_text(replace(facts, timing=timing).to_json(), encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
