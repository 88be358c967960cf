"""Files that commands write at the end of a long run."""

from __future__ import annotations

from pathlib import Path

import click


class OutputFile(click.Path):
    """A file to be written, whose folder is looked for now, and not after an hour."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        path = super().convert(value, param, ctx)  # type: ignore[arg-type]
        assert isinstance(path, Path)
        if not path.absolute().parent.is_dir():
            self.fail(f"{path}: the folder {path.parent} does not exist", param, ctx)
        return path
