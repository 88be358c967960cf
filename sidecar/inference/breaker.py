"""When to stop asking a model server, as a state machine without clock or I/O."""

from __future__ import annotations

from enum import Enum

from sidecar.core.model import InferenceFailure


class BreakerState(Enum):
    """`OPEN`: calls are answered at once, without asking. `RECOVERING`: the server is back and
    computes the policies' prefixes; callers wait for its encoder alone. `CLOSED`: calls go through.
    """

    CLOSED = "closed"
    OPEN = "open"
    RECOVERING = "recovering"


_ANSWERED = frozenset({InferenceFailure.OVERLOADED})
"""A full queue is the answer of a server that works."""


class CircuitBreaker:
    """Opens after `failures` failed calls in a row, at once if the server cannot be reached.

    Starts open: a server that has not answered yet is not waited for.
    """

    def __init__(self, failures: int) -> None:
        self._limit = failures
        self._failed = 0
        self._state = BreakerState.OPEN
        self._why = "the model server has not been reached yet"
        self._only_late = False

    @property
    def state(self) -> BreakerState:
        return self._state

    @property
    def why(self) -> str:
        """Why calls do not go through; empty if they do."""
        return "" if self._state is BreakerState.CLOSED else self._why

    @property
    def only_late(self) -> bool:
        """True if every failure of this outage was a missed deadline: the server was busy or
        frozen, and what it had computed is probably still there."""
        return self._only_late

    def succeeded(self) -> None:
        """A call was answered. One that was under way when the server went away says nothing of the
        server that comes back."""
        if self._state is BreakerState.CLOSED:
            self._failed = 0
            self._only_late = True

    def failed(self, failure: InferenceFailure, why: str) -> None:
        """A call, or a check of readiness, got no answer."""
        if failure in _ANSWERED:
            return
        self._failed += 1
        self._only_late &= failure is InferenceFailure.DEADLINE
        unreachable = failure is InferenceFailure.UNAVAILABLE
        if unreachable or self._failed >= self._limit or self._state is not BreakerState.CLOSED:
            self._state = BreakerState.OPEN
            self._why = why

    def recovering(self) -> None:
        """The server answers again; its caches are being filled."""
        self._state = BreakerState.RECOVERING
        self._why = "the model server is computing the policies' prefixes"

    def close(self) -> None:
        """Let calls through."""
        self._failed = 0
        self._only_late = True
        self._state = BreakerState.CLOSED
