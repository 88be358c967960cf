"""Free ports on the loopback interface."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from pathlib import Path

from sidecar.local.errors import LocalError

_LOWEST = 10_000
_TRIES = 200

_given: set[int] = set()
"""To this process, which may not have begun to use them."""
_draw: Callable[[int, int], int] = random.randint


def free_ports(count: int) -> list[int]:
    """Different TCP ports of 127.0.0.1 that nothing uses now and that were not given before.

    They lie below the range that the kernel hands out to clients: a client that keeps connecting
    to a closed port inside that range sooner or later connects to itself and occupies it, and
    clients that reconnect to a restarted server are what these ports are for.

    Raises:
        LocalError: none found.
    """
    highest = _first_client_port() - 1
    chosen: set[int] = set()
    for _ in range(_TRIES):
        port = _draw(_LOWEST, highest)
        if port not in chosen | _given and _is_free(port):
            chosen.add(port)
        if len(chosen) == count:
            _given.update(chosen)
            return list(chosen)
    raise LocalError(f"no {count} free ports found on 127.0.0.1 between {_LOWEST} and {highest}")


def _first_client_port() -> int:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        first = int(text.split()[0])
    except (OSError, ValueError):
        first = 32768
    # Some containers hand out nearly every port; then there is nothing below to choose from.
    return first if first > _LOWEST + 1000 else 65536


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
