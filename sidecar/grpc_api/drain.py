"""The end of taking new work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sidecar.core.errors import ErrorCode, SidecarError


class Drain:
    """Begins once, when the server shuts down. Long-lived calls end themselves then, instead of
    being cut off when the grace period is over."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._callbacks: set[Callable[[], object]] = set()

    @property
    def begun(self) -> bool:
        return self._begun.is_set()

    def begin(self) -> None:
        self._begun.set()
        for callback in list(self._callbacks):
            callback()

    async def wait(self) -> None:
        await self._begun.wait()

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
