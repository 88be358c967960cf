"""Memory settings of the C library, which must be in place when the process starts."""

from __future__ import annotations

import os
import sys

_SETTINGS = {
    # By default glibc gives every large tensor back to the kernel and gets it again as fresh
    # pages, zeroed: element-wise operations took ten times as long, a step twice as long.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "THP_MEM_ALLOC_ENABLE": "1",
}


def keep_freed_memory() -> None:
    """Start this process over with the settings, unless it has them or they do not apply."""
    if sys.platform == "linux" and "MALLOC_MMAP_MAX_" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_SETTINGS})  # noqa: S606
