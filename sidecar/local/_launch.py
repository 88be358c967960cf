"""Starts a program that dies with its parent: `python -S -E _launch.py PARENT_PID PROGRAM ARG...`.

A small program of its own instead of `preexec_fn`, which can deadlock in a process with threads
(gRPC has many): https://docs.python.org/3/library/subprocess.html#subprocess.Popen
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2:]
    # SIGTERM, not SIGKILL: the program still ends its own children and removes its shared memory.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before prctl() took effect
        sys.exit(1)
    os.execv(program[0], program)  # noqa: S606


main()
