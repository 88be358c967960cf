"""LiteLLM's proxy configuration: its `model_list` is a catalog; it has no routes.

Schema: https://docs.litellm.ai/docs/proxy/configs, prices and limits in `model_info`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from sidecar.core.policy import Capability, Model
from sidecar.policies.documents import yaml_text
from sidecar.policies.exchange.common import (
    Exported,
    Imported,
    Lost,
    UnreadableFileError,
    catalog_losses,
    mapping_of,
    mappings,
    model_of,
    text_of,
)
from sidecar.policies.findings import member

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
    catalog: dict[str, Model] = {}
    for path, entry in mappings(document.get("model_list"), "model_list"):
        lost.rest(path, entry, ("model_name", "litellm_params", "model_info"))
        model = _model(path, entry, lost)
        if model.id in catalog:
            lost.key(path, f"{model.id} is there already, and a model has one deployment here")
        else:
            catalog[model.id] = model
    return Imported(catalog, None, tuple(lost.lines))


def _model(path: str, entry: dict[str, Any], lost: Lost) -> Model:
    params = _mapping(entry, "litellm_params", path)
    info = _mapping(entry, "model_info", path)
    where = member(path, "litellm_params")
    lost.rest(where, params, {"model", "api_base", *_PRICES.values()})
    lost.rest(member(path, "model_info"), info, _INFO_KEYS)
    spelled = model_of(text_of(params, "model", where))
    # What is set for the deployment counts more than what is known of the model.
    facts = {**info, **{key: params[key] for key in _PRICES.values() if key in params}}
    prices = {key: _per_million(facts.get(theirs)) for key, theirs in _PRICES.items()}
    return Model(
        id=text_of(entry, "model_name", path),
        upstream_model=spelled.upstream_model,
        cluster=spelled.cluster,
        host=_host(params, where, lost),
        capabilities=frozenset(each for each, key in _SUPPORTS.items() if info.get(key) is True),
        input_price=prices["input_price"],
        output_price=prices["output_price"],
        context_window=_whole(info.get(_CONTEXT)),
    )


def _mapping(entry: dict[str, Any], key: str, path: str) -> dict[str, Any]:
    value = entry.get(key) or {}
    if not isinstance(value, dict):
        raise UnreadableFileError(f"{member(path, key)}: must be a mapping")
    return value


def _host(params: dict[str, Any], path: str, lost: Lost) -> str:
    base = params.get("api_base")
    if not isinstance(base, str) or not base:
        return ""
    address = urlsplit(base)
    if not address.netloc:
        lost.key(member(path, "api_base"), "it is no address, perhaps a variable")
    elif address.scheme != "https" or address.path.strip("/"):
        lost.key(member(path, "api_base"), "only its host and port are taken")
    return address.netloc


def _per_million(per_token: object) -> float | None:
    if isinstance(per_token, bool) or not isinstance(per_token, int | float):
        return None
    # By way of the digits: 7.5e-07 is 0.75, not 0.7499999999999999.
    return float(Decimal(str(per_token)) * _MILLION)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def write(content: Imported) -> Exported:
    """A configuration with a `model_list`."""
    lost = Lost()
    catalog = content.catalog.values()
    catalog_losses(lost, catalog, {"host", "capabilities", "prices", "context_window"})
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
