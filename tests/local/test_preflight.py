import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.local import preflight
from sidecar.local.cache import CACHE_VARIABLE
from sidecar.local.errors import LocalError
from sidecar.local.preflight import Machine

GOOD = Machine(
    system="Linux",
    architecture="x86_64",
    glibc=(2, 36),
    python=(3, 11),
    libpython=Path("/usr/lib/libpython3.11.so.1.0"),
    libpython_name="libpython3.11.so.1.0",
    free_disk=10 * 1024**3,
    needed_disk=2 * 1024**3,
    free_memory=4 * 1024**3,
    cache=Path("/home/a/.cache"),
    runs_programs=True,
)


@pytest.mark.parametrize(
    ("lack", "problem", "remedy"),
    [
        ({"architecture": "aarch64"}, "It is Linux aarch64", "runs elsewhere"),
        ({"system": "Darwin", "architecture": "arm64"}, "It is Darwin arm64", "runs elsewhere"),
        ({"glibc": (2, 31)}, "It has glibc 2.31", "use Debian 12"),
        ({"glibc": ()}, "It has glibc not found", "use Debian 12"),
        ({"python": (3, 10)}, "This is Python 3.10", "make clean setup PYTHON="),
        ({"python": (3, 14)}, "This is Python 3.14", "make clean setup PYTHON="),
        ({"libpython": None}, "libpython3.11.so.1.0 of", "apt-get install libpython3.11"),
        ({"free_disk": 1024**3}, "1.0 GiB free in /home/a/.cache", "LLM_ROUTING_SIDECAR_CACHE"),
        ({"runs_programs": False}, "from /home/a/.cache, whose", "LLM_ROUTING_SIDECAR_CACHE"),
        ({"free_memory": 2**29}, "0.5 GiB available", "close other programs"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_machine_lacks_is_named_with_what_to_do(
    lack: dict[str, Any], problem: str, remedy: str
) -> None:
    with pytest.raises(LocalError) as raised:
        preflight.require(replace(GOOD, **lack))
    assert problem in str(raised.value)
    assert remedy in str(raised.value)


def test_all_problems_are_named_at_once() -> None:
    poor = replace(GOOD, architecture="aarch64", glibc=(2, 31))
    with pytest.raises(LocalError, match=r"aarch64.*2\.31"):
        preflight.require(poor)


def test_a_good_machine_passes() -> None:
    assert preflight.require(GOOD) is GOOD


def test_python_3_13_needs_no_libpython() -> None:
    machine = replace(GOOD, python=(3, 13), libpython=None)

    assert preflight.require(machine) is machine


@pytest.mark.parametrize(
    ("there", "needed"),
    [((), 2 * 2**30), (("engines",), 3 * 2**29), (("engines", "environments"), 200 * 2**20)],
)
def test_what_is_in_the_cache_already_needs_no_room(
    there: tuple[str, ...], needed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    for folder in there:
        (tmp_path / folder).mkdir()

    assert preflight.this_machine().needed_disk == needed


@pytest.mark.parametrize(("flag", "runs"), [(0, True), (os.ST_NOEXEC, False)])
def test_a_file_system_that_runs_no_programs_is_seen(
    flag: int, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=flag))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=1, used=0, free=1))
    assert preflight.this_machine().runs_programs is runs
