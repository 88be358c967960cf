"""What the encoder decides by itself, before the language model is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cpu_engine.answers import FreeAnswer
from cpu_engine.decisions import Outcome
from cpu_engine.forward import Floats
from cpu_engine.requests import Asked, Opinion
from cpu_engine.second_opinion import SecondOpinion


class FirstLook:
    """The encoder's part of decisions. Not thread-safe.

    Args:
        second: None if the engine has no encoder; requests for its opinion get none.
    """

    def __init__(self, second: SecondOpinion | None) -> None:
        self._second = second

    def look(self, requests: Sequence[Asked]) -> Iterator[tuple[Asked, Outcome | Floats | None]]:
        """Every request, those whose routes are held first: what the encoder decided, or else its
        logits for the language model; None where it was not asked."""
        for asked, logits in self._opinions(requests):
            outcome = None if logits is None else _decided(asked, logits)
            yield asked, logits if outcome is None else outcome

    def _opinions(self, requests: Sequence[Asked]) -> Iterator[tuple[Asked, Floats | None]]:
        second = self._second
        wanted: list[tuple[Asked, Opinion]] = []
        routes: list[Opinion] = []
        for asked in requests:
            if second is None or asked.opinion is None or asked.is_cancelled():
                yield asked, None
            elif asked.opinion.has_request:
                wanted.append((asked, asked.opinion))
            else:
                routes.append(asked.opinion)
                yield asked, None
        if second is None:
            return
        # Routes that have to be read first take longer than many requests.
        held = [each for each in wanted if second.holds(each[1])]
        for some in (held, [each for each in wanted if each not in held]):
            given = second.opinions([opinion for _, opinion in some])
            yield from zip((asked for asked, _ in some), given, strict=True)
        for opinion in routes:
            second.keep(opinion)


def _decided(asked: Asked, logits: Floats) -> Outcome | None:
    """None if that is not enough and more is wanted."""
    opinion = asked.opinion
    if opinion is None or opinion.enough is None:
        return None
    if not (opinion.enough.reached(logits) or opinion.alone):
        return None
    return Outcome(FreeAnswer(asked.end_id, 0), 0, opinion=logits)
