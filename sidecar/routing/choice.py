"""From the routing model's answer to a route of the policy."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core.decision import Candidate, Reason
from sidecar.core.model import Answer
from sidecar.core.policy import OTHER, Policy, Route


@dataclass(frozen=True, slots=True)
class Choice:
    """The route an answer leads to.

    Args:
        route: None: the policy's default.
        confidence: probability of the route, or of `other`; None if the answer gives none.
        candidates: most probable first, domains summed with their actions.
        detail: one sentence for a person.
    """

    route: Route | None
    reason: Reason
    detail: str
    confidence: float | None = None
    candidates: tuple[Candidate, ...] = ()


def choose(answer: Answer, policy: Policy, min_confidence: float = 0.0) -> Choice:
    """The most probable domain or free-standing route, and within a domain its best action.

    Deciding from the coarse to the fine keeps a request in its domain when its actions share the
    probability between them, each less than a single unrelated route has. Without domains it is
    the route the model named. An action below its minimum confidence falls to its domain, a
    domain or free-standing route below its own to the default.

    Args:
        min_confidence: raises the minimum of every route; in 0..1.
    """
    if answer.problem is not None:
        return Choice(None, answer.problem, _PROBLEMS[answer.problem])
    own = dict(answer.candidates)
    domains = {route.name: route.domain for route in policy.routes if route.domain}
    summed = _summed(domains, own)
    candidates = answer.candidates
    if summed is not own:
        candidates = tuple(
            Candidate(name, p) for name, p in sorted(summed.items(), key=lambda item: -item[1])
        )
    name = _best(answer.name, domains, own, summed)
    if name == OTHER:
        detail = "No route fits, or the request is finished."
        return Choice(None, Reason.NO_MATCH, detail, own.get(OTHER), candidates)
    return _accept(name, policy, min_confidence, own, summed, candidates)


_PROBLEMS = {
    Reason.UNPARSABLE_ANSWER: "The routing model's answer could not be read.",
    Reason.UNKNOWN_ROUTE: "The routing model named a route that the policy does not have.",
}


def _summed(domains: dict[str, str], own: dict[str, float]) -> dict[str, float]:
    """Each candidate's probability and, for a domain, its actions'; `own` where there is none.

    Args:
        domains: of the actions, by their names.
    """
    actions = [name for name, domain in domains.items() if domain in own]
    if not actions:
        return own
    summed = dict(own)
    for name in actions:
        # Sums of what was rounded can be more than 1, by the last digit.
        summed[domains[name]] = min(summed[domains[name]] + own.get(name, 0.0), 1.0)
    return summed


def _best(
    named: str, domains: dict[str, str], own: dict[str, float], summed: dict[str, float]
) -> str:
    if len(own) < 2:
        # The answer form gives the chosen route alone: nothing to compare.
        return named
    tops = [name for name in own if name not in domains]
    # max() keeps the first of equals; the model's own order of candidates breaks ties.
    top = max(tops, key=summed.__getitem__)
    actions = [name for name, domain in domains.items() if domain == top and name in own]
    return max([top, *actions], key=own.__getitem__)


def _accept(
    name: str,
    policy: Policy,
    min_confidence: float,
    own: dict[str, float],
    summed: dict[str, float],
    candidates: tuple[Candidate, ...],
) -> Choice:
    route = policy.route(name)
    if route is None:
        unknown = Reason.UNKNOWN_ROUTE
        return Choice(None, unknown, _PROBLEMS[unknown], None, candidates)
    confidence = (own if route.domain else summed).get(name)
    needed = max(route.min_confidence, min_confidence)
    if _reaches(confidence, needed):
        detail = f"The routing model chose {route.name}{_percent(confidence)}."
        return Choice(route, Reason.MATCHED, detail, confidence, candidates)
    domain = policy.route(route.domain)
    if domain is not None and _reaches(
        summed.get(domain.name), max(domain.min_confidence, min_confidence)
    ):
        detail = (
            f"{route.name}{_short_of(confidence, needed)}; "
            f"its domain {domain.name} takes the request."
        )
        return Choice(domain, Reason.DOMAIN, detail, summed.get(domain.name), candidates)
    detail = f"{route.name}{_short_of(confidence, needed)}."
    return Choice(None, Reason.LOW_CONFIDENCE, detail, confidence, candidates)


def _reaches(confidence: float | None, needed: float) -> bool:
    if confidence is None:
        # Nothing shows that the minimum is reached.
        return needed == 0.0
    return confidence >= needed


def _percent(confidence: float | None, places: int = 0) -> str:
    return "" if confidence is None else f" ({confidence:.{places}%})"


def _short_of(confidence: float | None, needed: float) -> str:
    """In as many digits as tell the two apart."""
    places = 0
    if confidence is not None:
        while places < 3 and f"{confidence:.{places}%}" == f"{needed:.{places}%}":
            places += 1
    return f"{_percent(confidence, places)} is below its minimum of {needed:.{places}%}"
