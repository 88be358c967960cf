"""The end of taking new work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sidecar.core.errors import ErrorCode, SidecarError


class Drain:
    """Begins once, when the server shuts down: new calls are refused then, and long-lived ones end
    themselves instead of being cut off when the grace period is over."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._callbacks: set[Callable[[], object]] = set()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

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

    @contextmanager
    def call(self) -> Iterator[None]:
        """Within the block a call is in flight. Raises SidecarError DRAINING for a new one."""
        self.raise_if_begun()
        with self.work():
            yield

    @contextmanager
    def work(self) -> Iterator[None]:
        """As `call`, for what is taken until the very end."""
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
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
