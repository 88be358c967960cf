"""Policies that a model server answers with an error, whoever asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_FIRST_S, _LONGEST_S = 1.0, 60.0
"""How long one is not asked for again: twice as long after every further error."""

_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class _Refusal:
    why: str
    until: float
    pause_s: float


class Refused:
    """What a server said of the prefixes that it would not compute, by digest of the policy.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._refusals: dict[str, _Refusal] = {}

    def why(self, digest: str) -> str:
        """What the server said last; empty if it said nothing, or should be asked again."""
        refusal = self._refusals.get(digest)
        return refusal.why if refusal is not None and self._clock() < refusal.until else ""

    def add(self, digest: str, why: str) -> None:
        last = self._refusals.pop(digest, None)
        pause_s = _FIRST_S if last is None else min(last.pause_s * 2, _LONGEST_S)
        self._refusals[digest] = _Refusal(why, self._clock() + pause_s, pause_s)
        if len(self._refusals) > _REMEMBERED:
            del self._refusals[next(iter(self._refusals))]

    def forget(self, digest: str) -> None:
        """The server has computed it."""
        self._refusals.pop(digest, None)

    def clear(self) -> None:
        """The server is another one now."""
        self._refusals.clear()
