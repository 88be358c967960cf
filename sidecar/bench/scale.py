"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass

FULL_BUDGET_WORDS = 400
"""Words that no CPU's conversation budget has room for: cut to it."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of a run.

    Args:
        samples: calls of a row with one caller at a time.
        seconds: of a row by rate.
        fast_calls: calls of a row that does not ask the model.
        routes, words: the matrix.
        many: most policies of the Zipf rows.
    """

    samples: int
    seconds: float
    fast_calls: int
    routes: tuple[int, ...]
    words: tuple[int, ...]
    many: int

    @property
    def standard_routes(self) -> int:
        """20, or what comes nearest: of rows that are not of the matrix."""
        return min(self.routes, key=lambda routes: abs(routes - 20))

    @property
    def standard_words(self) -> int:
        """40, or what comes nearest."""
        return min(self.words, key=lambda words: abs(words - 40))

    @property
    def policy_counts(self) -> tuple[int, ...]:
        """Of the Zipf rows."""
        return (*(count for count in (1, 20, 200) if count < self.many), self.many)


FULL = Scale(100, 15, 5000, (6, 20, 40), (15, 40, 200, FULL_BUDGET_WORDS), 2000)
QUICK = Scale(6, 4, 500, (6, 20, 40), (15, 40, 200, FULL_BUDGET_WORDS), 24)
TINY = Scale(1, 0.25, 20, (6,), (15,), 3)
