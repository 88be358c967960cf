"""Writes a fitted temperature into an engine directory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sidecar.engines.engine_directory import MANIFEST, ROUTER, read_engine, sha256_of


def write_temperature(engine: Path, temperature: float) -> None:
    """Sets the temperature that decisions are made at in router.json, and the file's size and hash
    in the manifest.

    Raises:
        EngineError: `engine` is not an engine directory.
        OSError: it cannot be written.
    """
    read_engine(engine)
    facts = _read(engine / ROUTER)
    if facts.get("second_opinion"):
        facts["second_opinion"]["fusion"]["temperature"] = temperature
    else:
        facts["temperature"] = temperature
    facts["temperature_fitted"] = True
    _write(engine / ROUTER, facts)
    manifest = _read(engine / MANIFEST)
    router = engine / ROUTER
    manifest["files"][ROUTER] = {"sha256": sha256_of(router), "bytes": router.stat().st_size}
    _write(engine / MANIFEST, manifest)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _write(path: Path, content: dict[str, Any]) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)
