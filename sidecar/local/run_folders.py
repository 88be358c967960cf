"""Folders of what runs: configurations, logs, sockets. They go with the process that made them."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TextIO

from sidecar.local.cache import CACHE_VARIABLE, cache_dir, exclusive
from sidecar.local.errors import LocalError

_LOCK = ".lock"
_LONGEST = 70
"""Bytes of the path that they lie in: that of a socket in one of them has at most 107."""
_PLAIN = re.compile(r"[A-Za-z0-9/._@%+=:,~-]+")
"""Triton has a shell read the paths of its models."""

_held: dict[Path, TextIO] = {}


def new_run_folder(what: str) -> Path:
    """A new folder `<what>-<pid>-<random>`, for `remove_run_folder`.

    It is locked while this process lives, so that a later one can tell what a killed one left: the
    pid means nothing to processes of another container or machine that share the cache.

    Raises:
        LocalError: it cannot be made.
    """
    runs = _runs()
    with exclusive("run"):
        folder = Path(tempfile.mkdtemp(prefix=f"{what}-{os.getpid()}-", dir=runs))
        lock = (folder / _LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    _held[folder] = lock
    return folder


def remove_run_folder(folder: Path) -> None:
    """Removes what `new_run_folder` made, with all that is in it; nothing happens if it is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    if lock := _held.pop(folder, None):
        lock.close()


def remove_left_run_folders() -> None:
    """Removes those of processes that were killed."""
    with exclusive("run"):
        for folder in _runs().glob("*-*-*"):
            if not _in_use(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _runs() -> Path:
    """Of the cache; where that cannot be, of the folder for temporary files."""
    runs = cache_dir() / "run"
    try:
        if _suits(runs):
            runs.mkdir(exist_ok=True)
        else:
            name = f"llm-routing-sidecar-run-{os.getuid()}"
            runs = Path(tempfile.gettempdir(), name)
            runs = runs if _suits(runs) else Path("/tmp", name)  # noqa: S108
            runs.mkdir(mode=0o700, exist_ok=True)
            if runs.lstat().st_uid != os.getuid():
                raise PermissionError(None, "it belongs to another user")
    except OSError as error:
        raise LocalError(
            f"the folder {runs}, for what runs, cannot be used: {error.strerror}. Remove it, or "
            f"set {CACHE_VARIABLE} to a folder of yours with a path that is short and plain."
        ) from None
    return runs


def _suits(runs: Path) -> bool:
    return len(os.fsencode(runs)) <= _LONGEST and _PLAIN.fullmatch(str(runs)) is not None


def _in_use(folder: Path) -> bool:
    try:
        with (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
