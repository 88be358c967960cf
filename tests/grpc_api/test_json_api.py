"""Decisions as JSON over HTTP: the configuration that is shipped for it, in a real Envoy."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientSession

from sidecar.core.decision import RoutingRequest
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.grpc_api.server import GrpcServer, ServerOptions
from sidecar.local import EnvoyServer, free_ports
from sidecar.observability.metrics import Metrics
from tests.grpc_api.standins import StandInRouter, registry

ROOT = Path(__file__).parents[2]
CONFIG = (ROOT / "docker" / "envoy" / "json_api.yaml").read_text()
DESCRIPTORS = "sidecar/_generated/llmrouter.v1.binpb"
ROUTING = "/llmrouter.v1.RoutingService"
ASKED = {"messages": [{"role": "ROLE_USER", "parts": [{"text": "I was charged twice"}]}]}

pytestmark = pytest.mark.asyncio(loop_scope="module")


def _replaced(config: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert config.count(old) == 1, old
        config = config.replace(old, new)
    return config


async def _known_policies(request: RoutingRequest) -> None:
    if request.policy.name == "gone":
        raise SidecarError(ErrorCode.POLICY_NOT_FOUND, "there is no policy gone")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def http() -> AsyncIterator[ClientSession]:
    router = StandInRouter()
    router.behavior = _known_policies
    server = GrpcServer(router, registry(), Metrics(), ServerOptions())
    await server.start()
    port = free_ports(1)[0]
    config = _replaced(
        CONFIG,
        {
            "port_value: 8080": f"port_value: {port}",
            "port_value: 50051": f"port_value: {server.port}",
            f"proto_descriptor: {DESCRIPTORS}": f"proto_descriptor: {ROOT / DESCRIPTORS}",
        },
    )
    async with EnvoyServer(config), ClientSession(f"http://127.0.0.1:{port}") as session:
        yield session
    await server.stop(0)


async def _post(
    http: ClientSession, path: str, body: Any, kind: str, host: str = "localhost"
) -> tuple[int, Any]:
    headers = {"content-type": kind, "host": host}
    async with http.post(path, data=json.dumps(body), headers=headers) as response:
        text = await response.text()
    return response.status, json.loads(text) if text.startswith("{") else text


async def test_a_decision(http: ClientSession) -> None:
    status, answer = await _post(http, f"{ROUTING}/Route", ASKED, "application/json")

    assert status == 200
    assert answer["decision"]["route"] == "billing"
    assert answer["decision"]["source"] == "DECISION_SOURCE_MODEL"


async def test_decisions_of_a_batch(http: ClientSession) -> None:
    batch = {"requests": [ASKED, {}]}

    status, answer = await _post(http, f"{ROUTING}/BatchRoute", batch, "application/json")

    assert status == 200
    assert answer["results"][0]["decision"]["route"] == "billing"
    assert answer["results"][1]["error"]["reason"] == "INVALID_REQUEST"


@pytest.mark.parametrize(
    ("body", "expected", "reason"),
    [({}, 400, "INVALID_REQUEST"), ({**ASKED, "policy": "gone"}, 404, "POLICY_NOT_FOUND")],
    ids=["empty", "unknown policy"],
)
async def test_an_error_has_its_http_status_and_is_json(
    http: ClientSession, body: Any, expected: int, reason: str
) -> None:
    status, answer = await _post(http, f"{ROUTING}/Route", body, "application/json")

    assert status == expected
    assert answer["details"][0]["reason"] == reason
    assert answer["message"]


async def test_what_is_wrong_is_named_field_by_field(http: ClientSession) -> None:
    _, answer = await _post(http, f"{ROUTING}/Route", {}, "application/json")

    assert answer["details"][1]["fieldViolations"][0]["field"] == "messages"


async def test_a_key_that_the_api_has_not_is_passed_over(http: ClientSession) -> None:
    body = {**ASKED, "polcy": "gone"}

    assert (await _post(http, f"{ROUTING}/Route", body, "application/json"))[0] == 200


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (f"{ROUTING}/Route", "text/plain"),
        (f"{ROUTING}/Rout", "application/json"),
        ("/llmrouter.v1.PolicyService/ListPolicies", "application/json"),
    ],
    ids=["what a page of another site can send", "no method", "policies"],
)
async def test_nothing_else_gets_to_the_sidecar(http: ClientSession, path: str, kind: str) -> None:
    status, _ = await _post(http, path, ASKED, kind)

    assert status == 404


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1:8080", 200), ("localhost:8080", 200), ("elsewhere.example:8080", 404)],
)
async def test_only_by_the_names_of_this_machine(
    http: ClientSession, host: str, expected: int
) -> None:
    status, _ = await _post(http, f"{ROUTING}/Route", ASKED, "application/json", host)

    assert status == expected
