"""Processor time and memory of processes on this machine, as Linux tells them."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_s(pid: int) -> float:
    """Seconds that the process has computed, its ended threads included; in hundredths."""
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    # proc(5): utime and stime are the 14th and 15th, and the first two are cut off.
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def threads_cpu_s(pid: int) -> float:
    """Seconds that the process's threads have computed, those that have ended left out; in
    nanoseconds (Linux: sched-stats.rst), for what takes less than a second."""
    total = 0
    for thread in Path("/proc", str(pid), "task").iterdir():
        try:
            total += int((thread / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total / 1e9


def own_bytes(pid: int) -> int:
    """Memory that the process has for itself, swapped out or not (proc_pid_status(5)). Programs and
    files that are mapped are left out: their pages come and go with what else the machine does."""
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    return sum(int(sizes[name].split()[0]) * 1024 for name in ("RssAnon", "VmSwap"))


def resident_bytes(pid: int) -> int:
    """Memory of the process; what it shares with others is counted in each of them."""
    pages = int(Path("/proc", str(pid), "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
