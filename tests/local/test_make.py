"""How `make` chooses a Python."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / "sidecar" / "local" / "python_check.py"


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the Makefile with a folder of its own for what it makes."""
    return subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), f"VENV={folder / 'venv'}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_make_alone_lists_the_targets(tmp_path: Path) -> None:
    result = make(tmp_path)
    assert result.returncode == 0
    for target in ("setup", "demo", "test", "lint", "proto", "up", "clean", "lock"):
        assert f"\n  {target} " in result.stdout


def test_the_python_of_these_tests_fits_before_anything_is_installed() -> None:
    command = [sys.executable, "-I", "-S", str(CHECK)]
    checked = subprocess.run(command, capture_output=True, text=True)

    assert (checked.returncode, checked.stderr) == (0, "")


def test_without_a_python_that_fits_make_says_why_and_what_to_do(tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\necho 'is Python 3.9; 3.11, 3.12 or 3.13 is needed' >&2\nexit 1\n")
    old.chmod(0o755)
    target = str(tmp_path / "venv/bin/python")
    result = make(tmp_path, target, f"PYTHON={old} no-such-python")
    assert result.returncode != 0
    assert f"{old} is Python 3.9; 3.11, 3.12 or 3.13 is needed" in result.stderr
    assert "no-such-python is not installed" in result.stderr
    assert "make PYTHON=/path/to/python3.12" in result.stderr
    assert not (tmp_path / "venv").exists()
