"""Opens an engine directory written by the sidecar (`sidecar model build`)."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpu_engine.errors import EngineFilesError

SCHEMA_VERSION = 1

GRAPH_VERSION = 3
"""Of the graph's inputs and outputs; `forward` knows this one alone."""


@dataclass(frozen=True, slots=True)
class SecondOpinionFacts:
    """What the model server needs of the section `second_opinion`."""

    graph_path: Path
    vocab_size: int
    max_tokens: int
    scales: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the model server needs of router.json."""

    graph_path: Path
    tokenizer_path: Path
    context_length: int
    vocab_size: int
    layers: int
    kv_heads: int
    head_dim: int
    second_opinion: SecondOpinionFacts | None


def path_of(setting: str) -> Path:
    """The path that a parameter of the model names."""
    # The Python in Triton's stub names files in ASCII, whatever the locale is.
    return Path(os.fsdecode(setting.encode()))


def open_engine(directory: Path) -> EngineFacts:
    """Check every file against the manifest and read the facts.

    Raises:
        EngineFilesError: a file is missing or changed, or the engine is newer than this model.
    """
    manifest = _read(directory / "manifest.json")
    for name, entry in manifest["files"].items():
        _check(directory / name, entry["sha256"])
    router = _read(directory / "router.json")
    if router.get("runtime") != "openvino":
        raise EngineFilesError(
            f"{directory}: made for runtime {router.get('runtime')!r}; this model needs 'openvino'"
        )
    if router["graph_version"] != GRAPH_VERSION:
        raise EngineFilesError(
            f"{directory}: graph_version is {router['graph_version']}; this model computes "
            f"{GRAPH_VERSION}; build the engine again with the sidecar's version"
        )
    architecture = router["architecture"]
    return EngineFacts(
        graph_path=directory / router["graph_file"],
        tokenizer_path=directory / router["tokenizer_file"],
        context_length=router["context_length"],
        vocab_size=router["vocab_size"],
        layers=architecture["layers"],
        kv_heads=architecture["kv_heads"],
        head_dim=architecture["head_dim"],
        second_opinion=_second_opinion(directory, router.get("second_opinion")),
    )


def open_second_opinion(directory: Path) -> SecondOpinionFacts:
    """The sentence encoder of an engine whose language model is served by something else; its files
    alone are checked.

    Raises:
        EngineFilesError: as `open_engine`, or the engine has none.
    """
    files = _read(directory / "manifest.json")["files"]
    facts = _second_opinion(directory, _read(directory / "router.json").get("second_opinion"))
    if facts is None:
        raise EngineFilesError(
            f"{directory}: has no second opinion; take the model second_opinion out of the "
            "repository, or build the engine again with one"
        )
    for path in (facts.graph_path, facts.graph_path.with_suffix(".bin")):
        if path.name not in files:
            raise EngineFilesError(f"{directory}: its manifest has no {path.name}; build it again")
        _check(path, files[path.name]["sha256"])
    return facts


def _second_opinion(directory: Path, facts: dict[str, Any] | None) -> SecondOpinionFacts | None:
    if facts is None:
        return None
    by_mean, by_request, by_route = facts["scales"]
    return SecondOpinionFacts(
        graph_path=directory / facts["graph_file"],
        vocab_size=facts["vocab_size"],
        max_tokens=facts["max_tokens"],
        scales=(by_mean, by_request, by_route),
    )


def _check(path: Path, expected: str) -> None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise EngineFilesError(f"{path}: {error.strerror}; build the engine again") from error
    if digest.hexdigest() != expected:
        raise EngineFilesError(
            f"{path}: sha256 is {digest.hexdigest()}, the manifest says {expected}; build the "
            "engine again"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EngineFilesError(
            f"{path}: {error.strerror}; is gpt_model_path an engine directory?"
        ) from error
    except ValueError as error:
        raise EngineFilesError(f"{path}: not valid JSON ({error})") from error
    version = content.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise EngineFilesError(
            f"{path}: schema_version is {version!r}, this model reads up to {SCHEMA_VERSION}"
        )
    return content
