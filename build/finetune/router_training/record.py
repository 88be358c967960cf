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


def write_record(folder: Path, facts: dict[str, Any]) -> None:
    """`run-TIME.json` in `folder`: `facts`, the command, and what it ran on."""
    record = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "revision": _revision(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "progress": json.loads((folder / "progress.json").read_text()),
        **facts,
    }
    name = time.strftime("run-%Y%m%dT%H%M%SZ.json", time.gmtime())
    (folder / name).write_text(json.dumps(record, indent=2) + "\n")


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
