"""What is doubtful about a policy beyond its rules.

Wording is compared by its words here; whether the routing model can tell two routes apart is for
the routing model to say (`sidecar.policies.overlaps`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import date, timedelta

from sidecar.core.policy import Capability, Catalog, Model, ModelList, Policy, Preference
from sidecar.policies.examples import ExampleResult
from sidecar.policies.findings import Finding, item, member, quoted, warning
from sidecar.policies.prices import MAX_AGE_DAYS, PriceAges, price_ages
from sidecar.policies.rules import limited

_ALIKE = 0.6
"""Share of common words from which two descriptions count as alike."""

_MIN_WORDS = 4
_SHOWN = 5
"""Names in one finding."""

_COMMON = frozenset(
    """a an and any about are as at be by for from how in into is it its of on or that the their
    them this to user users what when which who with without you your""".split()  # noqa: SIM905
)
"""Words that say nothing about what a route is for."""


def lint(
    policy: Policy,
    catalog: Catalog,
    today: date | None = None,
    max_price_age_days: int = MAX_AGE_DAYS,
) -> tuple[Finding, ...]:
    """What is doubtful, as far as it can be seen without a routing model; the first
    `MAX_FINDINGS`, since each of hundreds of routes can be like every other.

    Args:
        today: to tell how old prices are; None: that is left out.
    """
    return limited(_lint(policy, catalog, today, max_price_age_days))


def _lint(
    policy: Policy, catalog: Catalog, today: date | None, max_price_age_days: int
) -> Iterator[Finding]:
    """First those of which there can be but few."""
    named = [catalog[id] for id in _named(policy) if id in catalog]
    yield from _unplaced(policy, catalog)
    yield from _untested(policy)
    if today is not None:
        ages = price_ages(named, today, max_price_age_days)
        yield from _dated(policy, ages, max_price_age_days)
        yield from _ahead(named, today)
    yield from _lacking("default", policy.default, catalog)
    for index, route in enumerate(policy.routes):
        yield from _lacking(item("routes", index), route.models, catalog)
        if route.domain == "" and route.min_confidence and policy.actions_of(route.name):
            yield from _unreachable_domain(policy, index)
    yield from _alike(policy)


def _alike(policy: Policy) -> Iterator[Finding]:
    words = [_words(route.description) for route in policy.routes]
    for later, route in enumerate(policy.routes):
        for earlier in range(later):
            other = policy.routes[earlier]
            if route.domain == other.name or other.domain == route.name:
                continue  # A domain describes what its actions do.
            share = _share(words[earlier], words[later])
            if share >= _ALIKE:
                yield warning(
                    member(item("routes", later), "description"),
                    f"has {share:.0%} of its words in common with that of {quoted(other.name)} "
                    f"({item('routes', earlier)}); say in each what makes it this one",
                )


def _words(text: str) -> frozenset[str]:
    # An accent by itself would end a word.
    composed = unicodedata.normalize("NFC", text.casefold())
    return frozenset(re.findall(r"\w+", composed)) - _COMMON


def _share(one: frozenset[str], other: frozenset[str]) -> float:
    if min(len(one), len(other)) < _MIN_WORDS:
        return 0.0
    return len(one & other) / len(one | other)


def _unplaced(policy: Policy, catalog: Catalog) -> Iterator[Finding]:
    """Without any cluster there is no Envoy, or one with a single provider."""
    placed = [model for model in catalog.values() if model.cluster]
    unplaced = [id for id in _named(policy) if id in catalog and not catalog[id].cluster]
    if placed and unplaced:
        yield warning(
            "",
            f"{_some(unplaced)}: no cluster in the catalog, while {quoted(placed[0].id)} has "
            f"{quoted(placed[0].cluster)}; Envoy sends requests for what has none to its default "
            "provider, so put the provider's into the catalog's `cluster`",
        )


def _dated(policy: Policy, ages: PriceAges, max_age_days: int) -> Iterator[Finding]:
    if ages.stale:
        yield warning(
            "",
            f"{_some(ages.stale)}: priced as of more than {max_age_days} days ago; look the prices "
            "up and put the day into the catalog's prices.as_of",
        )
    by_price = [
        entry.id
        for models in _lists(policy)
        if models.preference is Preference.CHEAPEST and len(models.models) > 1
        for entry in models.models
    ]
    undated = [id for id in ages.undated if id in by_price]
    if undated:
        yield warning(
            "",
            f"{_some(undated)}: `cheapest` goes by prices of which the catalog does not say as of "
            "which day; put it into prices.as_of",
        )


def _ahead(models: Sequence[Model], today: date) -> Iterator[Finding]:
    """Such prices would not be taken for old in time. It is tomorrow already in some places."""
    tomorrow = today + timedelta(days=1)
    ahead = [each.id for each in models if each.prices_as_of and each.prices_as_of > tomorrow]
    if ahead:
        yield warning(
            "",
            f"{_some(ahead)}: priced as of a day that is yet to come; put the day on which the "
            "prices were looked up into the catalog's prices.as_of",
        )


def _lists(policy: Policy) -> Iterator[ModelList]:
    yield policy.default
    yield from (route.models for route in policy.routes)


def _named(policy: Policy) -> list[str]:
    """Ids of its models, each once."""
    return list(dict.fromkeys(entry.id for models in _lists(policy) for entry in models.models))


def _untested(policy: Policy) -> Iterator[Finding]:
    untested = [route.name for route in policy.routes if not route.examples]
    if untested:
        yield warning(
            "routes",
            f"{_some(untested)}: no examples, so nothing tests that requests reach what has none",
        )


def _some(names: Sequence[str]) -> str:
    """The first of them, and how many more."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(quoted, names[:_SHOWN])) + more


def _lacking(owner: str, models: ModelList, catalog: Catalog) -> Iterator[Finding]:
    known = [catalog[entry.id] for entry in models.models if entry.id in catalog]
    able: set[Capability] = set().union(*(model.capabilities for model in known))
    for index, model in enumerate(known):
        lacking = able - model.capabilities
        if lacking:
            names = ", ".join(sorted(each.value for each in lacking))
            yield warning(
                item(member(owner, "models"), index),
                f"{quoted(model.id)} lacks {names}, which others of the list have: requests that "
                "need it pass it over",
            )


def _unreachable_domain(policy: Policy, index: int) -> Iterator[Finding]:
    """A domain takes what none of its actions is sure enough of."""
    domain = policy.routes[index]
    actions = policy.actions_of(domain.name)
    if all(action.min_confidence == 0 for action in actions):
        yield warning(
            member(item("routes", index), "min_confidence"),
            f"no action of {quoted(domain.name)} has a minimum confidence, so the domain takes "
            "only what the routing model names it for; give the actions one to have unsure "
            "requests fall to their domain",
        )


def crowded(prefix_tokens: int, max_prompt_tokens: int) -> tuple[Finding, ...]:
    """Routes that take more than half of what a prompt may have, in tokens of a routing model."""
    if 2 * prefix_tokens <= max_prompt_tokens:
        return ()
    return (
        warning(
            "routes",
            f"take {prefix_tokens} of the {max_prompt_tokens} tokens that a prompt may have with "
            "this routing model, and conversations are cut to the rest; shorten descriptions, or "
            "split the policy by the kind of caller",
        ),
    )


def unreached(policy: Policy, results: Sequence[ExampleResult]) -> tuple[Finding, ...]:
    """Routes that no example reached, and examples that another route took."""
    reached = {result.route for result in results if result.decided}
    found = [
        warning(result.example.path, f"{result.said}")
        for result in results
        if result.decided and not result.passed
    ]
    found += [
        warning(item("routes", index), f"no example reaches {quoted(route.name)}")
        for index, route in enumerate(policy.routes)
        if route.examples and route.name not in reached
    ]
    return tuple(found)
