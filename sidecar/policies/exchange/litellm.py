"""LiteLLM's proxy configuration: its `model_list` is a catalog; it has no routes.

Schema: https://docs.litellm.ai/docs/proxy/configs, prices and limits in `model_info`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sidecar.core.policy import Capability, Model
from sidecar.policies.documents import yaml_text
from sidecar.policies.exchange.common import (
    Exported,
    Imported,
    Lost,
    UnreadableFileError,
    catalog_losses,
    host_of,
    mapping_of,
    mappings,
    provider_model_of,
    text_of,
)
from sidecar.policies.findings import member, quoted

_MILLION = 1_000_000
_PRICES = {"input_price": "input_cost_per_token", "output_price": "output_cost_per_token"}
_SUPPORTS = {
    Capability.IMAGES: "supports_vision",
    Capability.TOOLS: "supports_function_calling",
}
_CONTEXT = "max_input_tokens"
_INFO_KEYS = {*_PRICES.values(), *_SUPPORTS.values(), _CONTEXT}


def read(text: str, name: str) -> Imported:
    """The catalog of a configuration; `name` is of no use. Raises UnreadableFileError."""
    document = mapping_of(text)
    lost = Lost()
    lost.rest("", document, ("model_list",))
    if "model_list" not in document:
        raise UnreadableFileError("has no model_list; is this a configuration of LiteLLM's proxy?")
    catalog: dict[str, Model] = {}
    for path, entry in mappings(document["model_list"], "model_list"):
        lost.rest(path, entry, ("model_name", "litellm_params", "model_info"))
        model = _model(path, entry, lost)
        if "*" in model.id or "*" in model.upstream_model:
            lost.key(path, f"{model.id} stands for any model; list those you use")
        elif model.id in catalog:
            lost.key(path, f"{model.id} is there already, and a model has one deployment here")
        else:
            catalog[model.id] = model
    if not catalog:
        raise UnreadableFileError("names no model; list those you use in model_list")
    return Imported(catalog, None, tuple(lost.lines))


def _model(path: str, entry: dict[str, Any], lost: Lost) -> Model:
    params = _mapping(entry, "litellm_params", path)
    info = _mapping(entry, "model_info", path)
    where = member(path, "litellm_params")
    lost.rest(where, params, {"model", "api_base", *_PRICES.values()})
    about = member(path, "model_info")
    lost.rest(about, info, _INFO_KEYS)
    host = host_of(params.get("api_base"), member(where, "api_base"), lost)
    spelled = provider_model_of(text_of(params, "model", where), host)
    # What is set for the deployment counts more than what is known of the model.
    prices = {
        key: _per_million(params, theirs, where, lost)
        if theirs in params
        else _per_million(info, theirs, about, lost)
        for key, theirs in _PRICES.items()
    }
    for key in _SUPPORTS.values():
        if not isinstance(info.get(key), bool | None):
            lost.key(member(about, key), "it is neither true nor false")
    return Model(
        id=text_of(entry, "model_name", path),
        upstream_model=spelled.upstream_model,
        cluster=spelled.cluster,
        host=host,
        dialects=spelled.dialects,
        capabilities=frozenset(each for each, key in _SUPPORTS.items() if info.get(key) is True),
        input_price=prices["input_price"],
        output_price=prices["output_price"],
        context_window=_whole(info, _CONTEXT, about, lost),
    )


def _mapping(entry: dict[str, Any], key: str, path: str) -> dict[str, Any]:
    value = entry.get(key) or {}
    if not isinstance(value, dict):
        raise UnreadableFileError(f"{member(path, key)}: must be a mapping")
    return value


def _per_million(facts: dict[str, Any], key: str, path: str, lost: Lost) -> float | None:
    per_token = facts.get(key)
    if isinstance(per_token, bool) or not isinstance(per_token, int | float | None):
        lost.key(member(path, key), "it is no number")
        return None
    if per_token is None:
        return None
    # By way of the digits: 7.5e-07 is 0.75, not 0.7499999999999999. Of more than 15 the last would
    # be another one each time that they are written and read again.
    return float(f"{Decimal(str(per_token)) * _MILLION:.15g}")


def _whole(facts: dict[str, Any], key: str, path: str, lost: Lost) -> int | None:
    value = facts.get(key)
    if isinstance(value, bool) or not isinstance(value, int | None):
        lost.key(member(path, key), "it is no whole number")
        return None
    return value


def write(content: Imported) -> Exported:
    """A configuration with a `model_list`. Raises UnreadableFileError where it could not be read
    again."""
    if not content.catalog:
        raise UnreadableFileError("the model catalog names no model; apply one that does")
    lost = Lost()
    catalog = content.catalog.values()
    sayable = {"upstream_model", "host", "capabilities", "prices", "context_window", "dialects"}
    catalog_losses(lost, catalog, sayable)
    for model in catalog:
        provider, slash, _ = model.upstream_model.partition("/")
        if slash and not model.cluster:
            path = f"models[{model.id}].upstream_model"
            lost.key(path, f"{quoted(provider)} stands for the provider there; give a cluster")
    if content.policy is not None:
        lost.key("routes", "LiteLLM's file has models alone")
    document = {"model_list": [_written(model) for model in catalog]}
    return Exported(yaml_text(document), tuple(lost.lines))


def _written(model: Model) -> dict[str, Any]:
    upstream = f"{model.cluster}/{model.upstream_model}" if model.cluster else model.upstream_model
    params: dict[str, Any] = {"model": upstream}
    if model.host:
        params["api_base"] = f"https://{model.host}"
    info: dict[str, Any] = {}
    for key, theirs in _PRICES.items():
        price = getattr(model, key)
        if price is not None:
            info[theirs] = float(Decimal(str(price)) / _MILLION)
    if model.context_window is not None:
        info[_CONTEXT] = model.context_window
    info |= {key: True for each, key in _SUPPORTS.items() if each in model.capabilities}
    entry: dict[str, Any] = {"model_name": model.id, "litellm_params": params}
    return {**entry, "model_info": info} if info else entry
