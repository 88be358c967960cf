"""What Istio makes of an EnvoyFilter: its patches applied to an Envoy configuration.

Written from istio/istio, pilot/pkg/networking/core/envoyfilter, for the patches that the shipped
manifest has; it says nothing of how Istio selects proxies and listeners.
"""

from __future__ import annotations

import json
from typing import Any

ROUTER = "envoy.filters.http.router"


def patched(config: str, envoy_filter: Any, listener: str) -> str:
    """The configuration (JSON) with the patches applied to the listener of that name.

    Raises:
        ValueError: a kind of patch that this does not know, or a route that is not there.
    """
    made = json.loads(config)
    resources = made["static_resources"]
    (at,) = (each for each in resources["listeners"] if each["name"] == listener)
    for each in envoy_filter["spec"]["configPatches"]:
        apply_to, patch = each["applyTo"], each["patch"]
        # Of its own: patched further below.
        value = json.loads(json.dumps(patch["value"]))
        match apply_to, patch["operation"]:
            case "CLUSTER", "ADD":
                resources["clusters"].append(value)
            case "LISTENER", "MERGE":
                at.update(value)
            case "NETWORK_FILTER", "MERGE":
                _merge(_manager(at), value["typed_config"])
            case "HTTP_FILTER", "INSERT_BEFORE":
                filters = _manager(at)["http_filters"]
                name = each["match"]["listener"]["filterChain"]["filter"]["subFilter"]["name"]
                filters.insert([one["name"] for one in filters].index(name), value)
            case "HTTP_ROUTE", "MERGE":
                name = each["match"]["routeConfiguration"]["vhost"]["route"]["name"]
                _route(at, name).update(value)
            case kind:
                raise ValueError(f"{kind} is not known here")
    return json.dumps(made)


def routes(virtual_service: Any, clusters: dict[str, str]) -> list[dict[str, Any]]:
    """Envoy's routes for those of a VirtualService.

    Args:
        clusters: host of a destination -> cluster.
    """
    return [
        {
            "name": each.get("name", "default"),
            "match": _match(each.get("match", [{}])[0]),
            "route": {
                "cluster": clusters[each["route"][0]["destination"]["host"]],
                "timeout": "30s",
            },
        }
        for each in virtual_service["spec"]["http"]
    ]


def _match(match: Any) -> dict[str, Any]:
    headers = {**match.get("headers", {})}
    if "authority" in match:
        headers[":authority"] = match["authority"]
    path = {"prefix": "/"}
    if "uri" in match:
        path = {"safe_regex": {"regex": match["uri"]["regex"]}}  # type: ignore[dict-item]
    return path | {
        "headers": [
            {"name": name, "string_match": {"exact": value["exact"]}}
            for name, value in headers.items()
        ]
    }


def _merge(into: Any, value: Any) -> None:
    """As protobuf's messages are merged: field by field, lists at the end of what is there."""
    for name, each in value.items():
        if isinstance(each, dict) and name in into:
            _merge(into[name], each)
        elif isinstance(each, list):
            into[name] = [*into.get(name, ()), *each]
        else:
            into[name] = each


def _manager(listener: Any) -> Any:
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def _route(listener: Any, name: str) -> Any:
    for host in _manager(listener)["route_config"]["virtual_hosts"]:
        for route in host["routes"]:
            if route.get("name") == name:
                return route
    raise ValueError(f"there is no route {name!r}")
