"""Which policies, routes and models have labels of their own."""

from __future__ import annotations

from collections.abc import Container

OTHER = "_other"
"""The label of what has none of its own. A policy's name begins with `namespaces/`."""

MAX_POLICY_LABELS = 2000
MAX_MODEL_LABELS = 1024


class PolicyLabels:
    """Bounds the pairs of a policy and one of its routes that are told apart.

    Each pair stays in memory and on the metrics page: thousands of policies of dozens of routes
    each, renamed now and then, would fill both, and the database of who collects the page. The
    first to come have their own labels until their policy is forgotten.

    Args:
        most: pairs; a policy also has one without a route.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._routes: dict[str, set[str]] = {}

    def of(self, policy: str, route: str) -> tuple[str, str]:
        """The labels of both: their own, `_other` for the route, or `_other` and none."""
        routes = self._routes.get(policy)
        if routes is None:
            if self._count >= self._most:
                return OTHER, ""
            routes = self._routes[policy] = set()
        if route not in routes:
            if self._count >= self._most:
                return policy, OTHER
            routes.add(route)
            self._count += 1
        return policy, route

    def forget(self, kept: Container[str]) -> frozenset[str]:
        """Makes room: policies that are not `kept`, which are returned."""
        gone = frozenset(policy for policy in self._routes if policy not in kept)
        for policy in gone:
            self._count -= len(self._routes.pop(policy))
        return gone


class ModelLabels:
    """Bounds the models that are told apart. They come from the catalog, which can be replaced
    again and again; the first to be chosen keep their labels.

    Args:
        most: models.
    """

    def __init__(self, most: int = MAX_MODEL_LABELS) -> None:
        self._most = most
        self._models: set[str] = set()

    def of(self, model: str) -> str:
        """The label of a model's id: its own, or `_other`."""
        if model not in self._models:
            if len(self._models) >= self._most:
                return OTHER
            self._models.add(model)
        return model
