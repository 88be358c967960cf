"""One call to the routing model for all requests that ask it the same thing at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sidecar.core.model import InferenceError, InferenceFailure, ModelOutput

Place = TypeVar("Place")


@dataclass(slots=True)
class _Flight(Generic[Place]):
    task: asyncio.Task[ModelOutput]
    place: Place
    waiters: int = field(default=0)


class Coalescer(Generic[Place]):
    """Shares calls in flight, each at some place.

    Each waiter keeps its own deadline. A call is cancelled when its last waiter has gone, whether
    by its deadline or because its caller went away.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[Place]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def place(self, key: Hashable) -> Place | None:
        """Where the call of `key` is in flight; None if there is none."""
        flight = self._flights.get(key)
        return flight.place if flight is not None else None

    def moved(self, key: Hashable, place: Place) -> None:
        """The call of `key`, if it is in flight, goes on there."""
        if (flight := self._flights.get(key)) is not None:
            flight.place = place

    async def join(
        self,
        key: Hashable,
        place: Place,
        call: Callable[[], Awaitable[ModelOutput]],
        timeout_s: float,
        late: Callable[[Place, InferenceError], None] = lambda place, error: None,
    ) -> ModelOutput:
        """Wait at most `timeout_s` for the call of `key`, starting it at `place` if there is none.

        Args:
            late: told where the call was last when a deadline passed, and what is raised then.

        Raises:
            InferenceError: DEADLINE after `timeout_s`, or what the call raised.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = _Flight(asyncio.ensure_future(_as_task(call)), place)
            self._flights[key] = flight
            flight.task.add_done_callback(lambda _: self._forget(key, flight))
        flight.waiters += 1
        try:
            done, _ = await asyncio.wait({flight.task}, timeout=timeout_s)
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                # Forgotten at once: nobody may join a call that is being cancelled.
                self._forget(key, flight)
                flight.task.cancel()
        try:
            if not done:
                raise InferenceError(
                    InferenceFailure.DEADLINE, f"no answer within {timeout_s * 1000:.0f} ms"
                )
            if flight.task.cancelled():
                # By the channel that was closed under it, and not by whoever waits here.
                raise InferenceError(InferenceFailure.UNAVAILABLE, "the call was cancelled")
            return flight.task.result()
        except InferenceError as error:
            if error.failure is InferenceFailure.DEADLINE:
                late(flight.place, error)
            raise

    def _forget(self, key: Hashable, flight: _Flight[Place]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.done() and not flight.task.cancelled():
            # A failed call whose waiters have all gone is nobody's error.
            flight.task.exception()


async def _as_task(call: Callable[[], Awaitable[ModelOutput]]) -> ModelOutput:
    return await call()
