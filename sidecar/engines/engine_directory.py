"""The engine directory: what is in it, and whether it is whole.

manifest.json    sha256 and size of every other file
router.json      what the sidecar and the model server must know (`RouterFacts`)
tokenizer.json   as the `tokenizers` library reads it
model.xml/.bin   OpenVINO IR
second_opinion.xml/.bin, second_opinion_tokenizer.json   where it has a sentence encoder
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from sidecar.engines.errors import EngineError
from sidecar.engines.timing import CpuTiming
from sidecar.engines.weights import Architecture

SCHEMA_VERSION = 1
"""Of router.json and manifest.json. A reader refuses newer ones."""

GRAPH_VERSION = 3
"""Of the OpenVINO graph; counts changes after which built engines must not be reused."""

MANIFEST = "manifest.json"
ROUTER = "router.json"

ANSWER_TOKENS = 96
"""Part of the context length kept for the answer: a route name has at most 64 bytes, and what
stands around it fewer than 32."""


class WeightStorage(StrEnum):
    """How an engine stores its projections. On CPUs `F16` or `INT8`, which takes half the space on
    disk, and a quarter of the memory where the CPU computes in float32, at the price of rounding;
    on GPUs any of the others, or `F16`."""

    F16 = "f16"
    INT8 = "int8"
    BF16 = "bf16"
    FP8 = "fp8"
    INT4_AWQ = "int4_awq"


_ROUNDED = frozenset({WeightStorage.INT8, WeightStorage.FP8, WeightStorage.INT4_AWQ})
"""What decides a little differently than the weights that it was made from."""


@dataclass(frozen=True, slots=True)
class FusionFacts:
    """How the language model's opinion and the encoder's become one: `language_model` * its
    log-probabilities + `encoder` * the encoder's logits, + `other_bias` on `other`, all of it
    divided by `temperature`, then the softmax.

    The encoder's own probabilities, where it decides by itself, are the softmax of `alone_encoder`
    * its logits, + `alone_other_bias` on `other`; 0: it never does."""

    language_model: float
    encoder: float
    other_bias: float = 0.0
    temperature: float = 1.0
    alone_encoder: float = 0.0
    alone_other_bias: float = 0.0

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> FusionFacts:
        """Raises KeyError, TypeError or ValueError if `content` does not say it."""
        # Those of adapters that were described before it are without.
        content = {"alone_encoder": 0.0, "alone_other_bias": 0.0, **content}
        fusion = cls(**{each.name: float(content[each.name]) for each in fields(cls)})
        if not all(map(math.isfinite, asdict(fusion).values())) or fusion.temperature <= 0:
            raise ValueError(f"fusion is {asdict(fusion)}")
        return fusion


@dataclass(frozen=True, slots=True)
class SecondOpinionFacts:
    """A sentence encoder that decides together with the language model.

    Args:
        graph_file, tokenizer_file: names within the directory.
        vocab_size: of its tokenizer.
        max_tokens: of one text.
        scales: weights of the mean states' cosine, of the request's states against each route's,
            and the other way round.
        fusion: of its logits and the language model's.
        weights_sha256: of the encoder that it was trained from.
        adapter_sha256: of what training changed.
    """

    graph_file: str
    tokenizer_file: str
    vocab_size: int
    max_tokens: int
    scales: tuple[float, float, float]
    fusion: FusionFacts
    weights_sha256: str
    adapter_sha256: str

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> SecondOpinionFacts:
        """Raises KeyError, TypeError or ValueError if `content` does not say it."""
        first, second, third = map(float, content["scales"])
        known = {each.name: content[each.name] for each in fields(cls)}
        fusion = FusionFacts.of(content["fusion"])
        return cls(**{**known, "scales": (first, second, third), "fusion": fusion})


@dataclass(frozen=True, slots=True)
class RouterFacts:
    """Content of router.json.

    Args:
        model_id: the routing model's id, reported with every decision.
        prompt_format: the format it was trained for, e.g. `compact-v1`.
        runtime: what computes it; `openvino` or `tensorrt_llm`.
        graph_version: of the graph's inputs, outputs and arithmetic.
        graph_file, tokenizer_file: names within the directory.
        end_id, pad_id: token ids.
        context_length: most tokens of prompt and answer together.
        temperature: calibration; label logits are divided by it before the softmax. A second
            opinion's fusion has its own.
        weights_sha256: of the source files and the adapter, one after another.
        trained: whether the weights were trained to route.
        adapter_sha256: of the adapter that was merged; empty without one.
        second_opinion: None where the language model decides alone.
        timing: of the CPU where it was built; None where it was not measured.
        temperature_fitted: whether the temperature that decisions are made at was fitted to this
            engine and written into it; building it again of the same then keeps it.
    """

    schema_version: int
    model_id: str
    prompt_format: str
    runtime: str
    graph_version: int
    weight_storage: WeightStorage
    graph_file: str
    tokenizer_file: str
    end_id: int
    pad_id: int
    context_length: int
    vocab_size: int
    temperature: float
    weights_sha256: str
    sidecar_version: str
    runtime_version: str
    architecture: Architecture
    trained: bool = True
    adapter_sha256: str = ""
    second_opinion: SecondOpinionFacts | None = None
    timing: CpuTiming | None = None
    temperature_fitted: bool = False

    @property
    def build_id(self) -> str:
        """The model's id with what it was built from, so that two builds can be told apart."""
        build = (self.adapter_sha256 or self.weights_sha256)[:12]
        parts = [build]
        if self.second_opinion is not None:
            parts.append(self.second_opinion.adapter_sha256[:12])
        if self.weight_storage in _ROUNDED:
            parts.append(self.weight_storage.value)
        return f"{self.model_id}@{'+'.join(parts)}"

    @property
    def takes_label_ids(self) -> bool:
        """Whether the model that serves it computes the logits of given tokens alone."""
        return self.runtime == "openvino"

    @property
    def encoder_apart(self) -> bool:
        """Whether it has a sentence encoder, which is a model of its own in Triton."""
        return self.second_opinion is not None and self.runtime != "openvino"

    @property
    def decision_temperature(self) -> float:
        """The temperature that decisions are made at."""
        return self.second_opinion.fusion.temperature if self.second_opinion else self.temperature

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """An engine on disk."""

    path: Path
    router: RouterFacts

    @property
    def tokenizer_path(self) -> Path:
        return self.path / self.router.tokenizer_file

    @property
    def second_opinion_tokenizer_path(self) -> Path | None:
        second = self.router.second_opinion
        return self.path / second.tokenizer_file if second else None

    @property
    def graph_path(self) -> Path:
        return self.path / self.router.graph_file


def compiled_folder(engine: Path) -> Path:
    """Where the compiled form of the engine for one CPU is kept; not part of the engine."""
    return engine.with_name(f".{engine.name}-compiled")


def read_engine(path: Path) -> EngineInfo:
    """The facts of an engine whose files are all there, by name and size.

    Raises:
        EngineError: not an engine, incomplete, or written by a newer version.
    """
    for name, entry in _manifest(path).items():
        file = path / name
        if not file.is_file():
            raise EngineError(f"{file}: missing; build the engine again")
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise EngineError(
                f"{file}: {size} bytes, the manifest says {entry['bytes']}; build the engine again"
            )
    return EngineInfo(path, router_facts(path))


def load_engine(path: Path) -> EngineInfo:
    """As `read_engine`, and every file's sha256 is compared.

    Raises:
        EngineError: as `read_engine`, or a file was changed.
    """
    info = read_engine(path)
    _check_hashes(path, _manifest(path))
    return info


def read_routing_facts(path: Path) -> EngineInfo:
    """An engine as a sidecar needs it whose model server is elsewhere: manifest.json, router.json
    and the tokenizers, of which the sha256 is compared. The graphs may be missing.

    Raises:
        EngineError: one of them is missing, was changed, or was written by a newer version.
    """
    facts = router_facts(path)
    manifest = _manifest(path)
    second = facts.second_opinion
    needed = (ROUTER, facts.tokenizer_file, *((second.tokenizer_file,) if second else ()))
    for name in needed:
        if name not in manifest or not (path / name).is_file():
            raise EngineError(f"{path / name}: missing; copy it from the engine's folder")
    _check_hashes(path, {name: manifest[name] for name in needed})
    return EngineInfo(path, facts)


def _check_hashes(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    for name, entry in entries.items():
        actual = sha256_of(path / name)
        if actual != entry["sha256"]:
            raise EngineError(
                f"{path / name}: sha256 is {actual}, the manifest says {entry['sha256']}; "
                "build the engine again"
            )


def write_manifest(path: Path, target: Mapping[str, Any] | None = None) -> None:
    """Describe every file of the directory in its manifest.

    Args:
        target: what it was built for and by, where that decides where it can run.
    """
    files = {
        file.name: {"sha256": sha256_of(file), "bytes": file.stat().st_size}
        for file in sorted(path.iterdir())
        if file.name != MANIFEST
    }
    content: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "files": files}
    if target is not None:
        content["target"] = target
    (path / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def sha256_of(*files: Path, progress: Callable[[int], None] | None = None) -> str:
    """Hex digest over the contents of `files`, one after another."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                if progress is not None:
                    progress(len(chunk))
    return digest.hexdigest()


def _manifest(path: Path) -> Mapping[str, Mapping[str, Any]]:
    content = _read_json(path / MANIFEST)
    files = content.get("files")
    if not isinstance(files, dict) or ROUTER not in files:
        raise EngineError(f"{path / MANIFEST}: names no {ROUTER}; build the engine again")
    for name, entry in files.items():
        if not isinstance(entry, dict) or not {"sha256", "bytes"} <= entry.keys():
            raise EngineError(
                f"{path / MANIFEST}: {name} has no sha256 or no bytes; build the engine again"
            )
    return files


def router_facts(folder: Path) -> RouterFacts:
    """Content of the folder's router.json. Raises EngineError."""
    path = folder / ROUTER
    content = _read_json(path)
    known = {field.name for field in fields(RouterFacts)}
    required = {field.name for field in fields(RouterFacts) if field.default is MISSING}
    missing = sorted(required - content.keys())
    if missing:
        raise EngineError(f"{path}: {', '.join(missing)} missing; build the engine again")
    try:
        content["architecture"] = Architecture(**content["architecture"])
        content["weight_storage"] = WeightStorage(content["weight_storage"])
    except (TypeError, ValueError) as error:
        raise EngineError(
            f"{path}: architecture or weight_storage is not as this version knows it ({error}); "
            "build the engine again"
        ) from error
    if (second := content.get("second_opinion")) is not None:
        try:
            content["second_opinion"] = SecondOpinionFacts.of(second)
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(
                f"{path}: second_opinion is not as this version knows it ({error}); "
                "build the engine again"
            ) from error
    if (timing := content.get("timing")) is not None:
        try:
            content["timing"] = CpuTiming.of(timing)
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(
                f"{path}: timing is not as this version knows it ({error!r}); "
                "build the engine again"
            ) from error
    return RouterFacts(**{name: content[name] for name in known & content.keys()})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EngineError(
            f"{path}: missing, so {path.parent} is not an engine directory; build one with "
            "`sidecar model build`"
        ) from error
    except ValueError as error:
        raise EngineError(f"{path}: not valid JSON ({error}); build the engine again") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise EngineError(f"{path}: schema_version is missing; build the engine again")
    if version > SCHEMA_VERSION:
        raise EngineError(
            f"{path}: schema_version is {version}, this version reads up to {SCHEMA_VERSION}; "
            "upgrade, or build the engine again"
        )
    return dict(content)
