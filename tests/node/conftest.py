"""Node.js and the packages of a client in it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from sidecar.local import LocalError, cache_dir, tool
from sidecar.local.cache import exclusive, new_folder

HERE = Path(__file__).parent

_NO_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")


@pytest.fixture(scope="module")
def node() -> Path:
    try:
        return tool("node")
    except LocalError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def modules(node: Path) -> Path:
    """The locked packages, installed into the user's cache."""
    lock = (HERE / "package-lock.json").read_bytes()
    folder = cache_dir() / "node" / hashlib.sha256(lock).hexdigest()[:12]
    with exclusive("node-client"):
        if not folder.exists():
            with new_folder(folder) as fresh:
                install(node, fresh)
    return folder / "node_modules"


def install(node: Path, folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    # Scripts of packages stay off: none of these needs one.
    command: list[Path | str] = [
        node,
        tool("npm"),
        "ci",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
    ]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ran.returncode != 0 and any(code in ran.stderr for code in _NO_NETWORK):
        pytest.skip(f"the packages of the Node.js client cannot be fetched: {ran.stderr[-300:]}")
    assert ran.returncode == 0, ran.stderr
