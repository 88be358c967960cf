"""Folders that appear only when complete."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidecar.engines.errors import EngineError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refuse_foreign(out: Path, marker: str, kind: str) -> None:
    """Raises EngineError if `out` holds something else than what is to be written there: what has
    a file `marker` is of that kind."""
    if out.exists() and not (out / marker).exists():
        raise EngineError(f"{out}: exists and is not {kind}; choose another path")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `out` when the block ends well and vanishes
    otherwise. The parent of `out` is created.

    Raises:
        EngineError: the folder cannot be created, or the disk is full.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise EngineError(f"{out}: cannot be written: {error.strerror}") from None
    try:
        yield staging
        _put_in_place(staging, out)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise EngineError(f"{out}: cannot be written: {error.strerror}") from None
        raise


def remove_unfinished(out: Path) -> None:
    """Removes what a process that was killed in `staged` left beside `out`. Nobody else writes
    `out` meanwhile."""
    unfinished = re.compile(rf"\.{re.escape(out.name)}-(?!compiled$)[a-z0-9_]{{8}}(-old)?")
    if out.parent.is_dir():
        for folder in out.parent.iterdir():
            if unfinished.fullmatch(folder.name):
                shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(staging: Path, out: Path) -> None:
    # A folder cannot replace a non-empty one in one step; the old one is moved aside first, so
    # that a crash in between leaves none rather than a mixture.
    staging.chmod(0o755)
    retired = staging.with_name(staging.name + "-old")
    try:
        if out.exists():
            os.replace(out, retired)
        os.replace(staging, out)
    except OSError as error:
        if retired.exists():
            os.replace(retired, out)
        raise EngineError(
            f"{out}: cannot be replaced: {error.strerror}; choose another path, or a folder below "
            "it where it is a mount"
        ) from None
    shutil.rmtree(retired, ignore_errors=True)
