"""How old the prices of the catalog are.

Providers change prices, and a catalog does not notice. An old price is used as any other: no model
is ever left out for its price. It is shown in metrics, in the log and by `sidecar policy lint`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime

from sidecar.core.policy import Model

MAX_AGE_DAYS = 180
"""List prices of a model have changed once or twice a year; what is cheapest changes with each new
model."""


@dataclass(frozen=True, slots=True)
class PriceAges:
    """Ids of models, in the order of the catalog.

    Args:
        unpriced: input or output price is unknown.
        undated: priced, but not as of which day.
        stale: priced as of a day that is longer ago than the limit.
        oldest: the first day as of which a model is priced; None if no price is dated.
    """

    unpriced: tuple[str, ...] = ()
    undated: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    oldest: date | None = None


def price_ages(models: Iterable[Model], today: date, max_age_days: int) -> PriceAges:
    """What is known of the models' prices today."""
    held = tuple(models)
    priced = [model for model in held if model.price is not None]
    dated = [(model.id, model.prices_as_of) for model in priced if model.prices_as_of is not None]
    return PriceAges(
        unpriced=tuple(model.id for model in held if model.price is None),
        undated=tuple(model.id for model in priced if model.prices_as_of is None),
        stale=tuple(id for id, day in dated if (today - day).days > max_age_days),
        oldest=min((day for _, day in dated), default=None),
    )


def today() -> date:
    """By UTC."""
    return datetime.now(UTC).date()
