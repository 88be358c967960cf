"""The whole sidecar, without a model server: it starts, answers by fallback, and ends."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import ClientSession
from click.testing import CliRunner
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from sidecar._generated.envoy.service.ext_proc.v3.external_processor_pb2_grpc import (
    ExternalProcessorStub,
)
from sidecar._generated.llmrouter.v1 import decision_pb2, policy_pb2, routing_pb2
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.app import Sidecar
from sidecar.app_routing import StartupError
from sidecar.cli import cli
from sidecar.engines import EngineInfo
from sidecar.ext_proc.messages import BUFFERED
from sidecar.ext_proc.service import SERVICE
from sidecar.grpc_api import inline_policies
from tests.ext_proc.parts import request_body, request_headers, set_headers
from tests.ext_proc.standins import chat
from tests.grpc_api.standins import policy_message, route_request
from tests.lone_sidecar import Flags, lone_flags, settings
from tests.observability.otlp import attributes, collecting

POLICIES = """\
apiVersion: llmrouter.v1
kind: ModelCatalog
models:
  - id: acme/fast
    upstream_model: fast-1
    dialects: [openai-chat]
    prices: {input: 1, output: 2, as_of: 2020-01-01}
---
apiVersion: llmrouter.v1
kind: Policy
name: default
default: {models: [acme/fast]}
routes:
  - {name: billing, description: questions about invoices, models: [acme/fast]}
"""


@pytest.fixture
def flags(cpu_engine: EngineInfo, tmp_path: Path) -> Flags:
    policies = tmp_path / "policies.yaml"
    policies.write_text(POLICIES)
    return lone_flags(cpu_engine, policies)


async def test_answers_without_a_model_server_and_says_so(flags: Flags) -> None:
    sidecar = Sidecar(settings(flags))
    await sidecar.start()
    assert sidecar.admin is not None
    async with grpc.aio.insecure_channel(f"127.0.0.1:{sidecar.grpc.port}") as channel:
        decision = (await RoutingServiceStub(channel).Route(route_request())).decision
    async with ClientSession(f"http://127.0.0.1:{sidecar.admin.port}") as http:
        async with http.get("/status") as response:
            status = await response.json()
        # A policy in force keeps its counts, however often they are collected.
        for _ in range(2):
            async with http.get("/metrics") as response:
                metrics = await response.text()
    await sidecar.stop(0)

    counted = 'policy="namespaces/default/policies/default",reason="breaker_open",route="",'
    assert counted in metrics
    assert "llmrouter_models_price_stale 1.0" in metrics
    assert decision.source == decision_pb2.DECISION_SOURCE_FALLBACK
    assert decision.reason == decision_pb2.DECISION_REASON_BREAKER_OPEN
    assert decision.model.model == "acme/fast"
    assert status["ready"]
    assert status["degraded"]
    assert [each["name"] for each in status["policies"]] == ["namespaces/default/policies/default"]


async def test_the_console_tries_what_the_sidecar_decides_where_it_is_on(flags: Flags) -> None:
    flags["admin"] = {"console": True}
    sidecar = Sidecar(settings(flags))
    await sidecar.start()
    assert sidecar.admin is not None
    asked = {"messages": [{"role": "ROLE_USER", "parts": [{"text": "Where is my invoice?"}]}]}
    async with ClientSession(f"http://127.0.0.1:{sidecar.admin.port}") as http:
        async with http.post("/console/try", json=asked) as response:
            tried = await response.json()
        async with http.get("/console/decisions") as response:
            listed = (await response.json())["decisions"]
        async with http.get("/metrics") as response:
            metrics = await response.text()
    await sidecar.stop(0)

    assert (tried["reason"], tried["model"]) == ("breaker_open", "acme/fast")
    assert [each["decision_id"] for each in listed] == [tried["decision_id"]]
    # Counted as any other.
    assert 'llmrouter_chosen_models_total{model="acme/fast",source="fallback"} 1.0' in metrics


@pytest.mark.parametrize(
    ("address", "warned"), [("127.0.0.1:0", False), ("0.0.0.0:0", True)], ids=["loopback", "open"]
)
async def test_a_console_that_others_can_reach_is_warned_of(
    flags: Flags, log: io.StringIO, address: str, warned: bool
) -> None:
    flags["admin"] = {"console": True}
    flags["server"]["http_address"] = address

    Sidecar(settings(flags))

    assert ("admin.console switches it off" in log.getvalue()) is warned


async def test_without_the_setting_there_is_no_console(flags: Flags) -> None:
    sidecar = Sidecar(settings(flags))
    await sidecar.start()
    assert sidecar.admin is not None
    url = f"http://127.0.0.1:{sidecar.admin.port}/console"
    async with ClientSession() as http, http.get(url) as response:
        status = response.status
    await sidecar.stop(0)

    assert status == 404


async def test_checking_an_inline_policy_ends_with_the_configured_budget(
    flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, check = threading.Event(), inline_policies._checked

    def held_up(message: policy_pb2.Policy, *others: Any) -> Any:
        # The default alone is checked in the event loop.
        assert not message.routes or gate.wait(60)
        return check(message, *others)

    monkeypatch.setattr(inline_policies, "_checked", held_up)
    sidecar = Sidecar(settings({**flags, "routing": {"decision_budget_ms": 200}}))
    await sidecar.start()
    request = route_request()
    request.inline_policy.CopyFrom(policy_message())
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{sidecar.grpc.port}") as channel:
            answer = await RoutingServiceStub(channel).Route(request, timeout=50)
    finally:
        gate.set()
        await sidecar.stop(0)

    assert answer.decision.reason == decision_pb2.DECISION_REASON_WARMING
    assert answer.decision.model.model == "acme/fast"


async def test_envoy_is_served_on_a_socket_of_its_own(flags: Flags, tmp_path: Path) -> None:
    path = tmp_path / "envoy.sock"
    flags["ext_proc"] = {"uds_path": path, "notice_ms": 0}
    sidecar = Sidecar(settings(flags))
    await sidecar.start()
    assert sidecar.admin is not None
    mode = stat.S_IMODE(path.stat().st_mode)
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        health: Any = HealthStub(channel)
        checked = await health.Check(HealthCheckRequest(service=SERVICE), timeout=60)
        stub: Any = ExternalProcessorStub(channel)
        call = stub.Process(timeout=60)
        head = request_headers({"content-type": "application/json"})
        head.protocol_config.request_body_mode = BUFFERED
        await call.write(head)
        await call.read()
        await call.write(request_body(chat("Where is my invoice?")))
        answer = await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as other:
            await RoutingServiceStub(channel).Route(route_request(), timeout=60)
    metrics_url = f"http://127.0.0.1:{sidecar.admin.port}/metrics"
    async with ClientSession() as http, http.get(metrics_url) as response:
        metrics = await response.text()
    await sidecar.stop(0)

    assert mode == 0o660
    assert checked.status == HealthCheckResponse.SERVING
    assert set_headers(answer.request_body.response)["x-llm-model"] == b"acme/fast"
    assert other.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert f'llmrouter_grpc_requests_total{{code="ok",method="{SERVICE}/Process"}} 1.0' in metrics
    assert not path.exists()


async def test_spans_are_exported_when_it_stops_and_hold_no_message_text(flags: Flags) -> None:
    flags["logging"] = {"log_message_text": True}
    with collecting() as collector:
        flags["tracing"] = {"endpoint": f"http://127.0.0.1:{collector.port}"}
        sidecar = Sidecar(settings(flags))
        await sidecar.start()
        assert sidecar.admin is not None
        async with grpc.aio.insecure_channel(f"127.0.0.1:{sidecar.grpc.port}") as channel:
            request = route_request("my account is 4711-0815")
            request.explain = True
            decision = (await RoutingServiceStub(channel).Route(request)).decision
        await sidecar.stop(0)

    (span,) = collector.spans
    assert attributes(span.attributes)["llmrouter.decision_id"] == decision.decision_id
    assert [step.name for step in span.events][-1] == "selection"
    assert span.end_time_unix_nano > span.start_time_unix_nano
    assert b"4711-0815" not in collector.requests[0].SerializeToString()


Spoil = Callable[[Flags, Path], object]


def write(flags: Flags, tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(text)
    flags["policies"]["paths"] = [path]


WRONG: dict[str, tuple[Spoil, str]] = {
    "no routing model": (
        lambda f, p: f["routing_model"].pop("directory"),
        "routing_model.directory is not set",
    ),
    "not a routing model": (
        lambda f, p: f["routing_model"].update(directory=p),
        "is not an engine directory",
    ),
    "no policies": (lambda f, p: f["policies"].pop("paths"), "policies.paths is empty"),
    "wrong policy": (
        lambda f, p: write(f, p, POLICIES.replace("models: [acme/fast]}", "models: [gone]}")),
        "unknown model",
    ),
    "no default policy": (
        lambda f, p: f["policies"].update(default_policy="gone"),
        "no policy namespaces/default/policies/gone for requests that name none; name one so, or "
        "set SIDECAR_POLICIES__DEFAULT_POLICY to one of these: namespaces/default/policies/",
    ),
    "unknown prompt format": (
        lambda f, p: f["routing_model"].update(prompt_format="gone"),
        "prompt format 'gone' does not exist",
    ),
    "prompts too short for any policy": (
        lambda f, p: f["routing_model"].update(max_prompt_tokens=64),
        "prompts may have 64 tokens, too few for any policy",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_cannot_work_say_what_to_do(name: str, flags: Flags, tmp_path: Path) -> None:
    spoil, says = WRONG[name]
    spoil(flags, tmp_path)

    with pytest.raises(StartupError) as refused:
        Sidecar(settings(flags))

    assert says in str(refused.value)


async def test_longest_prompts_leave_room_for_the_answer(
    flags: Flags, cpu_engine: EngineInfo
) -> None:
    room = cpu_engine.router.context_length - 96
    flags["routing_model"]["max_prompt_tokens"] = room
    Sidecar(settings(flags))
    flags["routing_model"]["max_prompt_tokens"] = room + 1
    with pytest.raises(StartupError) as refused:
        Sidecar(settings(flags))

    assert f"routing_model.max_prompt_tokens is {room + 1}" in str(refused.value)
    assert f"make it {room} or less" in str(refused.value)


@pytest.mark.parametrize("key", ["grpc_address", "http_address"])
async def test_port_in_use_ends_the_start_and_closes_what_was_opened(
    flags: Flags, key: str
) -> None:
    first = Sidecar(settings(flags))
    await first.start()
    assert first.admin is not None
    taken = {"grpc_address": first.grpc.port, "http_address": first.admin.port}[key]
    flags["server"][key] = f"127.0.0.1:{taken}"

    with pytest.raises(StartupError, match="another process listens there"):
        await Sidecar(settings(flags)).start()

    await first.stop(0)


@asynccontextmanager
async def process(flags: Flags, tmp_path: Path) -> AsyncIterator[tuple[Any, dict[str, Any]]]:
    """`sidecar serve` as a process, and its first log entry about serving."""
    config = tmp_path / "settings.json"
    config.write_text(settings(flags).model_dump_json())
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar.cli", "serve", "--config", str(config),
        stderr=asyncio.subprocess.PIPE,
        env={key: value for key, value in os.environ.items() if not key.startswith("SIDECAR_")},
    )  # fmt: skip
    try:
        yield running, await entry(running, "serving")
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


async def entry(running: Any, event: str) -> dict[str, Any]:
    async for line in running.stderr:
        if line.startswith(b"{"):
            read: dict[str, Any] = json.loads(line)
            if read["event"].startswith(event):
                return read
    raise AssertionError(f"the process ended without an entry {event!r}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_it_well(flags: Flags, tmp_path: Path, number: signal.Signals) -> None:
    async with process(flags, tmp_path) as (running, _):
        running.send_signal(number)

        await entry(running, "stopped")
        assert await running.wait() == 0


async def test_its_log_can_be_reported_on(flags: Flags, tmp_path: Path) -> None:
    async with process(flags, tmp_path) as (running, serving):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{serving['port']}") as channel:
            routing = RoutingServiceStub(channel)
            await routing.Route(route_request())
            named = route_request()
            named.model = "acme/fast"
            await routing.Route(named)
        running.send_signal(signal.SIGTERM)
        log, out = tmp_path / "sidecar.log", tmp_path / "report.json"
        log.write_bytes(await running.stderr.read())
    catalog = ["--catalog", str(tmp_path / "policies.yaml"), "--tokens", "1000:300"]
    result = CliRunner().invoke(cli, ["report", str(log), *catalog, "--json", str(out)])

    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert report["log"]["skipped"] > 0, "it logs its end as well"
    assert report["log"]["unreadable"] == 0
    policy = report["policies"]["namespaces/default/policies/default"]
    assert policy["sources"] == {"fallback": 1, "override": 1}
    assert policy["overridden"] == {"acme/fast": 1}
    assert policy["price"]["per_1000_requests"]["routed"] == 1.6
    assert policy["price"]["left_out"] == {"override": 1, "unpriced": {}}


async def test_collector_that_hangs_does_not_hold_up_the_end(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        flags["tracing"] = {"endpoint": f"http://127.0.0.1:{hanging.getsockname()[1]}"}
        async with process(flags, tmp_path) as (running, serving):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{serving['port']}") as channel:
                await RoutingServiceStub(channel).Route(route_request())
            running.send_signal(signal.SIGTERM)

            await entry(running, "stopping:")
            began = time.monotonic()
            await entry(running, "stopped")
            assert await running.wait() == 0
    # Fewer seconds than one export may take.
    assert time.monotonic() - began < 60


async def test_second_signal_does_not_wait_for_calls_in_flight(
    flags: Flags, tmp_path: Path
) -> None:
    """An open stream that nobody reads, full of answers, would keep it for the whole grace period:
    the test would time out."""
    flags["server"]["drain_seconds"] = 3600
    async with (
        process(flags, tmp_path) as (running, serving),
        grpc.aio.insecure_channel(f"127.0.0.1:{serving['port']}", SMALL_WINDOW) as channel,
    ):
        unread = UnreadStream(channel)
        await unread.stalled()
        running.send_signal(signal.SIGTERM)
        await entry(running, "stopping:")
        running.send_signal(signal.SIGTERM)

        await entry(running, "stopping now")
        assert await running.wait() == 0
        unread.writing.cancel()


SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
"""A caller whose flow-control window is soon full."""


class UnreadStream:
    """Sends requests and reads no answer, until nothing more can be sent."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call = RoutingServiceStub(channel).StreamRoute()
        self._sent = 0
        self.writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while True:
            message = routing_pb2.StreamRouteRequest(
                request_id=str(self._sent), request=route_request("x" * 50_000)
            )
            await self._call.write(message)
            self._sent += 1

    async def stalled(self) -> None:
        """Something was sent, and nothing more for a while."""
        before, looks = 0, 0
        while looks < 4:
            await asyncio.sleep(0.25)
            looks = looks + 1 if 0 < self._sent == before else 0
            before = self._sent
