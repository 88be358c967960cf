"""Keeps the graph as OpenVINO compiled it for this CPU, so that the next start need not.

OpenVINO's own cache is written in place and takes some cut files for whole ones, so it is given a
folder of its own for each compilation, which gets its final name only when complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import openvino as ov

_ABANDONED_AFTER_S = 3600.0


def compile_graph(graph: Path, options: dict[str, Any], folder: Path | None) -> ov.CompiledModel:
    """Compile `graph` for the CPU, or load what was kept in `folder` by an earlier call."""
    core = ov.Core()
    if folder is None:
        return core.compile_model(graph, "CPU", options)
    kept = folder / _key(core, graph, options)
    if kept.is_dir():
        return core.compile_model(graph, "CPU", _cached(options, kept))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix="new-", dir=folder))
    except OSError:  # read-only or full: the engine works without
        return core.compile_model(graph, "CPU", options)
    compiled = core.compile_model(graph, "CPU", _cached(options, new))
    _put_in_place(new, kept)
    return compiled


def _cached(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    # Not for size: the kept weights would be packed again at every start.
    return {**options, "CACHE_DIR": os.fsencode(folder).decode(), "CACHE_MODE": "OPTIMIZE_SPEED"}


def _key(core: ov.Core, graph: Path, options: dict[str, Any]) -> str:
    """All that OpenVINO's own key depends on: with an equal one it finds what it wrote."""
    files = [graph, graph.with_suffix(".bin")]
    facts = [
        ov.__version__,
        core.get_property("CPU", "FULL_DEVICE_NAME"),
        sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        sorted((name, str(value)) for name, value in options.items()),
        [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _put_in_place(new: Path, kept: Path) -> None:
    if not any(new.iterdir()):  # OpenVINO says nothing when it cannot write, e.g. on a full disk
        new.rmdir()
        return
    new.chmod(0o755)
    for other in kept.parent.iterdir():
        # What another process has just put there as `kept` may be read by a third one.
        fresh = other.name.startswith("new-") and _is_fresh(other)
        if other not in (new, kept) and not fresh:
            shutil.rmtree(other, ignore_errors=True)
    try:
        os.rename(new, kept)
    except OSError:  # another process was faster
        shutil.rmtree(new, ignore_errors=True)


def _is_fresh(folder: Path) -> bool:
    try:
        return time.time() - folder.stat().st_mtime < _ABANDONED_AFTER_S
    except OSError:  # another process, which starts now as well, has taken it away
        return True
