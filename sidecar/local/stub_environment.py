"""The packages that Triton's Python backend runs on, in an environment of their own.

The backend's stub embeds the running interpreter. It takes the environment whose `bin` folder is
first in PATH, so that nothing of the sidecar's own environment is imported into the model server.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from sidecar.local.cache import cache_dir, exclusive, new_folder
from sidecar.local.errors import LocalError
from sidecar.local.tools import Report

REQUIREMENTS = Path(__file__).with_name("stub-requirements.lock")


def stub_environment(report: Report | None = None, requirements: Path = REQUIREMENTS) -> Path:
    """Folder of the environment; made if it is not there yet. Safe across processes.

    Args:
        requirements: locked, with hashes.

    Raises:
        LocalError: the packages cannot be installed.
    """
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    tag = sys.implementation.cache_tag
    folder = cache_dir() / "environments" / f"stub-{tag}-{digest}"
    if _usable(folder):
        return folder
    with exclusive(folder.name):
        if not _usable(folder):
            if report:
                report("installing what the model server runs on: OpenVINO, NumPy")
            _install(folder, requirements)
    return folder


def _usable(folder: Path) -> bool:
    # The link is broken when the interpreter that made the environment has been removed.
    return (folder / "bin" / "python3").exists()


def _install(folder: Path, requirements: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    with new_folder(folder) as temporary:
        venv.EnvBuilder(with_pip=False, symlinks=True).create(temporary)
        command = [sys.executable, "-m", "pip", "--python", str(temporary / "bin" / "python3")]
        command += ["install", "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--no-compile"]
        command += ["-r", str(requirements)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if finished.returncode != 0:
            lines = finished.stderr.strip().splitlines() or ["pip gave no reason"]
            raise LocalError(
                f"cannot install the model server's packages ({requirements.name}): {lines[-1]} "
                "Check the network and pip's configuration (`pip config list`)."
            )
