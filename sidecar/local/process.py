"""A child process in a group of its own, with its output in a file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("_launch.py")


class ChildProcess:
    """A running program and all it started.

    It is in its own process group, so that Ctrl-C in the terminal reaches only the parent, which
    then stops it in order; and it is asked to end when the thread that started it ends, so start
    it from the main thread.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
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

    def last_lines(self, count: int = 15) -> str:
        """The end of the log."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-count:])

    def _await_group_gone(self, timeout_s: float) -> None:
        # Children of the dead leader are reaped by init, which takes a moment.
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            try:
                os.killpg(self.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(0.01)
