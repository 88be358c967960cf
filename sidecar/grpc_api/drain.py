"""The end of taking new work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from sidecar.core.errors import ErrorCode, SidecarError


class _Within(AbstractContextManager[None]):
    """Counts who is within it. One for all: a generator for each takes ten times as long."""

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin = begin
        self._end = end

    def __enter__(self) -> None:
        self._begin()

    def __exit__(self, *_: object) -> None:
        self._end()


class Drain:
    """Begins once, when the server shuts down: new calls are refused then, and long-lived ones end
    themselves instead of being cut off when the grace period is over."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._callbacks: set[Callable[[], object]] = set()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._work = _Within(self._begin_work, self._end_work)

    @property
    def begun(self) -> bool:
        return self._begun.is_set()

    def begin(self) -> None:
        self._begun.set()
        for callback in list(self._callbacks):
            callback()

    async def idle(self) -> None:
        """Returns when no call is in flight."""
        await self._idle.wait()

    def call(self) -> AbstractContextManager[None]:
        """Within the block a call is in flight. Raises SidecarError DRAINING for a new one."""
        self.raise_if_begun()
        return self._work

    def work(self) -> AbstractContextManager[None]:
        """As `call`, for what is taken until the very end."""
        return self._work

    def _begin_work(self) -> None:
        self._in_flight += 1
        self._idle.clear()

    def _end_work(self) -> None:
        self._in_flight -= 1
        if self._in_flight == 0:
            self._idle.set()

    @contextmanager
    def calls(self, callback: Callable[[], object]) -> Iterator[None]:
        """Within the block, `callback` is called when the drain begins, or at once if it has."""
        self._callbacks.add(callback)
        try:
            if self.begun:
                callback()
            yield
        finally:
            self._callbacks.discard(callback)

    def raise_if_begun(self) -> None:
        """Raises SidecarError DRAINING."""
        if self.begun:
            raise SidecarError(
                ErrorCode.DRAINING,
                "the sidecar is shutting down; send what was not answered to another one",
            )
