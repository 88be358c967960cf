"""How old prices are, and who hears of it. They never decide whether a model is used."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pytest
from structlog.testing import capture_logs

from sidecar.app_prices import PriceWatch
from sidecar.core.decision import Needs
from sidecar.core.policy import (
    Catalog,
    Model,
    ModelList,
    Policy,
    Preference,
    Route,
    WeightedModel,
    catalog_digest,
)
from sidecar.policies.days import parsed_day
from sidecar.policies.lint import lint
from sidecar.policies.prices import PriceAges, price_ages
from sidecar.routing.selection import select

TODAY = date(2026, 11, 26)
LIMIT = 90


def model(id: str, days: int | None = None, price: float | None = 1.0) -> Model:
    """With prices that are so many days old; None: it is not known how old."""
    day = None if days is None else TODAY - timedelta(days)
    return Model(id, f"{id}-1", input_price=price, output_price=price, prices_as_of=day)


AGES: dict[str, tuple[list[Model], PriceAges]] = {
    "no models": ([], PriceAges()),
    "no price": ([model("m", price=None)], PriceAges(unpriced=("m",))),
    "half a price": (
        [replace(model("m", 1000), output_price=None)],
        PriceAges(unpriced=("m",)),
    ),
    "no day": ([model("m")], PriceAges(undated=("m",))),
    "today": ([model("m", 0)], PriceAges(oldest=TODAY)),
    "at the limit": ([model("m", LIMIT)], PriceAges(oldest=TODAY - timedelta(LIMIT))),
    "beyond it": (
        [model("m", LIMIT + 1)],
        PriceAges(stale=("m",), oldest=TODAY - timedelta(LIMIT + 1)),
    ),
    "tomorrow, where the day has begun": (
        [model("m", -1)],
        PriceAges(oldest=TODAY + timedelta(1)),
    ),
    "several": (
        [model("old", 500), model("none", price=None), model("new", 1), model("undated")],
        PriceAges(("none",), ("undated",), ("old",), TODAY - timedelta(500)),
    ),
}


@pytest.mark.parametrize(("models", "expected"), AGES.values(), ids=AGES.keys())
def test_ages(models: list[Model], expected: PriceAges) -> None:
    assert price_ages(models, TODAY, LIMIT) == expected


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2026-08-21", date(2026, 8, 21)),
        ("2024-02-29", date(2024, 2, 29)),
        ("2026-02-29", None),
        ("20260821", None),
        ("2026-W34-5", None),
        ("2026-8-21", None),
        ("2026-08-21T00:00", None),
        ("٢٠٢٦-٠٨-٢١", None),
        ("", None),
    ],
)
def test_days_are_written_in_one_way(text: str, day: date | None) -> None:
    assert parsed_day(text) == day


CHEAPEST = ModelList(tuple(map(WeightedModel, ("dear", "old", "new"))), Preference.CHEAPEST)
CATALOG: Catalog = {
    "dear": model("dear", price=9.0),
    "old": model("old", 5000, price=1.0),
    "new": model("new", 1, price=5.0),
}


def test_old_prices_count_as_any_others() -> None:
    selection = select(CHEAPEST, CATALOG, Needs(), None, "")

    assert [each.id for each in selection.models] == ["old", "new", "dear"]
    assert selection.excluded == ()


def test_catalog_without_days_keeps_its_digest() -> None:
    """That of the version before there were any."""
    undated = {id: replace(each, prices_as_of=None) for id, each in CATALOG.items()}

    assert catalog_digest({"m": Model("m", "m-1")}) == (
        "sha256:30fe903a8717fb8ed072977ac52394b9b84a8f27bb5817bbf33eb8500f6a8c11"
    )
    assert len({catalog_digest(undated), catalog_digest(CATALOG)}) == 2


def a_policy(preference: Preference) -> Policy:
    models = replace(CHEAPEST, preference=preference)
    route = Route("r", "Questions of any kind.", models, examples=("Why?",))
    return Policy("p", (route,), ModelList((WeightedModel("new"),)))


OLD = '"old": priced as of more than 90 days ago'
UNDATED = '"dear": `cheapest` goes by prices of which the catalog does not say as of which day'

AHEAD = '"new": priced as of a day that is yet to come'


@pytest.mark.parametrize(
    ("preference", "today", "said"),
    [
        (Preference.CHEAPEST, TODAY, [OLD, UNDATED]),
        (Preference.DECLARED, TODAY, [OLD]),
        (Preference.CHEAPEST, date(2013, 5, 1), [UNDATED, AHEAD]),
        (Preference.CHEAPEST, None, []),
    ],
)
def test_lint_tells_of_prices(preference: Preference, today: date | None, said: list[str]) -> None:
    findings = lint(a_policy(preference), CATALOG, today, LIMIT)

    assert [each.message.partition(";")[0] for each in findings] == said


def test_log_tells_once_of_prices_that_have_become_old() -> None:
    catalog, today = {"m": model("m", LIMIT)}, TODAY
    watch = PriceWatch(lambda: catalog, LIMIT, lambda: today)

    def told() -> list[tuple[object, object]]:
        with capture_logs() as entries:
            watch.look()
            watch.look()
        return [(each["such_as"], each["log_level"]) for each in entries]

    assert told() == []
    today += timedelta(1)
    assert told() == [(["m"], "warning")]
    catalog = {**catalog, "n": model("n", LIMIT + 7)}
    assert told() == [(["m", "n"], "warning")]
    catalog = {"m": model("m", 0)}
    assert told() == []
