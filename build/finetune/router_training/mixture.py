"""The stream of training draws: families by weight, each draw augmented and numbered."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Generic, Protocol, TypeVar

from router_training.augment import Rates, renamed, shuffled, with_conversation_moves
from router_training.cases import Case, Draw, RouteText, WrittenPolicy
from router_training.errors import InputError
from router_training.sources import FamilySource, Foreigners, Limits, Source, WrittenSource

log = logging.getLogger(__name__)

MEASURE_ONLY = frozenset({"t0"})
"""Families whose licence does not let them train a model that is shipped."""

WEIGHTS: Mapping[str, float] = {
    "written": 0.48,
    "assistant": 0.07,
    "clinc": 0.09,
    "sgd": 0.06,
    "metatool": 0.07,
    "bitext": 0.05,
    "general": 0.05,
    "multidogo": 0.05,
    "mix": 0.015,
    "medquad": 0.03,
    "stackoverflow": 0.03,
}
OWN_WEIGHT = 0.5
"""Share of a family that is none of ours: a user's own cases."""

_TRIES = 1000
"""Draws in a row that a model cannot read, after which no other is looked for."""

# MetaTool's queries for this game are requests of any kind, said in the game.
_UNANSWERABLE = {("metatool", "wordsneak")}


Encoded = TypeVar("Encoded")
Out = TypeVar("Out", covariant=True)


class DrawEncoder(Protocol[Out]):
    """What a model reads of a draw.

    Args:
        limit: what a draw that it cannot take is like, and what to do about it.
    """

    @property
    def limit(self) -> str: ...

    def encode(self, draw: Draw) -> Out | None:
        """None if it cannot take the draw."""
        ...


@dataclass(slots=True)
class Mixture(Generic[Encoded]):
    """Draw `number` depends on the seed and the number alone, so a run can be resumed."""

    sources: Sequence[Source]
    weights: Sequence[float]
    encoder: DrawEncoder[Encoded]
    seed: int
    rates: Rates = field(default_factory=Rates)
    pasted_texts: Sequence[str] = ()

    def draw(self, number: int) -> Encoded:
        """Raises InputError where none can be read."""
        rng = Random(f"{self.seed}:{number}")  # noqa: S311
        for _ in range(_TRIES):
            source = rng.choices(self.sources, self.weights)[0]
            draw = self._augmented(source.draw(rng), rng)
            encoded = self.encoder.encode(draw) if draw.requests else None
            if encoded is not None:
                return encoded
        raise InputError(f"of {_TRIES} draws none can be trained on: {self.encoder.limit}")

    def _augmented(self, draw: Draw, rng: Random) -> Draw:
        draw = shuffled(draw, rng)
        draw = with_conversation_moves(draw, rng, self.rates, self.pasted_texts)
        return renamed(draw, rng, self.rates)


def build_mixture(
    families: Mapping[str, Sequence[Case]],
    written: Sequence[WrittenPolicy],
    encoder: DrawEncoder[Encoded],
    seed: int,
    limits: Limits | None = None,
    weights: Mapping[str, float] | None = None,
) -> Mixture[Encoded]:
    """The stream over hand-written policies and families of cases (none of `MEASURE_ONLY`).

    Args:
        weights: of families, instead of those in `WEIGHTS`.

    Raises InputError if there is nothing to train on, and for weights of unknown families.
    """
    limits = limits or Limits()
    shares = {**WEIGHTS, **(weights or {})}
    foreigners = Foreigners.of(written)
    sources: list[Source] = [WrittenSource(written, foreigners, limits)] if written else []
    for name, cases in families.items():
        usable = [case for case in cases if not _unanswerable(case)]
        own = name not in WEIGHTS
        if own:
            usable = _readable(usable, encoder)
            if left_out := len(cases) - len(usable):
                log.warning(
                    "%d of %d cases of %s are left out: %s",
                    *(left_out, len(cases), name, encoder.limit),
                )
        if usable:
            sources.append(FamilySource(name, usable, foreigners, limits, own=own))
    if not sources and any(families.values()):
        raise InputError(f"no case can be trained on: {encoder.limit}")
    if not sources:
        raise InputError(
            "no cases to train on, but those held out or left out; name some with --cases or "
            "--written"
        )
    found = {source.name for source in sources}
    if unknown := sorted(shares.keys() - WEIGHTS.keys() - found):
        raise InputError(
            f"--weight: no cases of the family {', '.join(unknown)}; there are "
            f"{', '.join(sorted(found))}"
        )
    drawn = [shares.get(source.name, OWN_WEIGHT) for source in sources]
    if not any(drawn):
        raise InputError("--weight: every family's is 0")
    return Mixture(
        sources,
        drawn,
        encoder,
        seed,
        pasted_texts=_pasted_texts(written),
    )


def _readable(cases: Sequence[Case], encoder: DrawEncoder[Encoded]) -> list[Case]:
    """Those whose routes the model reads. A draw of others is drawn again: without end, if a user's
    own cases have no others."""
    reads: dict[tuple[RouteText, ...], bool] = {}
    for case in cases:
        if case.routes not in reads:
            draw = Draw(case.family, case.routes, (case.request,))
            reads[case.routes] = encoder.encode(draw) is not None
    return [case for case in cases if reads[case.routes]]


def _unanswerable(case: Case) -> bool:
    plain = case.label.replace("_", "").replace(" ", "").replace("-", "").lower()
    return (case.family, plain) in _UNANSWERABLE


def _pasted_texts(written: Sequence[WrittenPolicy]) -> list[str]:
    """Assistant turns and long requests: what people paste, and it may read like a request."""
    texts = [t for p in written for d in p.dialogues for role, t, _ in d if role == "assistant"]
    texts += [text for p in written for _, text in p.singles if len(text) > 160]
    return [text for text in texts if len(text) > 60]
