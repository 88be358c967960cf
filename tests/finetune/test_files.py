"""Files of programs that train are whole or not there. Skipped where torch is not installed."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed; only training needs it")
pytest.importorskip("safetensors", reason="safetensors is not installed; only training needs it")

import torch
from router_training.errors import InputError
from router_training.files import written_whole
from safetensors.torch import save_file

TENSORS = {"weight": torch.zeros(100_000)}

WRITERS: dict[str, Callable[[Path], object]] = {
    "torch": lambda path: torch.save(TENSORS, path),
    "safetensors": lambda path: save_file(TENSORS, path),
    "text": lambda path: path.write_text("x" * 100_000),
}


@contextmanager
def full_disk() -> Iterator[None]:
    """Files beyond 50 kB cannot be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_what_cannot_be_written_is_named_and_the_last_one_stays(
    write: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text("the last one")
    with (
        pytest.raises(InputError, match=r"file: cannot be written, with \d+ MB free there: "),
        full_disk(),
        written_whole(path) as beside,
    ):
        write(beside)
    assert path.read_text() == "the last one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_what_is_written_can_be_read_by_whom_the_umask_lets(
    write: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / "other").touch()
    with written_whole(tmp_path / "file") as beside:
        write(beside)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_stop_leaves_no_part(tmp_path: Path) -> None:
    def stopped() -> None:
        with written_whole(tmp_path / "file") as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not list(tmp_path.iterdir())
