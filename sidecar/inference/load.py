"""What a model server is working on, and how fast it works by measurement."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sidecar.core.model import AnswerForm, LabelAnswer, Prompt

PASS_TOKENS = 24
"""What a pass over the weights costs whatever it computes, in tokens of a prompt: on two CPU cores
one token took 38 ms and sixty 138 (`build/openvino/measure.py`)."""

_TEXT_PASSES = 8
"""Passes of a text answer: tokens of a route name and of what stands around it."""

_WINDOW = 32
"""Completions that count: enough to smooth a batch, few enough to follow a change of load."""

_FRESH_S = 30.0
"""Age after which a measurement says nothing any more."""


def work_of(prompt: Prompt, answer_form: AnswerForm, cold_tokens: int = 0) -> float:
    """Tokens that one inference costs, passes included.

    Args:
        cold_tokens: of the prefix that the server has to compute first.
    """
    passes = 1 if isinstance(answer_form, LabelAnswer) else _TEXT_PASSES
    return cold_tokens + len(prompt.suffix_ids) + PASS_TOKENS * passes


@dataclass(slots=True)
class Work:
    """Something in flight.

    Args:
        by_language_model: False once it is known that the language model had nothing to compute:
            its speed is not told by that, nor was it kept from anything else.
    """

    by_language_model: bool = True


class Load:
    """What one model server's language model is working on and the time a token of it takes.

    Measured is the time between completions while there is work in flight, which is right for a
    server that computes one request after the other and for one that computes many at once: there
    completions follow each other closely. No clock is read outside of `working` and `wait_s`.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._in_flight = 0
        self._tokens = 0.0
        # The time before has been counted, or is not to count.
        self._counted = -math.inf
        self._measured: deque[tuple[float, float, float]] = deque(maxlen=_WINDOW)

    @property
    def in_flight(self) -> int:
        """Calls that the server is working on."""
        return self._in_flight

    @contextmanager
    def working(self, tokens: float, measured: bool = True) -> Iterator[Work]:
        """Within the block the server works on `tokens`. What ends with an exception is not
        measured: its time counts to what was under way meanwhile, for the server may have spent it.

        Args:
            measured: False for what takes another time for a token than decisions do; its own does
                not count to what completes next.
        """
        work, began = Work(), self._clock()
        self._in_flight += 1
        self._tokens += tokens
        try:
            yield work
            if not work.by_language_model:
                return
            now = self._clock()
            if measured:
                self._measured.append((now, now - max(began, self._counted), tokens))
            self._counted = now
        finally:
            self._in_flight -= 1
            self._tokens -= tokens

    def late(self, began: float) -> None:
        """A decision was given up. If nothing has come since it began, that time counts: a server
        that became too slow for any would be judged by what it did before.

        Args:
            began: when the decision did, by the same clock.
        """
        now = self._clock()
        if began >= self._counted:
            self._measured.append((now, now - began, 0.0))
            self._counted = now

    def wait_s(self, tokens: float) -> float | None:
        """Seconds until further `tokens` would be computed, after all that is in flight; None if
        nothing was measured lately."""
        now = self._clock()
        while self._measured and now - self._measured[0][0] > _FRESH_S:
            self._measured.popleft()
        if not self._measured:
            return None
        seconds = sum(took for _, took, _ in self._measured)
        done = sum(tokens for _, _, tokens in self._measured)
        # Where nothing came, these alone would have taken as long at least.
        return (self._tokens + tokens) * seconds / (done or tokens)

    def forget(self) -> None:
        """Drop what was measured: the server is another one now, or was held up. Nor does the time
        until now count to what completes next."""
        self._measured.clear()
        self._counted = self._clock()
