"""Waiting for what something else is about to make true."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(true: Callable[[], bool]) -> None:
    """Raises TimeoutError after a minute: also a busy machine has done it by then."""
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.005)
