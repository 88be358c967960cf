"""`sidecar model`: routing models on this machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import click

from sidecar.cli.steps import Steps
from sidecar.engines import EngineError, EngineInfo, build_cpu_engine, load_engine, read_engine
from sidecar.local import cache_dir, data_file
from sidecar.local.cache import exclusive
from sidecar.prompts import FORMATS

UNTRAINED_MODEL = "smollm2-135m-instruct"
"""Id of a general chat model that can route, but has not been trained to."""
DEFAULT_MODEL = UNTRAINED_MODEL
_DEFAULT_FORMAT = "compact-v1"


def default_model(report: Callable[[str], None]) -> EngineInfo:
    """The engine of the model that comes with the sidecar; built on first use.

    Raises:
        LocalError: it cannot be fetched.
        EngineError: it cannot be built.
    """
    source = data_file("smollm2.gguf", report)
    return _build(source, engines_dir() / DEFAULT_MODEL, DEFAULT_MODEL, _DEFAULT_FORMAT, report)


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
    "safetensors. Without it the model that comes with the sidecar is built.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write; by default cached.")
@click.option(
    "--prompt-format",
    type=click.Choice(sorted(FORMATS)),
    help="The format that the weights were trained for; needed with --source.",
)
@click.option("--name", help="Id of the model in decisions; by default the source's name.")
def build(
    source: Path | None, out: Path | None, prompt_format: str | None, name: str | None
) -> None:
    """Compile weights into an engine for CPUs."""
    if source is not None and prompt_format is None:
        raise click.UsageError(
            "--source needs --prompt-format, the one that the weights were trained for: "
            + ", ".join(sorted(FORMATS))
        )
    with Steps().step("Building the engine") as report:
        weights = source or data_file("smollm2.gguf", report)
        model_id = name or (_id_of(source) if source else DEFAULT_MODEL)
        engine = _build(
            weights,
            out or engines_dir() / model_id,
            model_id,
            prompt_format or _DEFAULT_FORMAT,
            report,
        )
    click.echo(f"{engine.path}\nUse it: sidecar up --model {engine.path}")


@model.command("list")
def list_models() -> None:
    """List the engines in the cache."""
    rows = [("MODEL", "PROMPT FORMAT", "SIZE", "FOLDER")]
    for folder in sorted(engines_dir().glob("*/router.json")):
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


@model.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def info(folder: Path) -> None:
    """Show what the engine in FOLDER is, and check its files against their hashes."""
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
        "temperature": facts.temperature,
        "runtime": f"{facts.runtime} {facts.runtime_version}",
        "built by": f"sidecar {facts.sidecar_version}",
        "weights": f"sha256:{facts.weights_sha256}",
        "size": _size(engine),
        "files": "whole, as the manifest says",
    }.items():
        click.echo(f"{name:15}{value}")


def _build(
    source: Path, out: Path, model_id: str, prompt_format: str, report: Callable[[str], None]
) -> EngineInfo:
    # Two processes that start at once, as tests do, must not build the same engine twice.
    with exclusive(f"engine-{re.sub(r'[^A-Za-z0-9._-]', '_', str(out.absolute()))[-200:]}"):
        return build_cpu_engine(
            source, out, model_id=model_id, prompt_format=prompt_format, progress=report
        )


def _id_of(source: Path) -> str:
    stem = source.name if source.is_dir() else source.stem
    return re.sub(r"[^a-z0-9.]+", "-", stem.lower()).strip("-.") or "model"


def _size(engine: EngineInfo) -> str:
    total = sum(file.stat().st_size for file in engine.path.iterdir())
    return f"{total / 1e6:.0f} MB"
