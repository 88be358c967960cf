"""Reads `tools.lock`: which wheels carry the programs and data that we unpack."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.local.errors import LocalError

_HERE = Path(__file__).resolve().parent
_TAGS = re.compile(r"-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)\.whl$")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Wheel:
    """One file of a tool. `platform` is `any` or as `sidecar.local.preflight.platform_tag` says."""

    platform: str
    file: str
    sha256: str

    def tags(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Python, ABI and platform tags in the file's name, as the wheel format defines them."""
        match = _TAGS.search(self.file)
        assert match is not None, "checked when the lock file was read"
        python, abi, platform = (tuple(match[key].split(".")) for key in _TAGS.groupindex)
        return python, abi, platform


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    version: str
    purpose: str
    wheels: tuple[Wheel, ...]

    def wheel_for(self, platform: str) -> Wheel:
        """The wheel for `platform`. Raises LocalError if there is none."""
        for wheel in self.wheels:
            if wheel.platform in (platform, "any"):
                return wheel
        known = ", ".join(wheel.platform for wheel in self.wheels)
        raise LocalError(
            f"{self.name} {self.version} ({self.purpose}) is not available for {platform}, "
            f"only for {known}."
        )


def lock_path() -> Path:
    """`tools.lock`, inside the installed package or at the root of the source tree."""
    packaged = _HERE / "tools.lock"
    return packaged if packaged.exists() else _HERE.parents[1] / "tools.lock"


def read_lock(path: Path | None = None) -> dict[str, Tool]:
    """Tools by name.

    Raises:
        LocalError: the file is missing or wrong; names the entry.
    """
    path = path or lock_path()
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise LocalError(f"cannot read {path}: {error}") from error
    if document.get("version") != 1:
        raise LocalError(f"{path}: version is {document.get('version')!r}, expected 1")
    tools = [_tool(entry, path) for entry in document.get("tool", [])]
    return {tool.name: tool for tool in tools}


def _tool(entry: dict[str, Any], path: Path) -> Tool:
    where = f"{path}: tool {entry.get('name')!r}"
    try:
        wheels = tuple(Wheel(**wheel) for wheel in entry["wheel"])
        tool = Tool(entry["name"], entry["version"], entry.get("purpose", ""), wheels)
    except (KeyError, TypeError) as error:
        raise LocalError(f"{where}: missing or unknown key: {error}") from error
    for wheel in wheels:
        if not _TAGS.search(wheel.file) or "/" in wheel.file:
            raise LocalError(f"{where}: file {wheel.file!r} is not the name of a wheel")
        if not _SHA256.fullmatch(wheel.sha256):
            raise LocalError(f"{where}: sha256 of {wheel.file} is not 64 lower-case hex digits")
    return tool
