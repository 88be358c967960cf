"""Files that appear only when complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from router_training.errors import InputError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside `path`, for a file that takes its place when the block ends well and vanishes
    otherwise.

    Raises OSError, InputError if it cannot be written.
    """
    beside = path.with_name(f"{path.name}.part")
    beside.touch()
    mode = beside.stat().st_mode
    try:
        yield beside
        # safetensors lets nobody but the owner read what it writes.
        beside.chmod(mode)
        beside.replace(path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        # For a full disk torch and safetensors have errors of their own.
        if isinstance(error, OSError | RuntimeError | SafetensorError):
            free = shutil.disk_usage(path.parent).free / 1e6
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{path}: cannot be written, with {free:.0f} MB free there: {reason}"
            ) from error
        raise
