from pathlib import Path

import pytest

from sidecar.local import LocalError, stub_environment
from sidecar.local.stub_environment import REQUIREMENTS


def test_the_locked_packages_all_have_hashes() -> None:
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    assert {line.split("==")[0] for line in lines} == {"numpy", "openvino"}
    assert all(line.endswith("\\") for line in lines), "a hash follows"


def test_packages_that_cannot_be_had_are_an_error_and_leave_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    with pytest.raises(LocalError, match=r"cannot install the model server's packages.*network"):
        stub_environment()
    assert list((cache / "environments").iterdir()) == []


def test_an_environment_whose_interpreter_is_gone_is_made_anew(cache: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    nothing = tmp_path / "requirements.lock"
    nothing.write_text("")
    folder = stub_environment(lines.append, nothing)
    assert stub_environment(lines.append, nothing) == folder
    assert len(lines) == 1
    python = folder / "bin" / "python3"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert stub_environment(lines.append, nothing) == folder
    assert len(lines) == 2
    assert python.exists()
