"""How `make` chooses a Python."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


FAKE_PYTHON = """#!/bin/sh
case "$*" in
*-m?venv*)
  for folder; do :; done
  rm -rf "$folder"
  mkdir -p "$folder/bin"
  ln -s "$0" "$folder/bin/python" ;;
esac
"""


def test_packages_are_installed_anew_when_the_python_of_the_environment_has_gone(
    tmp_path: Path,
) -> None:
    """As after an upgrade of the system, which leaves a link to nowhere."""
    fake = tmp_path / "python"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    os.utime(fake, (10**9, 10**9))
    told = []
    for gone in (False, False, True):
        if gone:
            python = tmp_path / "venv" / "bin" / "python"
            python.unlink()
            python.symlink_to("/nowhere/python")
        told.append(make(tmp_path, "setup", f"PYTHON={fake}").stdout)
    assert ["Installing the locked packages" in each for each in told] == [True, False, True]


@pytest.mark.parametrize(
    ("variable", "value", "cache"),
    [
        ("XDG_CACHE_HOME", "", ".cache/llm-routing-sidecar"),
        ("XDG_CACHE_HOME", "relative", ".cache/llm-routing-sidecar"),
        ("XDG_CACHE_HOME", "{home}/a b", "a b/llm-routing-sidecar"),
        ("LLM_ROUTING_SIDECAR_CACHE", "{home}/a b", "a b"),
    ],
)
class TestCleanCache:
    def test_the_folder_that_the_sidecar_uses_is_removed(
        self, tmp_path: Path, variable: str, value: str, cache: str
    ) -> None:
        (tmp_path / cache / "engines").mkdir(parents=True)
        (tmp_path / cache / "run").mkdir()
        assert _clean_cache(tmp_path, variable, value).returncode == 0
        assert not (tmp_path / cache).exists()

    def test_a_folder_that_holds_anything_else_is_left_as_it_is(
        self, tmp_path: Path, variable: str, value: str, cache: str
    ) -> None:
        (tmp_path / cache / "engines").mkdir(parents=True)
        (tmp_path / cache / "thesis.tex").touch()
        result = _clean_cache(tmp_path, variable, value)
        assert result.returncode != 0
        assert "thesis.tex" in result.stderr
        assert (tmp_path / cache / "thesis.tex").exists()
        assert (tmp_path / cache / "engines").exists()


def _clean_cache(home: Path, variable: str, value: str) -> subprocess.CompletedProcess[str]:
    names = ("XDG_CACHE_HOME", "LLM_ROUTING_SIDECAR_CACHE")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    environment |= {"HOME": str(home), variable: value.format(home=home)}
    command = ["make", "-f", str(ROOT / "Makefile"), "clean-cache"]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)


def test_make_knows_every_folder_of_the_cache() -> None:
    sources = [*ROOT.glob("sidecar/**/*.py"), *ROOT.glob("tests/**/*.py")]
    used = {
        name
        for source in sources
        for name in re.findall(r'cache_dir\(\) / "([a-z]+)"', source.read_text(encoding="utf-8"))
    }
    [known] = re.findall(r"^CACHED := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert used == set(known.split("|"))
