"""Adapters: what training changed of a base model, small enough to ship, and its merging.

An adapter is a folder:

adapter.json                 `AdapterFacts`
adapter.safetensors          the change of the weights; adapter.json may name it otherwise
second_opinion.safetensors   where it has one: that of a sentence encoder's
MODEL_CARD.md                for people; checkpoints take it along

The changes are in the format of `sidecar.engines.delta`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sidecar.engines.delta import Delta, MergedWeights
from sidecar.engines.encoder import EncoderSource, open_encoder
from sidecar.engines.engine_directory import FusionFacts, sha256_of
from sidecar.engines.errors import EngineError
from sidecar.engines.sources import open_source, weight_files
from sidecar.engines.weights import ModelSource, tensor_shapes

SCHEMA_VERSION = 1
"""Of adapter.json. A reader refuses newer ones."""

FACTS = "adapter.json"
WEIGHTS = "adapter.safetensors"
SECOND_OPINION = "second_opinion.safetensors"
MODEL_CARD = "MODEL_CARD.md"

_SHIPPED = "router-135m"
_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")  # names a folder of the cache, too
ID_RULE = (
    "must be of lower-case letters, digits, '.', '-' and '_', beginning with a letter or digit"
)


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
class SecondOpinion:
    """A sentence encoder that decides together with the routing model.

    Args:
        file: its weights' change within the adapter's folder.
        sha256: of that file.
        base: the encoder that it was trained from.
        fusion: how the two opinions become one.
    """

    file: str
    sha256: str
    base: BaseFacts
    fusion: FusionFacts


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
        second_opinion: None where the routing model decides alone.
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
    second_opinion: SecondOpinion | None = None

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
        delta = Delta(self.weights)
        delta.check(tensor_shapes(source.architecture))
        return replace(source, weights=MergedWeights(source.weights, delta))

    def apply_to_encoder(self, base: Path) -> EncoderSource:
        """The encoder in the folder `base` with the change added, as `apply` adds it.

        Raises:
            EngineError: the adapter has no encoder, or one made from another base.
        """
        second = self.facts.second_opinion
        if second is None:
            raise EngineError(f"{self.path}: has no second opinion")
        source = open_encoder(base)
        actual = sha256_of(source.weights_file)
        if actual != second.base.sha256:
            raise EngineError(
                f"{self.path}: its second opinion was made from {second.base.name or 'an encoder'} "
                f"with sha256 {second.base.sha256}; {source.weights_file} has sha256 {actual}"
            )
        return source.changed_by(Delta(self.path / second.file))


def is_model_id(text: str) -> bool:
    """Whether `text` meets `ID_RULE`."""
    return _ID.fullmatch(text) is not None


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
        delta = Delta(path)
        return Adapter(path, path, _facts_of_file(path, delta))
    facts = _facts(path / FACTS)
    weights = path / facts.file
    _check_weights(weights, facts.sha256, facts.base, "base.sha256")
    second = facts.second_opinion
    if second is not None:
        where = "second_opinion.base.sha256"
        _check_weights(path / second.file, second.sha256, second.base, where)
    return Adapter(path, weights, facts)


def _check_weights(weights: Path, sha256: str, base: BaseFacts, field_name: str) -> None:
    if not weights.is_file():
        raise EngineError(f"{weights}: missing; get the whole adapter again")
    actual = sha256_of(weights)
    if actual != sha256:
        raise EngineError(
            f"{weights}: sha256 is {actual}, {FACTS} says {sha256}; get the adapter again, or "
            "describe it again if it has been exported anew"
        )
    made_for = Delta(weights).base_sha256
    if made_for != base.sha256:
        raise EngineError(
            f"{weights.parent / FACTS}: {field_name} is {base.sha256}, but {weights.name} was made "
            f"for {made_for}; get the adapter again"
        )


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
    fusion: FusionFacts | None = None,
    encoder_base: BaseFacts | None = None,
) -> Adapter:
    """Write adapter.json beside the adapter.safetensors in `folder`, and the
    second_opinion.safetensors where there is one.

    Args:
        fusion: needed with a second opinion.
        encoder_base: name and licence of what the encoder was trained from.

    Raises:
        EngineError: there is none, it is not in the format, a second opinion has no fusion, or a
            fact cannot be; nothing is then written.
    """
    weights = folder / WEIGHTS
    facts = AdapterFacts(
        schema_version=SCHEMA_VERSION,
        id=model_id,
        file=WEIGHTS,
        sha256=sha256_of(weights) if weights.is_file() else "",
        base=BaseFacts(base_name, Delta(weights).base_sha256, base_licence),
        prompt_format=prompt_format,
        temperature=temperature or {},
        licence=licence,
        training=training or {},
        second_opinion=_describe_second_opinion(folder / SECOND_OPINION, fusion, encoder_base),
    )
    content = facts.to_json()
    _facts_of(folder / FACTS, json.loads(content))
    (folder / FACTS).write_text(content, encoding="utf-8")
    return open_adapter(folder)


def _describe_second_opinion(
    weights: Path, fusion: FusionFacts | None, base: BaseFacts | None
) -> SecondOpinion | None:
    if not weights.is_file():
        return None
    if fusion is None:
        raise EngineError(f"{weights}: needs the weights of the fusion; fit them, or remove it")
    named = replace(base or BaseFacts("", ""), sha256=Delta(weights).base_sha256)
    return SecondOpinion(weights.name, sha256_of(weights), named, fusion)


def _facts_of_file(path: Path, delta: Delta) -> AdapterFacts:
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
    return _facts_of(path, _read_json(path))


def _facts_of(path: Path, content: Mapping[str, Any]) -> AdapterFacts:
    try:
        base = BaseFacts(**_only(BaseFacts, content["base"]))
        second = _second_opinion(content.get("second_opinion"))
        known = {**_only(AdapterFacts, content), "base": base, "second_opinion": second}
        facts = AdapterFacts(**known)
        temperature = {str(name): float(value) for name, value in facts.temperature.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"{path}: a fact is missing or of another kind ({error})") from error
    texts = (facts.id, facts.file, facts.sha256, facts.prompt_format, base.sha256)
    if not all(isinstance(text, str) and text for text in texts):
        raise EngineError(
            f"{path}: id, file, sha256, prompt_format and base.sha256 must be texts, not empty"
        )
    if not is_model_id(facts.id):
        raise EngineError(f"{path}: id is {facts.id!r}; it {ID_RULE}")
    for file in (facts.file, *((second.file,) if second else ())):
        if Path(file).name != file:
            raise EngineError(f"{path}: file is {file!r}; it must be a name within the folder")
    for name, value in temperature.items():
        if not 0 < value < float("inf"):
            raise EngineError(f"{path}: temperature.{name} is {value}; it must be above 0")
    return replace(facts, temperature=temperature)


def _second_opinion(content: Mapping[str, Any] | None) -> SecondOpinion | None:
    """Raises KeyError, TypeError or ValueError for facts that are none."""
    if content is None:
        return None
    base = BaseFacts(**_only(BaseFacts, content["base"]))
    fusion = FusionFacts.of(content["fusion"])
    return SecondOpinion(str(content["file"]), str(content["sha256"]), base, fusion)


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
