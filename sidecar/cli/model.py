"""`sidecar model`: routing models on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from sidecar.cli.steps import Steps
from sidecar.cli.trtllm_options import TrtllmOptions, Weights, trtllm_options
from sidecar.engines import (
    Adapter,
    EngineError,
    EngineInfo,
    RouterFacts,
    WeightStorage,
    build_cpu_engine,
    load_engine,
    open_adapter,
    read_engine,
    shipped_adapter,
    write_checkpoint,
)
from sidecar.engines.adapter import ID_RULE, is_model_id, open_merged
from sidecar.engines.cpu import RUNTIME
from sidecar.engines.second_opinion import open_second_opinion
from sidecar.engines.staging import remove_unfinished
from sidecar.local import cache_dir, data_file
from sidecar.local.cache import exclusive
from sidecar.prompts import FORMATS

Report = Callable[[str], None]

_BASE = "smollm2.gguf"
_BASE_ID = "smollm2-135m-instruct"
_ENCODER = "minilm"
_BASE_FORMAT = "compact-v1"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a model is built from.

    Args:
        trained: whether the weights, with the adapter, were trained to route.
        encoder: what the adapter's second opinion was trained from, where it has one.
    """

    source: Path
    adapter: Adapter | None
    model_id: str
    prompt_format: str
    trained: bool
    encoder: Path | None = None


def default_model(report: Report) -> EngineInfo:
    """The engine of the model that comes with the sidecar; built on first use.

    Raises:
        LocalError: its base cannot be fetched.
        EngineError: it cannot be built.
    """
    recipe = default_recipe(report)
    return _build_engine(recipe, engines_dir() / recipe.model_id, report)


def default_recipe(report: Report) -> Recipe:
    """The base with the adapter that comes along, or the base alone where none does: a general chat
    model that can route, but has not been trained to."""
    folder = shipped_adapter()
    base = data_file(_BASE, report)
    if folder is None:
        return Recipe(base, None, _BASE_ID, _BASE_FORMAT, trained=False)
    adapter = open_adapter(folder)
    return Recipe(
        base,
        adapter,
        adapter.facts.id,
        adapter.facts.prompt_format,
        trained=True,
        encoder=_encoder(adapter, None, report),
    )


def _encoder(adapter: Adapter, named: Path | None, report: Report) -> Path | None:
    """The encoder that the adapter's second opinion was trained from; None if it has none."""
    if adapter.facts.second_opinion is None:
        return None
    return named or data_file(_ENCODER, report)


def engines_dir() -> Path:
    """Where engines are built if no other folder is named."""
    return cache_dir() / "engines"


@click.group()
def model() -> None:
    """Build and look at routing models."""


@model.command()
@click.option(
    "--source",
    type=click.Path(exists=True, path_type=Path),
    help="Weights of a Llama or Qwen2 model: a GGUF file, or a Hugging Face folder with "
    "safetensors. Without it the base of the model that comes with the sidecar.",
)
@click.option(
    "--adapter",
    type=click.Path(exists=True, path_type=Path),
    help="What training changed of the source: a folder with adapter.json, or a .safetensors file. "
    "Without --source and --adapter the model that comes with the sidecar is built.",
)
@click.option(
    "--encoder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the sentence encoder that the adapter's second opinion was trained from; by "
    "default that of the model that comes with the sidecar.",
)
@click.option(
    "--target",
    type=click.Choice(["cpu", "huggingface", "trtllm"]),
    default="cpu",
    show_default=True,
    help="An engine for CPUs; a Hugging Face folder, for transformers; or a TensorRT-LLM engine, "
    "inside NVIDIA's container (docs/gpu.md).",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write; by default cached.")
@click.option(
    "--prompt-format",
    type=click.Choice(sorted(FORMATS)),
    help="The format that the weights were trained for; needed where adapter.json does not say.",
)
@click.option("--name", help="Id of the model in decisions; by default the adapter's or source's.")
@click.option(
    "--weights",
    type=click.Choice([WeightStorage.F16.value, WeightStorage.INT8.value]),
    help="For cpu: how the language model's matrices are stored; by default f16. int8 takes half "
    "the space and is faster where the CPU has VNNI, at the price of rounding (docs/models.md).",
)
@trtllm_options
def build(
    source: Path | None,
    adapter: Path | None,
    encoder: Path | None,
    target: str,
    out: Path | None,
    prompt_format: str | None,
    name: str | None,
    weights: str | None,
    **for_gpu: Any,
) -> None:
    """Compile weights into an engine for CPUs or GPUs, or write them as a checkpoint."""
    options = TrtllmOptions(**for_gpu)
    if target != "trtllm":
        options.refuse(target)
    if target != "cpu" and weights is not None:
        raise click.UsageError(f"--weights: for --target cpu, not for {target}")
    storage = WeightStorage(weights or WeightStorage.F16)
    if name is not None and not is_model_id(name):
        raise click.UsageError(f"--name is {name!r}; it {ID_RULE}")
    if encoder is not None and adapter is None:
        raise click.UsageError("--encoder needs --adapter, whose second opinion it is for")
    if encoder is not None and target == "huggingface":
        raise click.UsageError("--encoder: a Hugging Face folder has no second opinion")
    needed = "--source" if adapter is None else "--adapter with a file"
    if prompt_format is None and (source or adapter) and not (adapter and adapter.is_dir()):
        raise click.UsageError(
            f"{needed} needs --prompt-format, the one that the weights were trained for: "
            + ", ".join(sorted(FORMATS))
        )
    with Steps().step("Building the model") as report:
        recipe = _recipe(source, adapter, encoder, prompt_format, report)
        recipe = replace(recipe, model_id=name or recipe.model_id)
        if target == "huggingface":
            folder = out or cache_dir() / "checkpoints" / recipe.model_id
            _write_checkpoint(recipe, folder, report)
        elif target == "trtllm":
            folder = out or engines_dir() / f"{recipe.model_id}-gpu"
            # Asks engines, and so needs much that the other commands do without.
            from sidecar.cli.model_trtllm import build_for_gpu

            given = _gpu_weights(recipe, options.dry_run, report)
            # A dry run has nothing to keep others from, nor to wait for.
            with nullcontext() if options.dry_run else _writing(folder):
                if build_for_gpu(given, folder, options, report) is None:
                    return
        else:
            suffix = "" if storage is WeightStorage.F16 else f"-{storage}"
            folder = out or engines_dir() / f"{recipe.model_id}{suffix}"
            folder = _build_engine(recipe, folder, report, storage).path
    click.echo(folder)
    if target == "cpu":
        click.echo(f"Use it: sidecar up --model {folder}")


def _recipe(
    source: Path | None,
    adapter: Path | None,
    encoder: Path | None,
    prompt_format: str | None,
    report: Report,
) -> Recipe:
    if source is None and adapter is None:
        recipe = default_recipe(report)
        if recipe.adapter is not None:
            _check_format(prompt_format, recipe.prompt_format, "the model that comes along")
        return replace(recipe, prompt_format=prompt_format or recipe.prompt_format)
    opened = None if adapter is None else open_adapter(adapter)
    if encoder is not None and opened is not None and opened.facts.second_opinion is None:
        raise click.UsageError(f"--encoder: {adapter} has no second opinion")
    known = opened.facts.prompt_format if opened else ""
    _check_format(prompt_format, known, str(adapter))
    chosen = prompt_format or known
    if chosen not in FORMATS:
        raise EngineError(
            f"{adapter}: prompt format {chosen!r} is not known; known are {', '.join(FORMATS)}"
        )
    named = source if opened is None else opened.path
    assert named is not None
    model_id = opened.facts.id if opened and opened.path.is_dir() else _id_of(named)
    base = source or data_file(_BASE, report)
    second = _encoder(opened, encoder, report) if opened else None
    return Recipe(base, opened, model_id, chosen, trained=True, encoder=second)


def _check_format(named: str | None, known: str, of: str) -> None:
    if named and known not in ("", named):
        raise click.UsageError(f"--prompt-format is {named}; {of} is for {known}")


@model.command("list")
def list_models() -> None:
    """List the engines in the cache."""
    rows = [("MODEL", "PROMPT FORMAT", "SIZE", "FOLDER")]
    # Not those that are being built.
    for folder in sorted(engines_dir().glob("[!.]*/router.json")):
        try:
            engine = read_engine(folder.parent)
        except EngineError as error:
            click.echo(f"Warning: {error}", err=True)
            continue
        facts = engine.router
        rows.append((facts.model_id, facts.prompt_format, _size(engine), str(engine.path)))
    if len(rows) == 1:
        click.echo("No engine yet; `sidecar model build` makes one.", err=True)
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


class _EngineFolder(click.Path):
    """A folder, or the name of one in the cache."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        named = str(value)
        if is_model_id(named) and not os.path.exists(named):
            cached = engines_dir() / named
            value = cached if cached.is_dir() else named
        path = super().convert(value, param, ctx)  # type: ignore[arg-type]
        assert isinstance(path, Path)
        return path


@model.command()
@click.argument("folder", type=_EngineFolder(exists=True, file_okay=False, path_type=Path))
def info(folder: Path) -> None:
    """Show what the engine in FOLDER is, and check its files against their hashes.

    FOLDER may be the name of a folder in the cache, as `sidecar model list` shows them.
    """
    engine = load_engine(folder)
    facts, architecture = engine.router, engine.router.architecture
    for name, value in {
        "model": facts.model_id,
        "folder": folder,
        "prompt format": facts.prompt_format,
        "architecture": f"{architecture.family}, {architecture.layers} layers of "
        f"{architecture.hidden_size}, {architecture.heads} heads, "
        f"{architecture.kv_heads} of keys and values",
        "vocabulary": f"{facts.vocab_size} tokens",
        "context": f"{facts.context_length} tokens",
        "temperature": f"{facts.decision_temperature}"
        + (", fitted to it" if facts.temperature_fitted else ""),
        "second opinion": _second_opinion(facts),
        "runtime": f"{facts.runtime} {facts.runtime_version}",
        "built by": f"sidecar {facts.sidecar_version}",
        "weights": f"sha256:{facts.weights_sha256}, stored as {facts.weight_storage}",
        "adapter": f"sha256:{facts.adapter_sha256}" if facts.adapter_sha256 else "none",
        "trained": "to route" if facts.trained else "not to route",
        "on the CPU": _timing(facts),
        "size": _size(engine),
        "files": "whole, as the manifest says",
    }.items():
        click.echo(f"{name:15}{value}")


def _timing(facts: RouterFacts) -> str:
    timing = facts.timing
    if timing is None:
        return "not measured"
    return f"{timing.pass_ms:.1f} ms a pass + {timing.token_ms:.2f} ms a token ({timing.cpu})"


def _second_opinion(facts: RouterFacts) -> str:
    second = facts.second_opinion
    if second is None:
        return "none"
    fusion = second.fusion
    return (
        f"sha256:{second.adapter_sha256}; weights {fusion.language_model:.3g} of the language "
        f"model, {fusion.encoder:.3g} of the encoder, {fusion.other_bias:+.3g} on other"
        + ("; may decide by itself" if fusion.alone_encoder > 0 else "")
    )


def _build_engine(
    recipe: Recipe, out: Path, report: Report, storage: WeightStorage = WeightStorage.F16
) -> EngineInfo:
    with _writing(out):
        return build_cpu_engine(
            recipe.source,
            out,
            model_id=recipe.model_id,
            prompt_format=recipe.prompt_format,
            temperature=recipe.adapter.temperature(RUNTIME) if recipe.adapter else 1.0,
            weight_storage=storage,
            adapter=recipe.adapter,
            encoder=recipe.encoder,
            trained=recipe.trained,
            timed=True,
            progress=report,
        )


def _write_checkpoint(recipe: Recipe, out: Path, report: Report) -> None:
    with _writing(out):
        write_checkpoint(
            recipe.source,
            out,
            model_id=recipe.model_id,
            prompt_format=recipe.prompt_format,
            adapter=recipe.adapter,
            progress=report,
        )


def _gpu_weights(recipe: Recipe, dry_run: bool, report: Report) -> Weights:
    """The recipe as a Hugging Face folder: its own, or one written with the adapter merged, which a
    dry run only names."""
    written = recipe.adapter is not None or not recipe.source.is_dir()
    folder, opened = recipe.source, None
    if written:
        folder = cache_dir() / "checkpoints" / recipe.model_id
        if dry_run:
            opened = open_merged(recipe.source, recipe.adapter)
        else:
            _write_checkpoint(recipe, folder, report)
    return Weights(
        folder,
        recipe.model_id,
        recipe.prompt_format,
        recipe.trained,
        written,
        open_second_opinion(recipe.adapter, recipe.encoder),
        opened,
    )


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    # Two processes that start at once, as tests do, must not build the same engine twice.
    with exclusive(f"engine-{re.sub(r'[^A-Za-z0-9._-]', '_', str(out.absolute()))[-200:]}"):
        remove_unfinished(out)
        yield


def _id_of(source: Path) -> str:
    stem = source.name if source.is_dir() else source.stem
    return re.sub(r"[^a-z0-9.]+", "-", stem.lower()).strip("-.") or "model"


def _size(engine: EngineInfo) -> str:
    total = sum(file.stat().st_size for file in engine.path.iterdir())
    return f"{total / 1e6:.0f} MB"
