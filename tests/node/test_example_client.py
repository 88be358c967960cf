"""The example in Node.js: the sidecar's model, or its own without one."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.clients.patient import patient
from tests.grpc_api.standins import serving

EXAMPLE = "node/route.cjs"
NOBODY = "127.0.0.1:1"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """As published, but patient."""
    return patient(EXAMPLE, tmp_path)


async def choose(node: Path, modules: Path, example: Path, address: str) -> tuple[str, str]:
    """Standard output and error."""
    process = await asyncio.create_subprocess_exec(
        node,
        example,
        address,
        "my-default",
        "Where is my invoice?",
        env={**os.environ, "NODE_PATH": str(modules)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return out.decode().strip(), err.decode().strip()


async def test_the_example_uses_the_sidecars_model(
    node: Path, modules: Path, example: Path
) -> None:
    async with serving() as (server, _):
        assert await choose(node, modules, example, f"127.0.0.1:{server.port}") == ("fast-1", "")


async def test_the_example_does_not_ask_a_proxy_for_the_internet(
    node: Path, modules: Path, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{NOBODY}")
    async with serving() as (server, _):
        assert await choose(node, modules, example, f"127.0.0.1:{server.port}") == ("fast-1", "")


async def test_the_example_has_a_model_without_a_sidecar(
    node: Path, modules: Path, example: Path
) -> None:
    assert await choose(node, modules, example, NOBODY) == ("my-default", "no routing: UNAVAILABLE")
