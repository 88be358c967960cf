"""Policies and catalogs as the documents that `schema` reads: what stores keep and exports write.

`policy_from(policy_document(policy))` is `policy`. What has its default value is left out, so that
a version that lacks a key can read a policy which does not use it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.emitter import Emitter
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.resolver import implicit_resolvers

from sidecar.core.policy import (
    DEFAULT_SWITCH_CONFIDENCE,
    Model,
    ModelList,
    Policy,
    Preference,
    Route,
)
from sidecar.core.shown import is_shown, shown
from sidecar.policies.findings import Finding
from sidecar.policies.schema import (
    API_VERSION,
    CatalogShape,
    PolicyShape,
    read_shape,
)

_LINE_WIDTH = 100
_SAID = 3
"""Of what is wrong with a document; that it cannot be read is what counts."""


class UnreadableDocumentError(Exception):
    """A kept document that this version cannot read: a newer one wrote it, or it is damaged."""


def policy_document(policy: Policy) -> dict[str, object]:
    """The policy as a document of kind Policy."""
    document: dict[str, object] = {
        "apiVersion": API_VERSION,
        "kind": PolicyShape.KIND,
        "name": policy.name,
    }
    if policy.namespace != "default":
        document["namespace"] = policy.namespace
    if policy.description:
        document["description"] = policy.description
    if policy.pin is not None:
        document["pin"] = policy.pin.value
    if policy.switch_confidence != DEFAULT_SWITCH_CONFIDENCE:
        document["switch_confidence"] = policy.switch_confidence
    document["default"] = _models(policy.default)
    document["routes"] = [_route(route) for route in policy.routes]
    return document


def policy_from(document: Mapping[str, object]) -> Policy:
    """Raises UnreadableDocumentError."""
    read = read_shape(dict(document), PolicyShape, ())
    if read.shape is None or read.findings:
        raise UnreadableDocumentError(_said(read.findings))
    return read.shape.to_core()


def catalog_document(models: Iterable[Model]) -> dict[str, object]:
    """The models as a document of kind ModelCatalog."""
    return {
        "apiVersion": API_VERSION,
        "kind": CatalogShape.KIND,
        "models": [_model(model) for model in models],
    }


def catalog_from(document: Mapping[str, object]) -> tuple[Model, ...]:
    """Raises UnreadableDocumentError."""
    read = read_shape(dict(document), CatalogShape, ())
    if read.shape is None or read.findings:
        raise UnreadableDocumentError(_said(read.findings))
    return read.shape.to_core()


def yaml_text(*documents: Mapping[str, object]) -> str:
    """The documents as YAML, keys in their order."""
    yaml = YAML()
    yaml.Emitter = _Emitter
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.width = _LINE_WIDTH
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    yaml.dump_all([dict(document) for document in documents], stream)
    # Below, whatever has such characters stands in double quotes.
    return shown(stream.getvalue())


def json_text(value: object, indent: int | None = None) -> str:
    """As JSON, with escapes for what a terminal obeys or does not show."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if is_shown(text.replace("\n", "")):
        return text
    return "".join(c if c == "\n" or is_shown(c) else json.dumps(c)[1:-1] for c in text)


class _Emitter(Emitter):
    def write_double_quoted(self, text: str, split: bool = True) -> None:
        # Where it breaks the line at an escape it adds a space.
        super().write_double_quoted(text, split=False)


_OF_1_1 = [
    (firsts, expression)
    for versions, tag, expression, firsts in implicit_resolvers
    if (1, 1) in versions and tag.endswith((":bool", ":int", ":float"))
]


class _Representer(RoundTripRepresenter):
    """What readers of YAML 1.1, which LiteLLM and Plano have, take for the same: `on`, `12:30` and
    1e-06 are a boolean, a number and a text there."""

    def represent_str(self, data: str) -> Any:
        other = any(data[:1] in firsts and each.match(data) for firsts, each in _OF_1_1)
        # Without quotes a line may be broken where there are two spaces, and one of them is lost.
        style = "'" if (other or "  " in data) and "\n" not in data else None
        if not is_shown(data.replace("\n", "")):
            style = '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def represent_float(self, data: float) -> Any:
        mantissa, e, exponent = repr(data).partition("e")
        if not e or "." in mantissa:
            return super().represent_float(data)
        return self.represent_scalar("tag:yaml.org,2002:float", f"{mantissa}.0e{exponent}")


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(float, _Representer.represent_float)


def _said(findings: Iterable[Finding]) -> str:
    said = [str(finding) for finding in findings]
    more = f" ({len(said) - _SAID} more)" if len(said) > _SAID else ""
    return "; ".join(said[:_SAID]) + more


def _route(route: Route) -> dict[str, object]:
    document: dict[str, object] = {"name": route.name, "description": route.description}
    if route.domain:
        document["domain"] = route.domain
    document |= _models(route.models)
    if route.min_confidence:
        document["min_confidence"] = route.min_confidence
    if route.examples:
        document["examples"] = list(route.examples)
    return document


def _models(models: ModelList) -> dict[str, object]:
    document: dict[str, object] = {
        "models": [
            entry.id if entry.weight == 1.0 else {"model": entry.id, "weight": entry.weight}
            for entry in models.models
        ]
    }
    if models.preference is not Preference.DECLARED:
        document["preference"] = models.preference.value
    if models.preference is Preference.WEIGHTED:
        # At least one weight has to be written out, or the list reads as a mistake.
        document["models"] = [
            {"model": entry.id, "weight": entry.weight} for entry in models.models
        ]
    return document


_MODEL_DEFAULTS = {each.name: each.default for each in fields(Model) if each.default is not MISSING}


def _model(model: Model) -> dict[str, object]:
    document: dict[str, object] = {"id": model.id, "upstream_model": model.upstream_model}
    plain: dict[str, Any] = {
        "cluster": model.cluster,
        "host": model.host,
        "dialects": model.dialects,
        "capabilities": model.capabilities,
        "latency_ms": model.latency_ms,
        "context_window": model.context_window,
    }
    for key, value in plain.items():
        if value != _MODEL_DEFAULTS[key]:
            kept = sorted(each.value for each in value) if isinstance(value, frozenset) else value
            document[key] = kept
    prices = {"input": model.input_price, "output": model.output_price}
    known: dict[str, object] = {key: value for key, value in prices.items() if value is not None}
    if model.prices_as_of is not None:
        known["as_of"] = model.prices_as_of.isoformat()
    if known:
        document["prices"] = known
    return document
