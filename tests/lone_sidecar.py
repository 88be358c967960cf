"""Settings of a whole sidecar whose model server is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidecar.config import Settings, load_settings
from sidecar.engines import EngineInfo
from sidecar.local import free_ports

Flags = dict[str, dict[str, Any]]
"""By section."""


def lone_flags(engine: EngineInfo, policies: Path) -> Flags:
    return {
        "server": {"grpc_address": "127.0.0.1:0", "http_address": "127.0.0.1:0"},
        "policies": {"paths": [policies]},
        "routing_model": {"directory": engine.path},
        "triton": {"address": f"127.0.0.1:{free_ports(1)[0]}"},
    }


def settings(flags: Flags) -> Settings:
    """What they make, whatever the environment says."""
    return load_settings(flags=flags, environ={})
