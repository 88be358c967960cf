"""A Node.js client, made from the .proto files, against a real server on a real port."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sidecar.local import LocalError, cache_dir, tool
from sidecar.local.cache import exclusive, new_folder
from tests.grpc_api.standins import serving

HERE = Path(__file__).parent
PROTO = HERE.parents[1] / "proto"

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


async def run_client(node: Path, modules: Path, address: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        node,
        HERE / "client.cjs",
        address,
        PROTO,
        env={**os.environ, "NODE_PATH": str(modules)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return json.loads(out)


async def test_node_client_routes_and_streams(node: Path, modules: Path) -> None:
    async with serving() as (server, _):
        result = await run_client(node, modules, f"127.0.0.1:{server.port}")

    decision = result["decision"]
    assert (decision["route"], decision["source"]) == ("billing", "DECISION_SOURCE_MODEL")
    assert decision["model"]["upstreamModel"] == "fast-1"
    assert decision["confidence"] == 0.75
    assert result["refused"] == {
        "code": 3,
        "details": "messages: is empty; send at least one message",
    }
    stream = result["stream"]
    assert {name: answer["result"] for name, answer in stream.items()} == {
        "first": "decision",
        "wrong": "error",
        "last": "decision",
    }
    assert stream["wrong"]["error"]["reason"] == "INVALID_REQUEST"
    assert stream["wrong"]["error"]["fieldViolations"][0]["field"] == "messages"
