"""A Node.js client, made from the .proto files, against a real server on a real port."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from tests.grpc_api.standins import serving

HERE = Path(__file__).parent
PROTO = HERE.parents[1] / "proto"


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
