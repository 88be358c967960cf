"""A clock that stands while anything computes, for tests of deadlines."""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import Any, cast

import pytest

from tests.doubles import Clock


def keep_virtual_time(patch: pytest.MonkeyPatch) -> None:
    """From now on time goes on only while all tasks of the running event loop wait, and then at
    once to when the first of them is due: nothing is late because the machine is slow.

    Not for what other threads have to do, during which the time of what is waited for passes."""
    loop: Any = asyncio.get_running_loop()
    clock = Clock(time.monotonic())
    selector = cast(selectors.BaseSelector, loop._selector)
    select = selector.select

    def jump(timeout: float | None = None) -> Any:
        ready = select(None if timeout is None else 0)
        if not ready and timeout:
            clock.now += timeout
        return ready

    patch.setattr(selector, "select", jump)
    patch.setattr(loop, "time", clock)
    patch.setattr(time, "monotonic", clock)
    patch.setattr(time, "perf_counter", clock)
