"""The published service config and the example in Python, against a real server and without one."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar.config import RoutingSettings
from sidecar.core.decision import RoutingRequest
from sidecar.core.errors import ErrorCode, SidecarError
from tests.clients.patient import ROOT, SERVICE_CONFIG, patient
from tests.grpc_api.standins import StandInRouter, serving

CONFIG = ROOT / SERVICE_CONFIG
EXAMPLE = "python/route.py"
NOBODY = "127.0.0.1:1"


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("route_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def published() -> Any:
    return loaded(ROOT / "examples/clients" / EXAMPLE)


@pytest.fixture
def example(tmp_path: Path) -> Any:
    """As published, but patient."""
    return loaded(patient(EXAMPLE, tmp_path))


async def choose(example: Any, address: str) -> str:
    models = example.Models(address, "my-default")
    return str(await asyncio.to_thread(models.choose, "Where is my invoice?"))


def test_every_method_of_the_service_config_exists() -> None:
    service = routing_pb2.DESCRIPTOR.services_by_name["RoutingService"]
    named = json.loads(CONFIG.read_text())["methodConfig"][0]["name"]

    assert {each["service"] for each in named} == {service.full_name}
    assert {each["method"] for each in named} <= set(service.methods_by_name)


def test_callers_wait_longer_than_a_decision_may_take() -> None:
    method = json.loads(CONFIG.read_text())["methodConfig"][0]

    assert float(method["timeout"].removesuffix("s")) * 1000 > RoutingSettings().decision_budget_ms
    assert method["waitForReady"] is False


def test_the_timeout_is_given_with_the_call_and_the_rest_as_published(published: Any) -> None:
    """See https://github.com/grpc/grpc/issues/34547."""
    config, timeout_s = published.service_config()
    whole = json.loads(CONFIG.read_text())
    timeout = whole["methodConfig"][0].pop("timeout")

    assert (json.loads(config), f"{timeout_s}s") == (whole, timeout)


async def test_the_example_uses_the_sidecars_model(example: Any) -> None:
    async with serving() as (server, _):
        assert await choose(example, f"127.0.0.1:{server.port}") == "fast-1"


async def test_the_example_does_not_ask_a_proxy_for_the_internet(
    example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{NOBODY}")
    async with serving() as (server, _):
        assert await choose(example, f"127.0.0.1:{server.port}") == "fast-1"


async def test_the_example_has_a_model_without_a_sidecar(
    example: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert await choose(example, NOBODY) == "my-default"
    assert caplog.messages == ["no routing: UNAVAILABLE"]


@pytest.mark.parametrize(
    ("code", "calls"), [(ErrorCode.DRAINING, 2), (ErrorCode.INVALID_REQUEST, 1)]
)
async def test_what_may_be_answered_elsewhere_is_asked_once_more(
    example: Any, code: ErrorCode, calls: int
) -> None:
    seen: list[RoutingRequest] = []
    router = StandInRouter()
    router.behavior = refusing(code, seen)
    async with serving(router) as (server, _):
        chosen = await choose(example, f"127.0.0.1:{server.port}")

    assert (chosen, len(seen)) == ("my-default", calls)


def refusing(code: ErrorCode, seen: list[RoutingRequest]) -> Callable[[RoutingRequest], Any]:
    async def behavior(request: RoutingRequest) -> None:
        seen.append(request)
        raise SidecarError(code, "refused")

    return behavior


async def test_a_sidecar_that_hangs_is_given_up(
    published: Any, caplog: pytest.LogCaptureFixture
) -> None:
    router = StandInRouter()
    router.behavior = hanging
    async with serving(router) as (server, _):
        assert await choose(published, f"127.0.0.1:{server.port}") == "my-default"

    assert "no routing: DEADLINE_EXCEEDED" in caplog.messages


async def hanging(request: RoutingRequest) -> None:
    await asyncio.sleep(60)


def test_a_call_with_too_little_says_what_belongs_there() -> None:
    command = [sys.executable, str(ROOT / "examples/clients" / EXAMPLE), "127.0.0.1:50051"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert "route.py ADDRESS DEFAULT_MODEL TEXT" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_code_for_a_service_of_ones_own_is_generated_as_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "examples/clients/README.md").read_text()
    (command,) = re.findall("^python (-m grpc_tools.+)$", page, re.MULTILINE)
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    (tmp_path / "gen").mkdir()
    called = (
        "from llmrouter.v1 import routing_pb2, routing_pb2_grpc;"
        "routing_pb2_grpc.RoutingServiceStub, routing_pb2.RouteRequest"
    )

    subprocess.run(["bash", "-c", f"{sys.executable} {command}"], cwd=tmp_path, check=True)
    # Isolated: without the code of this repository.
    code = f"import sys; sys.path.insert(0, 'gen'); {called}"
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
