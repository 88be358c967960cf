"""The user's cache folder: unpacked tools, environments, engines and run folders."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidecar.local.errors import LocalError

CACHE_VARIABLE = "LLM_ROUTING_SIDECAR_CACHE"
"""Environment variable that overrides the cache folder."""


def cache_dir() -> Path:
    """The cache folder, created if needed.

    `$LLM_ROUTING_SIDECAR_CACHE`, else `$XDG_CACHE_HOME/llm-routing-sidecar`, else
    `~/.cache/llm-routing-sidecar`. As the XDG specification wants it, a relative
    `XDG_CACHE_HOME` is ignored.

    Raises:
        LocalError: the folder cannot be created or written.
    """
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    override = os.environ.get(CACHE_VARIABLE, "")
    if override:
        folder = Path(override).absolute()
    else:
        base = Path(xdg) if os.path.isabs(xdg) else _home() / ".cache"
        folder = base / "llm-routing-sidecar"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError(
            f"cannot create the cache folder {folder}: {error.strerror}. "
            f"Set {CACHE_VARIABLE} to a folder that you can write."
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise LocalError(
            f"the cache folder {folder} cannot be written. "
            f"Set {CACHE_VARIABLE} to a folder that you can write."
        )
    return folder


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise LocalError(
            f"user {os.getuid()} has no home folder, in which the cache would be. "
            f"Set {CACHE_VARIABLE} to a folder that you can write."
        ) from None


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold the cache's lock `name` against other processes; released also when this one dies."""
    folder = cache_dir() / "locks"
    try:
        folder.mkdir(exist_ok=True)
        handle = (folder / f"{name}.lock").open("w")
    except OSError as error:
        raise LocalError(
            f"{folder} cannot be written: {error.strerror}. Set {CACHE_VARIABLE} to a folder that "
            "you can write."
        ) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well and vanishes otherwise.

    The name appears in one step, so that `target.exists()` means complete. The caller holds the
    lock that guards `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
