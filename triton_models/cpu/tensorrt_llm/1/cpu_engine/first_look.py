"""What the encoder decides by itself, before the language model is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from cpu_engine.answers import FreeAnswer
from cpu_engine.decisions import Outcome
from cpu_engine.errors import CancelledError
from cpu_engine.forward import Floats
from cpu_engine.requests import Asked, Opinion
from cpu_engine.route_reader import Reader, RouteReader
from cpu_engine.second_opinion import SecondOpinion

Seen = Outcome | Floats | None
"""What the encoder decided, or else its logits for the language model; None where it was not
asked."""


class FirstLook:
    """The encoder's part of decisions.

    Args:
        second: None if the engine has no encoder; requests for its opinion get none.
        later: told what `look` does not give, once a request, on another thread.
        failed: told what `later` raised.
    """

    def __init__(
        self,
        second: SecondOpinion | None,
        later: Callable[[Asked, Seen | Exception], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._second = second
        self._later = later
        self._reader = RouteReader(second, failed) if second is not None else None

    def close(self) -> None:
        """Whatever waits for routes is refused."""
        if self._reader is not None:
            self._reader.close()

    def look(self, requests: Sequence[Asked]) -> Iterator[tuple[Asked, Seen | CancelledError]]:
        """Those that do not wait for routes to be read; not for two threads."""
        second, reader = self._second, self._reader
        wanted: list[tuple[Asked, Opinion]] = []
        to_be_read: list[tuple[Asked, Opinion]] = []
        for asked in requests:
            opinion = asked.opinion
            if second is None or opinion is None:
                yield asked, None
            elif asked.is_cancelled():
                yield asked, CancelledError()
            elif not second.holds(opinion.routes):
                to_be_read.append((asked, opinion))
            elif opinion.has_request:
                wanted.append((asked, opinion))
            else:
                yield asked, None
        if second is None or reader is None:
            return
        given = second.opinions([opinion for _, opinion in wanted])
        for (asked, _), logits in zip(wanted, given, strict=True):
            yield asked, _seen(asked, logits)
        for asked, opinion in to_be_read:
            reader.put(Reader(opinion, asked.is_cancelled, partial(self._have_read, asked)))

    def _have_read(self, asked: Asked, given: Floats | Exception | None) -> None:
        self._later(asked, _seen(asked, given) if isinstance(given, np.ndarray) else given)


def _seen(asked: Asked, logits: Floats) -> Outcome | Floats:
    opinion = asked.opinion
    if opinion is None or opinion.enough is None:
        return logits
    if opinion.enough.reached(logits) or opinion.alone:
        return Outcome(FreeAnswer(asked.end_id, 0), 0, opinion=logits)
    return logits
