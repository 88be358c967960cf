"""How a policy's next revision is warmed while decisions go on. The model is a stub that counts."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.routing import Warmth
from tests.doubles import StubModel
from tests.routing.warming import POLICIES, long_policy, settle
from tests.waiting import until


def between_decisions(
    busy: Callable[[], bool], patience_s: float, clock: Callable[[], float] = lambda: 0.0
) -> Warmth:
    warm = Warmth(
        list,
        timeout_s=10,
        busy=busy,
        piece_tokens=100,
        gap_tokens=10,
        patience_s=patience_s,
        clock=clock,
    )
    warm.is_warm(POLICIES["default"])
    return warm


async def test_next_revision_is_computed_in_small_pieces_from_where_it_differs() -> None:
    warm, model = between_decisions(lambda: False, patience_s=1), StubModel()
    warm.succeed(long_policy(45), model, present=(*range(12), -1, *range(13, 45)))
    await settle()

    assert [len(ids) for ids in model.warmed] == [22, 32, 42, 45]
    assert warm.holds("long")


async def test_next_revision_that_another_begins_with_is_computed_as_a_whole() -> None:
    """What is held is longer, and is not what decisions will ask for."""
    warm, model = between_decisions(lambda: False, patience_s=1), StubModel()
    warm.succeed(long_policy(45), model, present=tuple(range(60)))
    await settle()

    assert [len(ids) for ids in model.warmed] == [45]


async def test_next_revision_waits_for_gaps_between_decisions() -> None:
    busy = True
    warm, model = between_decisions(lambda: busy, patience_s=60), StubModel()
    warm.succeed(long_policy(25), model)
    await settle()
    while_busy = list(model.warmed)
    busy = False
    await until(lambda: warm.holds("long"))

    assert while_busy == []
    assert [len(ids) for ids in model.warmed] == [10, 20, 25]


async def test_next_revision_comes_also_where_there_is_no_gap() -> None:
    warm, model = between_decisions(lambda: True, patience_s=0.01), StubModel()
    warm.succeed(long_policy(25), model)
    await until(lambda: warm.holds("long"))

    assert [len(ids) for ids in model.warmed] == [10, 20, 25]


async def test_next_revision_comes_in_larger_pieces_when_nobody_asks_any_more() -> None:
    now = 0.0
    warm, model = between_decisions(lambda: False, 1, lambda: now), StubModel()
    now = 5.0
    warm.succeed(long_policy(250), model)
    await settle()

    assert [len(ids) for ids in model.warmed] == [100, 200, 250]


async def test_patience_that_one_piece_does_not_use_is_left_to_the_others() -> None:
    looks = 0

    def busy() -> bool:
        nonlocal looks
        looks += 1
        return 1 < looks < 10

    # Of 5 ms each: nine are more than the patience of one piece.
    warm, model = between_decisions(busy, patience_s=0.02), StubModel()
    seen: list[int] = []

    async def noting(prefix_ids: object, timeout_s: float, routes: object = ()) -> None:
        seen.append(looks)

    model.warm = noting  # type: ignore[method-assign]
    warm.succeed(long_policy(25), model)
    await until(lambda: warm.holds("long"))

    assert seen == [1, 10, 11]


async def test_next_revision_that_is_abandoned_is_not_computed() -> None:
    busy = True
    warm, model = between_decisions(lambda: busy, patience_s=60), StubModel()
    warm.succeed(long_policy(25), model)
    await settle()
    warm.abandon(long_policy(25))
    busy = False
    await until(lambda: not warm.under_way)

    assert model.warmed == []
    assert not warm.holds("long")
