"""Files that commands write at the end of a long run."""

from __future__ import annotations

import os
from pathlib import Path

import click

_ROOM = 65_536
"""Bytes. A file of none can be made on a disk that is full."""


class OutputFile(click.Path):
    """A file to be written, which is tried now, and not after an hour."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        path = super().convert(value, param, ctx)  # type: ignore[arg-type]
        assert isinstance(path, Path)
        if not path.absolute().parent.is_dir():
            self.fail(f"{path}: the folder {path.parent} does not exist", param, ctx)
        try:
            _try(path)
        except OSError as error:
            self.fail(f"{path}: cannot be written: {error.strerror}", param, ctx)
        return path


def _try(path: Path) -> None:
    """Raises OSError. A file that is there stays as it is, and one that is not is not made."""
    if path.is_file():
        path.open("ab").close()
    elif not path.exists():
        # Where a link points to nothing, what it points to is made, and the link stays.
        made = Path(os.path.realpath(path))
        # Never one that somebody else has made meanwhile.
        with made.open("xb") as file:
            try:
                file.write(bytes(_ROOM))
            finally:
                made.unlink(missing_ok=True)
