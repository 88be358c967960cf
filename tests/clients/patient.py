"""The examples for clients, with more time than they have: on a busy machine 1.5 s may pass before
the first connection is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVICE_CONFIG = Path("proto/llmrouter/v1/routing_grpc_service_config.json")


def patient(example: str, folder: Path) -> Path:
    """Copies the example, and beside it `proto` with another timeout in the service config."""
    copied = folder / "examples/clients" / example
    copied.parent.mkdir(parents=True)
    shutil.copy(ROOT / "examples/clients" / example, copied)
    shutil.copytree(ROOT / "proto", folder / "proto")
    config = json.loads((ROOT / SERVICE_CONFIG).read_text())
    config["methodConfig"][0]["timeout"] = "60s"
    (folder / SERVICE_CONFIG).write_text(json.dumps(config))
    return copied
