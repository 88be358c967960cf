"""Workers, and the programs that they start, look for free ports at the same time and use them a
moment later: each among its own."""

from __future__ import annotations

import os
import random

from sidecar.local import ports


def draw_own_ports(started: bool = False) -> None:
    """From now on this process draws from a part of the range that no other does.

    Args:
        started: by a worker, whose environment it has.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    parts = 2 * int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    part, draw = 2 * worker + started, random.randint

    def drawn(lowest: int, highest: int) -> int:
        share = (highest - lowest + 1) // parts
        return draw(lowest + part * share, lowest + (part + 1) * share - 1)

    ports._draw = drawn
