"""How much CPU time a container's limit allows. OpenVINO sees which cores there are and computes on
all of them, which uses the quota of a period up at once and then stands still for its rest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")
_MOUNTED = Path("/sys/fs/cgroup")


def threads_within_quota(membership: Path = _MEMBERSHIP, mounted: Path = _MOUNTED) -> int:
    """Threads that compute all the time within the limit; 0 if there is none, or it is no less
    than the cores that may be used."""
    quota = min(_quotas(membership, mounted), default=None)
    if quota is None or quota >= len(os.sched_getaffinity(0)):
        return 0
    return max(1, int(quota))


def _quotas(membership: Path, mounted: Path) -> Iterator[float]:
    """Cores' worth of time, of the process's control group and of those around it."""
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mounted / "cpu" if controllers else mounted
        # Within a container's own namespace the path may be one that is seen only outside.
        inner = root / path.lstrip("/")
        for folder in {root, inner, *(each for each in inner.parents if root in each.parents)}:
            limit = (
                [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
                if controllers
                else " ".join(_lines(folder / "cpu.max")).split()
            )
            if len(limit) == 2 and limit[0].isdecimal():
                yield int(limit[0]) / int(limit[1])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
