"""HuggingChat's route file: a list of routes, each with a primary model and fallbacks.

Schema: `static/huggingchat/routes.chat.json` of huggingface/chat-ui, until it dropped Arch-Router.
The file has no default: chat-ui sends what no route takes to its route `casual_conversation`.
"""

from __future__ import annotations

from typing import Any

from sidecar.core.policy import Policy, Route
from sidecar.policies.documents import json_text
from sidecar.policies.exchange.archgw import policy_losses
from sidecar.policies.exchange.common import (
    Exported,
    Imported,
    Lost,
    UnreadableFileError,
    catalog_losses,
    mappings,
    model_of,
    models_of,
    route_losses,
    text_of,
    texts_of,
    value_of,
)
from sidecar.policies.findings import member

_OTHER = "casual_conversation"
_KEYS = ("name", "description", "primary_model", "fallback_models")


def read(text: str, name: str) -> Imported:
    """The policy `name` of a route file. Raises UnreadableFileError."""
    value = value_of(text)
    lost = Lost()
    if isinstance(value, dict):
        lost.rest("", value, ("routes",))
        value = value.get("routes", [])
    routes = tuple(_route(path, entry, lost) for path, entry in mappings(value, "routes"))
    if not routes:
        raise UnreadableFileError("has no routes")
    ids = dict.fromkeys(entry.id for route in routes for entry in route.models.models)
    default = next((route for route in routes if route.name == _OTHER), None)
    if default is None:
        default = routes[0]
        lost.assumed(f"routes[{_OTHER}].models", f"those of {default.name} are the default")
    policy = Policy(name, routes, default.models)
    return Imported({each: model_of(each) for each in ids}, policy, tuple(lost.lines))


def _route(path: str, entry: dict[str, Any], lost: Lost) -> Route:
    lost.rest(path, entry, _KEYS)
    fallbacks = texts_of(entry.get("fallback_models", []), member(path, "fallback_models"))
    return Route(
        text_of(entry, "name", path),
        text_of(entry, "description", path),
        models_of([text_of(entry, "primary_model", path), *fallbacks]),
    )


def write(content: Imported) -> Exported:
    """A route file. Raises UnreadableFileError where it could not be read again."""
    if content.policy is None:
        raise UnreadableFileError("a route file needs a policy")
    if not content.policy.routes:
        raise UnreadableFileError(
            f"{content.policy.resource_name} has no routes, and a route file holds nothing else; "
            "give it one"
        )
    lost = Lost()
    catalog_losses(lost, content.catalog.values(), set())
    policy_losses(lost, content.policy)
    lost.key("default", f"chat-ui uses its route {_OTHER}")
    routes = []
    for route in content.policy.routes:
        route_losses(lost, f"routes[{route.name}]", route, several=True, preference=False)
        primary, *fallbacks = [entry.id for entry in route.models.models]
        written = (route.name, route.description, primary, fallbacks)
        routes.append(dict(zip(_KEYS, written, strict=True)))
    return Exported(json_text(routes, indent=2) + "\n", tuple(lost.lines))
