"""Adapters: what training changed of a base model, small enough to ship, and its merging.

An adapter is a folder:

adapter.json          `AdapterFacts`
adapter.safetensors   the change of the weights; adapter.json may name it otherwise
MODEL_CARD.md         for people; checkpoints take it along

The change of the weights is in the format `row-scaled-delta-v1`, a safetensors file whose metadata
are `format`, `bits` (1 or 2) and `base_sha256`. A matrix's change is `NAME.codes`, uint8
[rows, ceil(columns * bits / 8)], the first weight in the lowest bits, and `NAME.scale`, float16
[rows]: a code stands for a level, in units of its row's scale, that is added to the base's weight.
Any other tensor is a vector's new value, float32.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.engines.engine_directory import sha256_of
from sidecar.engines.errors import EngineError
from sidecar.engines.safetensors_file import SafetensorsFile
from sidecar.engines.sources import open_source, weight_files
from sidecar.engines.weights import (
    Architecture,
    FloatArray,
    ModelSource,
    Weights,
    tensor_shapes,
    to_float16,
)

SCHEMA_VERSION = 1
"""Of adapter.json. A reader refuses newer ones."""

FORMAT = "row-scaled-delta-v1"
FACTS = "adapter.json"
WEIGHTS = "adapter.safetensors"
MODEL_CARD = "MODEL_CARD.md"

LEVELS: Mapping[int, npt.NDArray[np.float32]] = {
    1: np.array([-1.0, 1.0], np.float32),
    2: np.array([-1.510, -0.4528, 0.4528, 1.510], np.float32),
}
"""By bits: the level of every code. Two bits: the best four levels for a normal distribution (Max,
"Quantizing for minimum distortion", 1960, table I)."""

_SHIPPED = "router-135m"
_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")  # names a folder of the cache, too


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """The weights that an adapter was trained on.

    Args:
        name: for people: what to fetch.
        sha256: of the GGUF file or the safetensors files, one after another.
        licence: SPDX identifier.
    """

    name: str
    sha256: str
    licence: str = ""


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """Content of adapter.json.

    Args:
        id: the routing model's id, reported with every decision.
        file: the weights' file within the folder.
        sha256: of that file.
        prompt_format: the format it was trained for; empty where it is not known.
        temperature: calibration by what computes the engine (`openvino`); 1 where it has none.
        licence: SPDX identifier.
        training: a record of how it was made, for people.
    """

    schema_version: int
    id: str
    file: str
    sha256: str
    base: BaseFacts
    prompt_format: str
    temperature: Mapping[str, float]
    licence: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter on disk whose weights are as its facts say.

    Args:
        path: the folder, or the file where there is none.
        weights: the safetensors file.
    """

    path: Path
    weights: Path
    facts: AdapterFacts

    @property
    def model_card(self) -> Path | None:
        card = self.path / MODEL_CARD
        return card if card.is_file() else None

    def temperature(self, runtime: str) -> float:
        return self.facts.temperature.get(runtime, 1.0)

    def apply(self, source: ModelSource) -> ModelSource:
        """`source` with the change added when a tensor is read: in float32, then rounded to
        float16, so that an engine and a checkpoint hold the same numbers.

        Raises:
            EngineError: the file is not in the format, or changes tensors that the source does not
                have.
        """
        delta = _Delta(self.weights)
        delta.check(source.architecture)
        return replace(source, weights=_Merged(source.weights, delta))


def shipped_adapter() -> Path | None:
    """The folder of the adapter that comes with the sidecar; None if this copy comes without."""
    here = Path(__file__).resolve().parents[1]
    # In a wheel the folder lies inside the package, in a checkout beside it.
    for root in (here / "_models", here.parent / "models"):
        if (root / _SHIPPED / FACTS).is_file():
            return root / _SHIPPED
    return None


def open_adapter(path: Path) -> Adapter:
    """An adapter whose files are whole.

    Args:
        path: the folder; or the safetensors file alone, as training writes it: its id is then the
            file's name, its prompt format unknown, and it is not calibrated.

    Raises:
        EngineError: a file is missing, damaged or changed, or is of a newer version.
    """
    if not path.is_dir():
        delta = _Delta(path)
        return Adapter(path, path, _facts_of_file(path, delta))
    facts = _facts(path / FACTS)
    weights = path / facts.file
    if not weights.is_file():
        raise EngineError(f"{weights}: missing; get the whole adapter again")
    actual = sha256_of(weights)
    if actual != facts.sha256:
        raise EngineError(
            f"{weights}: sha256 is {actual}, {FACTS} says {facts.sha256}; get the adapter again"
        )
    delta = _Delta(weights)
    if delta.base_sha256 != facts.base.sha256:
        raise EngineError(
            f"{path / FACTS}: base.sha256 is {facts.base.sha256}, but {facts.file} was made for "
            f"{delta.base_sha256}; get the adapter again"
        )
    return Adapter(path, weights, facts)


def open_merged(source: Path, adapter: Adapter | None) -> ModelSource:
    """Open weights, with the adapter merged into them if there is one.

    Raises:
        EngineError: the adapter was made for other weights, or one of the two cannot be read.
    """
    if adapter is None:
        return open_source(source)
    base = adapter.facts.base
    actual = sha256_of(*weight_files(source))
    if actual != base.sha256:
        named = f"{base.name}, " if base.name else ""
        raise EngineError(
            f"{adapter.path}: made for the base weights {named}sha256 {base.sha256}; {source} has "
            f"sha256 {actual}. Name the base that the adapter was trained on"
        )
    return adapter.apply(open_source(source))


def describe_adapter(
    folder: Path,
    *,
    model_id: str,
    prompt_format: str,
    base_name: str = "",
    base_licence: str = "",
    licence: str = "",
    temperature: Mapping[str, float] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Adapter:
    """Write adapter.json beside the adapter.safetensors in `folder`.

    Raises:
        EngineError: there is none, or it is not in the format.
    """
    weights = folder / WEIGHTS
    facts = AdapterFacts(
        schema_version=SCHEMA_VERSION,
        id=model_id,
        file=WEIGHTS,
        sha256=sha256_of(weights) if weights.is_file() else "",
        base=BaseFacts(base_name, _Delta(weights).base_sha256, base_licence),
        prompt_format=prompt_format,
        temperature=temperature or {},
        licence=licence,
        training=training or {},
    )
    (folder / FACTS).write_text(facts.to_json(), encoding="utf-8")
    return open_adapter(folder)


def decode_rows(
    codes: npt.NDArray[np.uint8], scale: npt.NDArray[np.float16], bits: int, columns: int
) -> npt.NDArray[np.float32]:
    """The change of a matrix, [rows, columns], of packed codes [rows, bytes] and scales [rows]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    unpacked = (codes[:, :, None] >> shifts) & np.uint8(2**bits - 1)
    levels: npt.NDArray[np.float32] = LEVELS[bits][unpacked.reshape(len(codes), -1)[:, :columns]]
    return levels * scale.astype(np.float32)[:, None]


class _Delta:
    """A file of the format. Raises EngineError if it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SafetensorsFile(path)
        metadata = self._file.metadata
        if metadata.get("format") != FORMAT:
            raise EngineError(
                f"{path}: format is {metadata.get('format')!r}, this version reads {FORMAT!r}; "
                "upgrade, or export the adapter again"
            )
        if metadata.get("bits") not in {str(bits) for bits in LEVELS}:
            raise EngineError(f"{path}: bits is {metadata.get('bits')!r}; it must be 1 or 2")
        self._bits = int(metadata["bits"])
        self.base_sha256 = metadata.get("base_sha256", "")
        names = self._file.names
        self._coded = frozenset(n.removesuffix(".codes") for n in names if n.endswith(".codes"))
        self._scales = frozenset(f"{name}.scale" for name in self._coded)
        self._replaced = frozenset(n for n in names if not n.endswith(".codes")) - self._scales

    def check(self, architecture: Architecture) -> None:
        """Raises EngineError if a tensor does not match one of the decoder's."""
        shapes = tensor_shapes(architecture)
        names = set(self._file.names)
        for name in sorted(self._coded | self._replaced):
            shape = shapes.get(name)
            if shape is None or len(shape) != (2 if name in self._coded else 1):
                raise EngineError(f"{self.path}: changes {name!r}, which the base does not have")
            for part, form in self._forms(name, shape).items():
                actual = self._file.form(part) if part in names else None
                if actual != form:
                    raise EngineError(f"{self.path}: {part!r} is {actual}; expected {form}")

    def _forms(
        self, name: str, shape: tuple[int, ...]
    ) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        if name in self._replaced:
            return {name: ("F32", shape)}
        rows, columns = shape
        bytes_per_row = -(-columns * self._bits // 8)
        return {
            f"{name}.codes": ("U8", (rows, bytes_per_row)),
            f"{name}.scale": ("F16", (rows,)),
        }

    def merged(self, name: str, base: Callable[[str], FloatArray]) -> FloatArray:
        if name in self._replaced:
            return to_float16(name, self._file.read(name))
        weight = base(name)
        if name not in self._coded:
            return weight
        codes = self._file.read_codes(f"{name}.codes")
        scale = self._file.read(f"{name}.scale").astype(np.float16)
        change = decode_rows(codes, scale, self._bits, weight.shape[1])
        return to_float16(name, weight.astype(np.float32) + change)


@dataclass(frozen=True, slots=True)
class _Merged:
    """`Weights` of base and change."""

    base: Weights
    delta: _Delta

    def tensor(self, name: str) -> FloatArray:
        return self.delta.merged(name, self.base.tensor)


def _facts_of_file(path: Path, delta: _Delta) -> AdapterFacts:
    base = BaseFacts(name="", sha256=delta.base_sha256)
    return AdapterFacts(
        schema_version=SCHEMA_VERSION,
        id=path.stem,
        file=path.name,
        sha256=sha256_of(path),
        base=base,
        prompt_format="",
        temperature={},
    )


def _facts(path: Path) -> AdapterFacts:
    content = _read_json(path)
    try:
        base = BaseFacts(**_only(BaseFacts, content["base"]))
        facts = AdapterFacts(**{**_only(AdapterFacts, content), "base": base})
        temperature = {str(name): float(value) for name, value in facts.temperature.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"{path}: a fact is missing or of another kind ({error})") from error
    texts = (facts.id, facts.file, facts.sha256, facts.prompt_format, base.sha256)
    if not all(isinstance(text, str) and text for text in texts):
        raise EngineError(
            f"{path}: id, file, sha256, prompt_format and base.sha256 must be texts, not empty"
        )
    if not _ID.fullmatch(facts.id):
        raise EngineError(
            f"{path}: id is {facts.id!r}; it must be of lower-case letters, digits, '.', '-' and "
            "'_', beginning with a letter or digit"
        )
    if Path(facts.file).name != facts.file:
        raise EngineError(f"{path}: file is {facts.file!r}; it must be a name within the folder")
    for name, value in temperature.items():
        if not 0 < value < float("inf"):
            raise EngineError(f"{path}: temperature.{name} is {value}; it must be above 0")
    return replace(facts, temperature=temperature)


def _only(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """What `kind` has; a file may say more."""
    known = {each.name for each in fields(kind)}
    return {name: value for name, value in content.items() if name in known}


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EngineError(
            f"{path}: missing, so {path.parent} is not an adapter; name its folder, or its "
            ".safetensors file"
        ) from error
    except ValueError as error:
        raise EngineError(f"{path}: not valid JSON ({error}); get the adapter again") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise EngineError(f"{path}: schema_version is missing; get the adapter again")
    if version > SCHEMA_VERSION:
        raise EngineError(
            f"{path}: schema_version is {version}, this version reads up to {SCHEMA_VERSION}; "
            "upgrade"
        )
    return dict(content)
