"""What a long run is to write is tried before it."""

from __future__ import annotations

import resource
from pathlib import Path

import click
import pytest

from sidecar.cli.output_file import OutputFile


def convert(path: Path) -> Path:
    return OutputFile().convert(str(path), None, None)


@pytest.mark.parametrize("name", ["/proc/x.json", "n" * 300, "nowhere/x.json", "loop"])
def test_what_could_not_be_written_is_said_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(click.BadParameter, match=r"cannot be written: |does not exist"):
        convert(tmp_path / name)


def test_so_is_a_full_disk_and_nothing_is_left(tmp_path: Path) -> None:
    """A limit of what a file may hold stands in for the disk: one can be made, and not written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(click.BadParameter, match="cannot be written: File too large"):
            convert(tmp_path / "x.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_made_and_nothing_changed(tmp_path: Path) -> None:
    old, new, link = (tmp_path / name for name in ("old", "new", "link"))
    old.write_text("kept")
    link.symlink_to("new")
    assert [convert(path) for path in (old, new, link)] == [old, new, link]
    assert (old.read_text(), new.exists(), link.is_symlink()) == ("kept", False, True)
    assert convert(Path("/dev/full")) == Path("/dev/full")
