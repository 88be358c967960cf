"""What the formats have in common."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from sidecar.core.policy import (
    ApiDialect,
    Catalog,
    Model,
    ModelList,
    Policy,
    Preference,
    Route,
    WeightedModel,
)
from sidecar.policies.findings import item, member, quoted
from sidecar.policies.yaml_source import decode, read_documents

_ALL = frozenset(ApiDialect)
_CHAT = frozenset({ApiDialect.OPENAI_CHAT})
_PROVIDERS = {
    "anthropic": ("api.anthropic.com", frozenset({ApiDialect.ANTHROPIC_MESSAGES})),
    "deepseek": ("api.deepseek.com", _CHAT),
    "google": ("generativelanguage.googleapis.com", _CHAT),
    "mistral": ("api.mistral.ai", _CHAT),
    "openai": ("api.openai.com", _CHAT | {ApiDialect.OPENAI_RESPONSES}),
}
"""Host, and what it answers, of each cluster of the shipped Envoy configuration."""


class UnreadableFileError(Exception):
    """A file that is not of the format; the text says where and what to do."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A policy and a catalog in our terms.

    Args:
        policy: None where the file has models alone.
        lost: what the file says and we cannot, one line each.
    """

    catalog: Catalog
    policy: Policy | None = None
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exported:
    """The text of a file, and what it could not say, one line each."""

    text: str
    lost: tuple[str, ...] = ()


@dataclass(slots=True)
class Lost:
    """Collects what has no counterpart."""

    lines: list[str] = field(default_factory=list)

    def key(self, path: str, why: str = "") -> None:
        self.lines.append(f"{path}: has no counterpart" + (f"; {why}" if why else ""))

    def assumed(self, path: str, what: str) -> None:
        self.lines.append(f"{path}: is not in the file; {what}")

    def given(self, path: str, mapping: Mapping[str, Any], keys: Iterable[str]) -> None:
        """Those of `keys` that are there and say something."""
        for key in keys:
            if mapping.get(key):
                self.key(member(path, key))

    def rest(self, path: str, mapping: Mapping[str, Any], known: Iterable[str]) -> None:
        """Every key that is not `known`."""
        for key in mapping.keys() - set(known):
            self.key(member(path, key))
        self.lines.sort()


def mapping_of(text: str) -> dict[str, Any]:
    """The one mapping in YAML (or JSON) text. Raises UnreadableFileError."""
    value = value_of(text)
    if not isinstance(value, dict):
        raise UnreadableFileError("must be a mapping; is this the whole file?")
    return value


def value_of(text: str) -> object:
    """The one value in YAML or JSON text. Raises UnreadableFileError."""
    if text.lstrip().startswith(("{", "[")):
        return _json(text)
    decoded, problem = decode(text.encode())
    documents, problems = read_documents(decoded)
    for each in [problem, *problems, *(f for d in documents for f in d.findings)]:
        if each is not None:
            raise UnreadableFileError(str(each))
    if len(documents) != 1:
        raise UnreadableFileError(f"holds {len(documents)} documents; give a file with one")
    return documents[0].value


def _json(text: str) -> object:
    try:
        value: object = json.loads(text, object_pairs_hook=_object)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UnreadableFileError(
            "has half of a surrogate pair; write the character itself"
        ) from None
    except ValueError as error:
        raise UnreadableFileError(f"not JSON: {error}") from None
    except RecursionError:
        raise UnreadableFileError("is nested too deeply") from None
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """As YAML, where JSON itself would keep the last one without a word."""
    value: dict[str, object] = {}
    for key, each in pairs:
        if key in value:
            raise UnreadableFileError(f"duplicate key {quoted(key)}; keep one")
        value[key] = each
    return value


def mappings(value: object, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a list of mappings, each with its path. Raises UnreadableFileError."""
    if not isinstance(value, list):
        raise UnreadableFileError(f"{path}: must be a list")
    for index, entry in enumerate(value):
        where = item(path, index)
        if not isinstance(entry, dict):
            raise UnreadableFileError(f"{where}: must be a mapping")
        yield where, entry


def text_of(entry: Mapping[str, Any], key: str, path: str) -> str:
    """A text that must be there. Raises UnreadableFileError."""
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise UnreadableFileError(f"{member(path, key)}: must be a text")
    return value


def texts_of(value: object, path: str) -> list[str]:
    """A list of texts. Raises UnreadableFileError."""
    if not isinstance(value, list):
        raise UnreadableFileError(f"{path}: must be a list of models")
    for index, entry in enumerate(value):
        if not isinstance(entry, str) or not entry:
            raise UnreadableFileError(f"{item(path, index)}: must be a text")
    return value


def host_of(address: object, path: str, lost: Lost) -> str:
    """The host, and the port, of a provider's address; names the rest of it. Empty for none."""
    if address is None or address == "":
        return ""
    try:
        parts = urlsplit(address if isinstance(address, str) else "")
    except ValueError:  # As of a bracket that is not closed.
        parts = urlsplit("")
    # Without a name and a password that may stand there.
    host = parts.netloc.rpartition("@")[2]
    if not host:
        lost.key(path, "it is no address, perhaps a variable")
    elif parts.scheme != "https" or host != parts.netloc or parts.path.strip("/") or parts.query:
        lost.key(path, "only its host and port are taken")
    return host


def model_of(name: str) -> Model:
    """A model spelled `provider/model`, as these routers do; the provider is the cluster."""
    provider, slash, upstream = name.partition("/")
    if not slash:
        return Model(name, name)
    return Model(name, upstream, cluster=provider)


def provider_model_of(name: str, host: str = "") -> Model:
    """As `model_of`, with what the provider answers, where that is known: other routers translate
    between APIs, and their files need not say it."""
    model = model_of(name)
    own, answered = _PROVIDERS.get(model.cluster, ("", _ALL))
    return replace(model, host=host, dialects=answered if host in ("", own) else _ALL)


def models_of(names: Iterable[str], preference: Preference = Preference.DECLARED) -> ModelList:
    """A ranked list of models, each once."""
    return ModelList(tuple(WeightedModel(name) for name in dict.fromkeys(names)), preference)


def route_losses(lost: Lost, path: str, route: Route, *, several: bool, preference: bool) -> None:
    """Names what of a route these formats cannot say.

    Args:
        several: they can say several models.
        preference: they can say how to order them.
    """
    if route.domain:
        lost.key(member(path, "domain"), f"{quoted(route.name)} becomes a route like any other")
    if route.min_confidence:
        lost.key(member(path, "min_confidence"))
    if route.examples:
        lost.key(member(path, "examples"))
    list_losses(lost, path, route.models, several=several, preference=preference)


def list_losses(
    lost: Lost, path: str, models: ModelList, *, several: bool, preference: bool
) -> None:
    """Names what of a list of models these formats cannot say."""
    if len(models.models) > 1 and not several:
        rest = ", ".join(entry.id for entry in models.models[1:])
        lost.key(member(path, "models"), f"only the first is written, not {rest}")
    sayable = (Preference.DECLARED, Preference.CHEAPEST, Preference.FASTEST)
    if models.preference not in (sayable if preference else sayable[:1]):
        lost.key(member(path, "preference"), f"{models.preference.value} becomes declared")


def catalog_losses(lost: Lost, models: Iterable[Model], sayable: set[str]) -> None:
    """Names the facts of models that these formats cannot say."""
    for model in models:
        facts: dict[str, object] = {
            "host": model.host,
            "capabilities": model.capabilities,
            "prices": model.price if model.price is not None else model.input_price,
            "prices.as_of": model.prices_as_of,
            "latency_ms": model.latency_ms,
            "context_window": model.context_window,
        }
        for key, value in facts.items():
            if value and key not in sayable:
                lost.key(f"models[{model.id}].{key}")
        # Elsewhere the id says both.
        name = f"{model.cluster}/" if "upstream_model" in sayable else model.id
        spelled = provider_model_of(name, model.host)
        if model.dialects != (spelled.dialects if "dialects" in sayable else _ALL):
            lost.key(f"models[{model.id}].dialects")
        if "upstream_model" in sayable:
            continue
        if model.upstream_model != spelled.upstream_model:
            lost.key(f"models[{model.id}].upstream_model", f"{model.id} is written")
        if model.cluster not in ("", spelled.cluster):
            lost.key(f"models[{model.id}].cluster")
