"""Folders of what runs: where they lie, and who removes what a killed process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.local import CACHE_VARIABLE, LocalError, new_run_folder, remove_run_folder
from sidecar.local.run_folders import remove_left_run_folders

MAKE_AND_WAIT = """
import sys
from sidecar.local import new_run_folder
print(new_run_folder("stack"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    ("cache", "in_cache"),
    [("plain", True), ("with space", False), ("quote'd", False), ("long" * 20, False)],
)
def test_they_lie_in_the_cache_unless_its_path_is_long_or_needs_quoting(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    temporary: Path,
    cache: str,
    in_cache: bool,
) -> None:
    monkeypatch.setattr("sidecar.local.run_folders._LONGEST", len(str(temporary)) + 40)
    monkeypatch.setenv(CACHE_VARIABLE, str(temporary.parent / cache))
    folder = new_run_folder("stack")
    assert folder.is_relative_to(temporary.parent / cache if in_cache else temporary)
    assert folder.name.startswith(f"stack-{os.getpid()}-")
    remove_run_folder(folder)
    assert not folder.exists()


def test_a_folder_for_temporary_files_that_will_not_do_either_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blank = tmp_path / "a b"
    blank.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(blank))
    monkeypatch.setenv(CACHE_VARIABLE, str(blank / "cache"))
    folder = new_run_folder("stack")
    assert folder.is_relative_to(f"/tmp/llm-routing-sidecar-run-{os.getuid()}")
    remove_run_folder(folder)


def test_sockets_in_them_are_short_enough_wherever_the_cache_may_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "a-cache-with-a-name-that-is-long"))
    folder = new_run_folder("stack")
    assert len(os.fsencode(folder / "sidecar.sock")) <= 107
    remove_run_folder(folder)


def test_a_folder_in_use_stays_whatever_its_pid_says_and_goes_when_its_process_was_killed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As processes of several containers that share a cache: their pids are not ours."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE_AND_WAIT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    made = Path(process.stdout.readline().strip())
    renamed = made.rename(made.with_name("stack-999999999-elsewhere"))
    remove_left_run_folders()
    assert renamed.exists()

    process.send_signal(signal.SIGKILL)
    process.communicate()
    same_pid = renamed.rename(renamed.with_name(f"stack-{os.getpid()}-again"))
    remove_left_run_folders()
    assert not same_pid.exists()


def test_a_folder_of_another_user_is_not_used(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "with space"))
    monkeypatch.setattr("os.getuid", lambda: 4711)
    with pytest.raises(LocalError, match="belongs to another user"):
        new_run_folder("stack")
