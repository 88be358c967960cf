"""Policies tried out on the routing model that comes along, through a whole sidecar and a real
Triton: examples as tests and as a gate, overlaps of routes.

The routes are far apart and the examples plain, so that another version of the model, and another
CPU's rounding, decide the same. How well lint does on many policies:
`python -m sidecar.bench.lint`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar._generated.llmrouter.v1.policy_pb2_grpc import PolicyServiceStub
from sidecar.app import Sidecar
from sidecar.config import load_settings
from sidecar.engines import EngineInfo
from sidecar.grpc_api.convert.policies import policy_to_proto
from sidecar.local import TritonServer
from sidecar.policies import load_policies
from tests.grpc_api.refusals import refused

pytestmark = pytest.mark.asyncio(loop_scope="module")

CATALOG = Path(__file__).parents[1] / "policies" / "overlaps" / "catalog.yaml"
HEAD = """\
apiVersion: llmrouter.v1
kind: Policy
name: shop
default: {models: [small]}
routes:
"""
STATUS = """\
  - name: order_status
    description: Where an order is and when the parcel will arrive.
    models: [small]
    examples: ["When will my parcel arrive?"]
"""
REFUNDS = """\
  - name: refunds
    description: Getting money back for something that was bought.
    models: [large]
    examples: ["I want my money back for the broken lamp."]
"""
RETURNS = """\
  - name: returns
    description: Sending purchased items back and being reimbursed for them.
    models: [large]
    examples: ["How do I send these shoes back and get reimbursed?"]
"""
RECIPES = """\
  - name: recipes
    description: Recipes and how to cook dishes.
    models: [small]
    examples: ["Where is my parcel? The tracking number does not work."]
"""


@dataclass(frozen=True)
class Running:
    address: str
    policies: PolicyServiceStub

    async def policy(self, command: str, file: Path) -> tuple[int | None, list[dict[str, Any]]]:
        """Exit status and output of `sidecar policy COMMAND`."""
        options = ["--address", self.address, "--output", "json"]
        if command == "lint":
            options.append("--by-model")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sidecar.cli", "policy", command, str(file), *options),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        return process.returncode, json.loads(output)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(
    triton: TritonServer, cpu_engine: EngineInfo, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("trial")
    settings = load_settings(
        flags={
            "server": {"grpc_address": "127.0.0.1:0", "http_address": ""},
            "policies": {
                "paths": (CATALOG, written(folder / "seed.yaml", STATUS)),
                "default_policy": "shop",
            },
            "policy_store": {"url": f"sqlite:{folder / 'policies.db'}"},
            # A policy that is read for the first time, on a busy machine.
            "routing": {"decision_budget_ms": 30_000},
            "triton": {"address": triton.grpc_address},
            "routing_model": {"directory": cpu_engine.path},
        },
        environ={},
    )
    sidecar = Sidecar(settings)
    await sidecar.start()
    try:
        address = f"127.0.0.1:{sidecar.grpc.port}"
        async with grpc.aio.insecure_channel(address) as channel:
            yield Running(address, PolicyServiceStub(channel))
    finally:
        await sidecar.stop(1)


def written(file: Path, *routes: str) -> Path:
    file.write_text(HEAD + "".join(routes))
    return file


async def test_examples_are_routed_by_the_model(running: Running, tmp_path: Path) -> None:
    file = written(tmp_path / "shop.yaml", STATUS, REFUNDS, RECIPES)

    status, results = await running.policy("test", file)

    assert status == 1
    told = {each["expected"]: (each["route"], each["passed"]) for each in results}
    assert told == {
        "order_status": ("order_status", True),
        "refunds": ("refunds", True),
        "recipes": ("order_status", False),
    }


async def test_example_that_goes_astray_keeps_a_policy_out(
    running: Running, tmp_path: Path
) -> None:
    async def update(*routes: str) -> policy_pb2.Policy:
        file = written(tmp_path / "shop.yaml", *routes)
        (policy,) = load_policies([CATALOG, file]).policies
        return await running.policies.UpdatePolicy(
            policy_pb2.UpdatePolicyRequest(
                policy=policy_to_proto(policy), require_examples_pass=True
            ),
            timeout=120,
        )

    accepted = await update(STATUS, REFUNDS)
    error = await refused(update(STATUS, RECIPES))

    assert accepted.revision == 2
    assert (error.reason, error.fields) == ("EXAMPLES_FAILED", ("policy.routes[1].examples[0]",))
    name = policy_pb2.GetPolicyRequest(name="namespaces/default/policies/shop")
    assert (await running.policies.GetPolicy(name)).revision == 2


async def test_lint_finds_the_routes_that_take_each_others_requests(
    running: Running, tmp_path: Path
) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(CATALOG.read_text() + "---\n" + HEAD + STATUS + REFUNDS + RETURNS)

    _, findings = await running.policy("lint", file)

    found = [each for each in findings if each["path"].endswith(".description")]
    assert [each["path"] for each in found] == ["routes[2].description"]
    assert 'overlaps that of "refunds" (routes[1])' in found[0]["message"]
