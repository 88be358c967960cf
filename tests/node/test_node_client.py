"""A Node.js client, made from the .proto files, against a real server on a real port."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import grpc

from tests.grpc_api.standins import serving
from tests.grpc_api.stored import stored
from tests.policies.stores import parts

HERE = Path(__file__).parent
PROTO = HERE.parents[1] / "proto"


async def run_client(node: Path, modules: Path, address: str, program: str = "client.cjs") -> Any:
    process = await asyncio.create_subprocess_exec(
        node,
        HERE / program,
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


async def test_node_client_changes_policies_and_resumes_watching(
    node: Path, modules: Path, tmp_path: Path
) -> None:
    async with stored(parts.sqlite(tmp_path, parts.policy())) as api:
        address = f"127.0.0.1:{api.server.port}"
        result = await run_client(node, modules, address, "policies.cjs")

    created, updated, back = (result[each] for each in ("created", "updated", "rolledBack"))
    assert (created["revision"], updated["revision"], back["revision"]) == (1, 2, 3)
    assert created["revisionInfo"]["author"] == "node"
    assert (updated["description"], back["description"]) == ("second", "first")
    assert result["conflict"]["code"] == grpc.StatusCode.ABORTED.value[0]
    assert updated["etag"] in result["conflict"]["details"]
    assert [each["number"] for each in result["before"]] == [1, 2, 3]
    assert [(each["number"], each["revision"]) for each in result["resumed"]] == [(4, 2), (5, 3)]
