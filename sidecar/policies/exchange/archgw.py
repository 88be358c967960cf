"""archgw 0.3's configuration: each model lists the preferences it is for.

Schema: `demos/use_cases/preference_based_routing/config.yaml` of katanemo/archgw 0.4.0.
`model_providers` is the later name of `llm_providers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sidecar.core.policy import DEFAULT_SWITCH_CONFIDENCE, Model, Policy, Route
from sidecar.policies.documents import yaml_text
from sidecar.policies.exchange.common import (
    Exported,
    Imported,
    Lost,
    UnreadableFileError,
    catalog_losses,
    host_of,
    list_losses,
    mapping_of,
    mappings,
    models_of,
    provider_model_of,
    route_losses,
    text_of,
)
from sidecar.policies.findings import member

VERSION = "v0.1.0"
_KEYS = {"version", "llm_providers", "model_providers"}
_PROVIDER_KEYS = {"model", "default", "routing_preferences", "base_url"}


def read(text: str, name: str) -> Imported:
    """The policy `name` of a configuration. Raises UnreadableFileError."""
    document = mapping_of(text)
    lost = Lost()
    lost.rest("", document, _KEYS)
    catalog: dict[str, Model] = {}
    routes: list[Route] = []
    default = ""
    for path, provider in providers(document):
        lost.rest(path, provider, _PROVIDER_KEYS)
        model = provider_model(provider, path, lost)
        if model is None:
            lost.given(path, provider, ("default", "routing_preferences"))
            continue
        add_model(catalog, model, path, lost)
        default = default_of(provider, path, model.id, default, lost)
        routes.extend(inline_routes(provider, path, model.id, lost))
    policy = Policy(name, tuple(routes), models_of([default or first(catalog, lost)]))
    return Imported(catalog, policy, tuple(lost.lines))


def inline_routes(provider: dict[str, Any], path: str, model: str, lost: Lost) -> Iterator[Route]:
    """The routes that a provider lists itself. Raises UnreadableFileError."""
    listed = provider.get("routing_preferences", [])
    for where, preference in mappings(listed, member(path, "routing_preferences")):
        lost.rest(where, preference, ("name", "description"))
        yield Route(
            text_of(preference, "name", where),
            text_of(preference, "description", where),
            models_of([model]),
        )


def providers(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The providers, whichever name the list has. Raises UnreadableFileError."""
    key = "model_providers" if "model_providers" in document else "llm_providers"
    if key not in document:
        raise UnreadableFileError("has neither llm_providers nor model_providers")
    return list(mappings(document[key], key))


def provider_model(provider: dict[str, Any], path: str, lost: Lost) -> Model | None:
    """The model of a provider; None for a wildcard such as `openai/*`."""
    name = text_of(provider, "model", path)
    if "*" in name:
        lost.key(member(path, "model"), f"{name} stands for any model; list those you use")
        return None
    host = host_of(provider.get("base_url"), member(path, "base_url"), lost)
    return provider_model_of(name, host)


def add_model(catalog: dict[str, Model], model: Model, path: str, lost: Lost) -> None:
    """Puts `model` into `catalog`; the first of several with one id stays."""
    if model.id in catalog:
        lost.key(path, f"{model.id} is there already, and a model has one provider here")
    catalog.setdefault(model.id, model)


def default_of(provider: dict[str, Any], path: str, model: str, default: str, lost: Lost) -> str:
    """The default so far, or `model` if the provider is it; the first of several stays."""
    marked = provider.get("default")
    if marked is not True:
        if marked not in (None, False):
            lost.key(member(path, "default"), "it is neither true nor false")
        return default
    if default:
        lost.key(member(path, "default"), f"{default} is the default already")
    return default or model


def first(catalog: dict[str, Model], lost: Lost) -> str:
    """The default of a file that names none. Raises UnreadableFileError."""
    if not catalog:
        raise UnreadableFileError("names no model")
    default = next(iter(catalog))
    if len(catalog) > 1:
        lost.assumed("default", f"{default} is taken")
    return default


def write(content: Imported) -> Exported:
    """A configuration of archgw."""
    lost = Lost()
    catalog_losses(lost, content.catalog.values(), {"host", "dialects"})
    entries = {each.id: provider_of(each) for each in content.catalog.values()}
    policy = content.policy
    if policy is not None:
        policy_losses(lost, policy)
        list_losses(lost, "default", policy.default, several=False, preference=False)
        entries[policy.default.models[0].id]["default"] = True
        for route in policy.routes:
            path = f"routes[{route.name}]"
            route_losses(lost, path, route, several=False, preference=False)
            listed = entries[route.models.models[0].id].setdefault("routing_preferences", [])
            listed.append({"name": route.name, "description": route.description})
    document = {"version": VERSION, "llm_providers": list(entries.values())}
    return Exported(yaml_text(document), tuple(lost.lines))


def policy_losses(lost: Lost, policy: Policy) -> None:
    """Names what of a policy has no place in a configuration that holds only one."""
    lost.key("name", f"the file holds one policy, without a name; this was {policy.name}")
    if policy.description:
        lost.key("description")
    if policy.pin is not None or policy.switch_confidence != DEFAULT_SWITCH_CONFIDENCE:
        lost.key("pin")


def provider_of(model: Model) -> dict[str, Any]:
    """The entry of a model: its spelling there is that of its id."""
    entry: dict[str, Any] = {"model": model.id}
    if model.host:
        entry["base_url"] = f"https://{model.host}"
    return entry
