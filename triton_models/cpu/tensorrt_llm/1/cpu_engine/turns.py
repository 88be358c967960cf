"""The language model's thread: what waits for it, and whose turn is next.

Requests are handed over by the thread that Triton calls, which is then free to ask the encoder
about the next ones: what that decides waits for no pass of the language model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from cpu_engine.decisions import Outcome, Result, Undecided
from cpu_engine.errors import CancelledError, UnavailableError, failure_of
from cpu_engine.requests import Asked


class LanguageModel(Protocol):
    """See `Decider`."""

    def decide(self, requests: Sequence[Undecided]) -> Iterator[Result]: ...


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """Args:
    waiting: requests that may wait; 0: any number.
    tokens: of one turn beyond the prefix; a request with more has a turn of its own.
    """

    waiting: int
    tokens: int


class Turns:
    """Has `model` decide on a thread of its own. A turn is one policy's requests, that of the one
    that waits longest, as many as one pass takes.

    Args:
        answer: told each result, once a request, on that thread.
        failed: told what one of the others raised; a turn's requests are then refused.
        waiting: told how many wait whenever that changes, on either thread, one at a time.
    """

    def __init__(
        self,
        model: LanguageModel,
        limits: TurnLimits,
        answer: Callable[[Result], None],
        failed: Callable[[Exception], None],
        waiting: Callable[[int], None],
    ) -> None:
        self._model = model
        self._limits = limits
        self._answer = answer
        self._failed = failed
        self._tell_waiting = waiting
        self._waiting: list[tuple[bytes, Undecided]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="language-model", daemon=True)
        self._thread.start()

    def put(self, undecided: Undecided) -> None:
        """Raises UnavailableError."""
        with self._changed:
            gone = self._take_out_gone()
            full = self._is_full
            if not full:
                self._waiting.append((undecided.asked.prefix.tobytes(), undecided))
                self._changed.notify()
            if gone or not full:
                self._tell()
        for each in gone:
            self._give(each.asked, CancelledError())
        if full:
            raise UnavailableError(f"Exceeds maximum queue size of {self._limits.waiting}")

    def close(self) -> None:
        """Ends after the turn under way; what waits is refused."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for _, undecided in self._waiting:
            self._give(undecided.asked, UnavailableError("the model is being unloaded"))

    @property
    def _is_full(self) -> bool:
        return 0 < self._limits.waiting <= len(self._waiting)

    def _take_out_gone(self) -> list[Undecided]:
        """Those whose callers have gone. Triton has to be asked about each, so only the first ones
        are looked at, who have waited longest, and all where there is no room else."""
        waiting = [each for _, each in self._waiting]
        gone = list(takewhile(_has_gone, waiting))
        if self._is_full and not gone:
            gone = list(filter(_has_gone, waiting))
        if gone:
            self._waiting = [each for each in self._waiting if each[1] not in gone]
        return gone

    def _run(self) -> None:
        while turn := self._next():
            self._decide(turn)

    def _next(self) -> list[Undecided]:
        """Nothing after the last turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return []
            policy = self._waiting[0][0]
            turn: list[Undecided] = []
            others: list[tuple[bytes, Undecided]] = []
            room = self._limits.tokens
            for prefix, undecided in self._waiting:
                tokens = len(undecided.asked.suffix)
                if prefix == policy and (not turn or tokens <= room):
                    turn.append(undecided)
                    room -= tokens
                else:
                    others.append((prefix, undecided))
            self._waiting = others
            self._tell()
        return turn

    def _tell(self) -> None:
        try:
            self._tell_waiting(len(self._waiting))
        except Exception as error:  # it would end the thread, or leave it asleep
            self._failed(error)

    def _decide(self, turn: Sequence[Undecided]) -> None:
        left: dict[int, Asked] = {id(each.asked): each.asked for each in turn}
        try:
            for asked, result in self._model.decide(turn):
                del left[id(asked)]
                self._give(asked, result)
        except Exception as error:  # one answer for every request, whatever happens
            self._failed(error)
            for asked in left.values():
                self._give(asked, failure_of(error))

    def _give(self, asked: Asked, result: Outcome | Exception) -> None:
        try:
            self._answer((asked, result))
        except Exception as error:  # it is one caller's; the others wait for theirs
            self._failed(error)


def _has_gone(undecided: Undecided) -> bool:
    return undecided.asked.is_cancelled()
