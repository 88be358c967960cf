"""Plano 0.4's configuration: preferences list their models in order.

Schema: `config/plano_config_schema.yaml` of katanemo/plano 0.4.36.
Preferences that providers list themselves, as before 0.4, are still taken there, and so here.
"""

from __future__ import annotations

from typing import Any

from sidecar.core.policy import Model, Policy, Preference, Route
from sidecar.policies.documents import yaml_text
from sidecar.policies.exchange.archgw import (
    add_model,
    default_of,
    first,
    inline_routes,
    policy_losses,
    provider_model,
    provider_of,
    providers,
)
from sidecar.policies.exchange.common import (
    Exported,
    Imported,
    Lost,
    UnreadableFileError,
    catalog_losses,
    list_losses,
    mapping_of,
    mappings,
    models_of,
    provider_model_of,
    route_losses,
    text_of,
    texts_of,
)
from sidecar.policies.findings import member, quoted

VERSION = "v0.4.0"
_KEYS = {"version", "model_providers", "llm_providers", "routing_preferences"}
_PROVIDER_KEYS = {"model", "default", "base_url", "routing_preferences"}
_PREFERENCES = {
    "none": Preference.DECLARED,
    "cheapest": Preference.CHEAPEST,
    "fastest": Preference.FASTEST,
}


def read(text: str, name: str) -> Imported:
    """The policy `name` of a configuration. Raises UnreadableFileError."""
    document = mapping_of(text)
    lost = Lost()
    lost.rest("", document, _KEYS)
    catalog: dict[str, Model] = {}
    inline: list[Route] = []
    default = ""
    listed = providers(document) if document.keys() & {"model_providers", "llm_providers"} else []
    for path, provider in listed:
        lost.rest(path, provider, _PROVIDER_KEYS)
        model = provider_model(provider, path, lost)
        if model is None:
            lost.given(path, provider, ("default", "routing_preferences"))
            continue
        add_model(catalog, model, path, lost)
        default = default_of(provider, path, model.id, default, lost)
        inline.extend(inline_routes(provider, path, model.id, lost))
    preferences = mappings(document.get("routing_preferences", []), "routing_preferences")
    routes = (*(_route(path, preference, lost) for path, preference in preferences), *inline)
    for route in routes:
        for entry in route.models.models:
            catalog.setdefault(entry.id, provider_model_of(entry.id))
    policy = Policy(name, routes, models_of([default or first(catalog, lost)]))
    return Imported(catalog, policy, tuple(lost.lines))


def _route(path: str, entry: dict[str, Any], lost: Lost) -> Route:
    lost.rest(path, entry, ("name", "description", "models", "selection_policy"))
    models = texts_of(entry.get("models"), member(path, "models"))
    if not models:
        raise UnreadableFileError(f"{member(path, 'models')}: must be a list of models")
    return Route(
        text_of(entry, "name", path),
        text_of(entry, "description", path),
        models_of(models, _preference(path, entry, lost)),
    )


def _preference(path: str, entry: dict[str, Any], lost: Lost) -> Preference:
    chosen = entry.get("selection_policy")
    if chosen is None:
        return Preference.DECLARED
    where = member(path, "selection_policy")
    if not isinstance(chosen, dict):
        raise UnreadableFileError(f"{where}: must be a mapping such as {{prefer: cheapest}}")
    lost.rest(where, chosen, ("prefer",))
    prefer = str(chosen.get("prefer", "none"))
    if prefer not in _PREFERENCES:
        lost.key(member(where, "prefer"), f"{quoted(prefer)} becomes declared")
    return _PREFERENCES.get(prefer, Preference.DECLARED)


def write(content: Imported) -> Exported:
    """A configuration of Plano."""
    lost = Lost()
    catalog_losses(lost, content.catalog.values(), {"host", "dialects"})
    entries = {each.id: provider_of(each) for each in content.catalog.values()}
    document: dict[str, Any] = {"version": VERSION, "model_providers": list(entries.values())}
    policy = content.policy
    if policy is not None:
        policy_losses(lost, policy)
        list_losses(lost, "default", policy.default, several=False, preference=False)
        entries[policy.default.models[0].id]["default"] = True
        document["routing_preferences"] = [_written(route, lost) for route in policy.routes]
    return Exported(yaml_text(document), tuple(lost.lines))


def _written(route: Route, lost: Lost) -> dict[str, Any]:
    route_losses(lost, f"routes[{route.name}]", route, several=True, preference=True)
    entry: dict[str, Any] = {
        "name": route.name,
        "description": route.description,
        "models": [each.id for each in route.models.models],
    }
    spelled = {preference: name for name, preference in _PREFERENCES.items()}
    if route.models.preference in (Preference.CHEAPEST, Preference.FASTEST):
        entry["selection_policy"] = {"prefer": spelled[route.models.preference]}
    return entry
