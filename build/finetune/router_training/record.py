"""What was run: one file per sitting, so that a resumed run keeps its history."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from router_training.files import written_whole


def begin_record(folder: Path, facts: dict[str, Any]) -> Path:
    """`run-TIME.json` in `folder`: `facts`, the command, and what it runs on. A run that is
    interrupted leaves it so.

    Raises OSError, InputError if it cannot be written: no checkpoint could be, later.
    """
    record = {
        "began": _now("%Y-%m-%dT%H:%M:%SZ"),
        "command": sys.argv,
        "revision": _revision(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        **facts,
    }
    path = folder / _now("run-%Y%m%dT%H%M%SZ.json")
    _write(path, record)
    return path


def end_record(path: Path, facts: dict[str, Any]) -> None:
    """Adds `facts`, and how far the run came. Raises OSError, InputError."""
    record = json.loads(path.read_text())
    progress = json.loads((path.parent / "progress.json").read_text())
    _write(path, {"finished": _now("%Y-%m-%dT%H:%M:%SZ"), **record, "progress": progress, **facts})


def _write(path: Path, record: dict[str, Any]) -> None:
    with written_whole(path) as file:
        file.write_text(json.dumps(record, indent=2) + "\n")


def _now(form: str) -> str:
    return time.strftime(form, time.gmtime())


def _revision() -> str:
    """Of this repository; empty where git or the repository is missing."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip()
