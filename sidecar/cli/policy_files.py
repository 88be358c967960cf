"""Files and folders of policies that commands read."""

from __future__ import annotations

from pathlib import Path

import click


class PolicyPath(click.Path):
    """A file or folder that is there; `-` is standard input."""

    def __init__(self) -> None:
        super().__init__(exists=True, readable=True, allow_dash=True, path_type=Path)

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        path = super().convert(value, param, ctx)  # type: ignore[arg-type]
        assert isinstance(path, Path)
        return Path("/dev/stdin") if str(path) == "-" else path
