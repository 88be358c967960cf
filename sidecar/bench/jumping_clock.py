"""A wall clock that is moved for one process alone: to set the machine's takes rights that a user
does not have, and moves it for everybody."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")
_NANOSECONDS = struct.Struct("=q")
_COMPILERS = ("cc", "gcc", "clang")
_COMPILE_TIMEOUT_S = 60


class NoClockError(Exception):
    """It cannot be made here; the text says why."""


class JumpingClock:
    """The wall clock of the process that is started with `environment`.

    Args:
        folder: for the library that moves it, which is compiled, and for how far it is moved.

    Raises:
        NoClockError: there is no C compiler, or it fails.
    """

    def __init__(self, folder: Path) -> None:
        library = folder / "jumping_clock.so"
        _compile(library)
        self._moved = folder / "clock-moved"
        self._moved.write_bytes(_NANOSECONDS.pack(0))
        self.environment: Mapping[str, str] = {
            "LD_PRELOAD": str(library),
            "JUMPING_CLOCK": str(self._moved),
        }

    def move(self, seconds: float) -> None:
        """From now on it is `seconds` ahead of the machine's."""
        # In place: the process has the file mapped.
        with self._moved.open("r+b") as file:
            file.write(_NANOSECONDS.pack(round(seconds * 1e9)))


def _compile(library: Path) -> None:
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise NoClockError(f"there is no C compiler ({', '.join(_COMPILERS)})")
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl"]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoClockError(f"{compiler} did not run: {error}") from None
    if done.returncode:
        raise NoClockError(f"{compiler} failed:\n{done.stderr}")
