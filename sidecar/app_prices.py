"""The catalog's prices of a sidecar, watched as they grow old: part of the composition root."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date

import structlog

from sidecar.core.policy import Catalog
from sidecar.policies.prices import PriceAges, price_ages, today

_log = structlog.get_logger(__name__)

_LOOK_S = 60.0
_SHOWN = 5
"""Models that an entry of the log names."""


class PriceWatch:
    """Says once that prices have become too old, and again when it is those of other models.

    Args:
        catalog: the one in force.
        day: today.
    """

    def __init__(
        self,
        catalog: Callable[[], Catalog],
        max_age_days: int,
        day: Callable[[], date] = today,
    ) -> None:
        self._catalog = catalog
        self._max_age_days = max_age_days
        self._day = day
        self._said: tuple[str, ...] = ()

    def ages(self) -> PriceAges:
        """Now."""
        return price_ages(self._catalog().values(), self._day(), self._max_age_days)

    def look(self) -> None:
        """Logs what has changed since the last look."""
        ages = self.ages()
        if ages.stale and ages.stale != self._said:
            _log.warning(
                "prices of models are old, and `cheapest` goes by them; look them up and put the "
                "day into the catalog's prices.as_of",
                models=len(ages.stale),
                such_as=list(ages.stale[:_SHOWN]),
                oldest=str(ages.oldest),
                max_age_days=self._max_age_days,
            )
        self._said = ages.stale

    async def follow(self) -> None:
        """Looks until it is cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_S)
