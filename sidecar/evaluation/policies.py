"""How a case is put to the router: its routes as an inline policy, as they are or changed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidecar.core.policy import ModelList, Policy, Route, WeightedModel

if TYPE_CHECKING:
    from sidecar.evaluation.cases import Case

MODEL_ID = "evaluation/model"
"""Id of the one model that the routes name: evaluation is about routes."""


@dataclass(frozen=True, slots=True)
class CaseRoute:
    """A route of a case."""

    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Question:
    """A case as it is asked.

    Args:
        routes: as shown to the router, in this order.
        shown_as: name in the case -> name as shown, where they differ.
    """

    case: Case
    routes: tuple[CaseRoute, ...]
    shown_as: Mapping[str, str] = field(default_factory=dict)

    def original(self, name: str) -> str:
        """The case's own name of a route that was shown under another."""
        return next((own for own, shown in self.shown_as.items() if shown == name), name)


Presentation = Callable[["Case"], Question]


def plain(case: Case) -> Question:
    """The case as it is."""
    return Question(case, case.routes)


def shuffled(seed: int) -> Presentation:
    """Routes in a random order that differs from the case's; cases with the same routes get the
    same order, so that they still share a prefix."""

    def present(case: Case) -> Question:
        routes = list(case.routes)
        # Of the content, and not of the case, because of the prefix.
        rng = random.Random(f"{seed}:{case.routes!r}")  # noqa: S311
        while len(set(case.routes)) > 1 and routes == list(case.routes):
            rng.shuffle(routes)
        return Question(case, tuple(routes))

    return present


def opaque(case: Case) -> Question:
    """Names that say nothing, `route_1` and so on: the descriptions must be read."""
    names = {route.name: f"route_{number}" for number, route in enumerate(case.routes, 1)}
    routes = tuple(CaseRoute(names[route.name], route.description) for route in case.routes)
    return Question(case, routes, names)


def policy_of(routes: Iterable[CaseRoute], model_id: str = MODEL_ID) -> Policy:
    """An inline policy with `routes` in their order, all with one model."""
    models = ModelList((WeightedModel(model_id),))
    return Policy(
        name="evaluation",
        routes=tuple(Route(route.name, route.description, models) for route in routes),
        default=models,
    )
