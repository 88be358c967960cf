"""A child process in a group of its own, with its output in a file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("_launch.py")


class ChildProcess:
    """A running program and all it started; its output goes to the file `log`, or if that is None
    to standard error.

    It is in its own process group, so that Ctrl-C in the terminal reaches only the parent, which
    then stops it in order; and it is asked to end when the thread that started it ends, so start
    it from the main thread.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path | None
    ) -> None:
        self.log = log
        with log.open("ab") if log else nullcontext(sys.stderr.fileno()) as output:
            self._popen = subprocess.Popen(  # noqa: S603
                [sys.executable, "-S", "-E", str(_LAUNCHER), str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative: killed by that signal."""
        return self._popen.poll()

    def wait(self, timeout_s: float) -> bool:
        """True if it has ended within the time."""
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def signal(self, number: int) -> None:
        """Send a signal to the program and all it started; nothing happens if all are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def terminate(self, grace_s: float) -> None:
        """Ask the program to end, wait `grace_s`, then kill whatever is left of the group."""
        if self.exit_code() is None:
            # Only the leader: it ends its own children in order.
            self._popen.terminate()
            self.signal(signal.SIGCONT)
            self.wait(grace_s)
        self.kill()

    def kill(self) -> None:
        """Kill the whole group and wait until the kernel has removed it."""
        self.signal(signal.SIGKILL)
        self._popen.wait()
        self._await_group_gone(5)

    def last_lines(self, count: int, tells: Callable[[str], bool] = bool) -> str:
        """The last lines of the log for which `tells` is true; of all lines if it is for none."""
        if self.log is None:
            return ""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(([line for line in lines if tells(line)] or lines)[-count:])

    def _await_group_gone(self, timeout_s: float) -> None:
        # Children of the dead leader end a moment later.
        end = time.monotonic() + timeout_s
        while group_is_alive(self.pid) and time.monotonic() < end:
            time.sleep(0.01)


def group_is_alive(group: int) -> bool:
    """True if a process of the group runs; `killpg(group, 0)` would count the dead ones, too, that
    init has not yet reaped."""
    return any(each.group == group and each.alive for each in _processes())


def children(parent: int) -> set[int]:
    """Pids of the processes that `parent` started, the dead ones that it has not reaped, too."""
    return {each.pid for each in _processes() if each.parent == parent}


def is_alive(pid: int, parent: int) -> bool:
    """True if the process runs and is still a child of `parent`; a number can be given again."""
    found = _process(Path("/proc", str(pid), "stat"))
    return found is not None and found.parent == parent and found.alive


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    group: int
    alive: bool


def _processes() -> Iterator[_Process]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        found = _process(stat)
        if found is not None:
            yield found


def _process(stat: Path) -> _Process | None:
    """None if it is gone."""
    try:
        text = stat.read_text(errors="replace")
    except OSError:
        return None
    # proc(5): pid (name) state parent group …, and the name may hold spaces.
    state, parent, group = text.rpartition(")")[2].split()[:3]
    return _Process(int(stat.parent.name), int(parent), int(group), state not in "ZX")
