"""A cache of one's own, and tiny wheels in a folder instead of a package registry."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.local import CACHE_VARIABLE

LOCK = """version = 1
[[tool]]
name = "tiny"
version = "1.0"
purpose = "a wheel for tests"
[[tool.wheel]]
platform = "any"
file = "tiny-1.0-py3-none-any.whl"
sha256 = "{sha256}"
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def tiny_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that pip finds, with a program, a data file and a folder of libraries beside them."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    path = shelf / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        add(archive, "tiny/bin/program", b"#!/bin/sh\necho tiny\n", 0o100755)
        add(archive, "tiny/data.txt", b"data", 0o100644)
        add(archive, "tiny.libs/libtiny.so", b"library", 0o100755)
        add(archive, "tiny-1.0.dist-info/METADATA", b"Name: tiny\nVersion: 1.0\n", 0o100644)
        add(archive, "tiny-1.0.dist-info/WHEEL", b"Wheel-Version: 1.0\n", 0o100644)
        add(archive, "tiny-1.0.dist-info/RECORD", b"", 0o100644)
    return path


@pytest.fixture
def lock(tmp_path: Path, tiny_wheel: Path) -> Callable[[str], Path]:
    """Writes a tools.lock with the given sha256 of the tiny wheel (empty: the right one)."""

    def write(sha256: str = "") -> Path:
        path = tmp_path / "tools.lock"
        actual = hashlib.sha256(tiny_wheel.read_bytes()).hexdigest()
        path.write_text(LOCK.format(sha256=sha256 or actual))
        return path

    return write


def add(archive: zipfile.ZipFile, name: str, content: bytes, mode: int) -> None:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    archive.writestr(entry, content)
