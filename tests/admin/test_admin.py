"""Health and metrics over a real HTTP port."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import ClientSession
from prometheus_client import generate_latest

from sidecar import __version__
from sidecar.admin import AdminServer
from sidecar.observability.metrics import LoadedPolicy, Metrics, SidecarState, TargetState

HEALTHY = SidecarState(
    ready=True,
    degraded="",
    routing_model="smol",
    prompt_format="compact-v1",
    policies=(LoadedPolicy("namespaces/default/policies/support", 3, "sha256:00", 12),),
    waiting=2,
)
DEGRADED = replace(HEALTHY, degraded="Triton cannot be reached")
STOPPING = replace(HEALTHY, ready=False)


@dataclass
class Running:
    """A server whose state the test sets."""

    base: str
    http: ClientSession
    state: SidecarState = HEALTHY
    metrics: Metrics = field(default_factory=Metrics)

    async def get(self, path: str) -> tuple[int, str]:
        async with self.http.get(self.base + path) as response:
            return response.status, await response.text()


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with ClientSession() as http:
        served = Running("", http)
        served.metrics.watch(lambda: served.state)
        server = AdminServer(
            "127.0.0.1:0", served.metrics, lambda: served.state, lambda: served.state.ready
        )
        await server.start()
        served.base = f"http://127.0.0.1:{server.port}"
        yield served
        await server.stop()


@pytest.mark.parametrize(
    ("state", "live", "ready"),
    [(HEALTHY, 200, 200), (DEGRADED, 200, 200), (STOPPING, 200, 503)],
    ids=["healthy", "degraded", "stopping"],
)
async def test_probes_depend_on_the_sidecar_alone(
    running: Running, state: SidecarState, live: int, ready: int
) -> None:
    running.state = state

    assert (await running.get("/healthz"))[0] == live
    assert (await running.get("/readyz"))[0] == ready


async def test_the_root_names_the_paths(running: Running) -> None:
    status, text = await running.get("/")

    named = text.partition(": ")[2].strip().split(", ")
    assert named == ["/healthz", "/metrics", "/readyz", "/status"]
    assert {status, *[(await running.get(path))[0] for path in named]} == {200}


async def test_probes_do_not_gather_the_whole_state() -> None:
    """It takes milliseconds where there are thousands of policies, and may have a defect."""

    def state() -> SidecarState:
        raise AssertionError("asked")

    server = AdminServer("127.0.0.1:0", Metrics(), state, lambda: True)
    await server.start()
    async with ClientSession(f"http://127.0.0.1:{server.port}") as http:
        for path in ("/healthz", "/readyz"):
            async with http.get(path) as response:
                assert response.status == 200
    await server.stop()


@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        b"GET /status HTTP/1.1\r\na b\r\n\r\n",
    ],
    ids=["gRPC", "TLS", "header"],
)
async def test_what_is_no_http_is_no_error_in_the_log(
    running: Running, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.base.split(":")[-1]))
    writer.write(sent)

    assert b" 400 " in await reader.readline()
    writer.close()
    assert not caplog.records


async def test_defect_is_an_error_in_the_log(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.state = None  # type: ignore[assignment]

    assert (await running.get("/status"))[0] == 500
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_status_tells_what_is_running(running: Running) -> None:
    running.state = DEGRADED
    async with running.http.get(running.base + "/status") as response:
        status = await response.json()

    assert status.pop("uptime_seconds") >= 0
    assert status == {
        "version": __version__,
        "ready": True,
        "degraded": "Triton cannot be reached",
        "cached": 0,
        "cached_bytes": 0,
        "pinned": 0,
        "latencies": [],
        "compiled": 0,
        "compiled_bytes": 0,
        "models": 0,
        "models_unpriced": 0,
        "prices_stale": 0,
        "prices_undated": 0,
        "prices_oldest": "",
        "targets": [],
        "routing_model": "smol",
        "prompt_format": "compact-v1",
        "policies": [
            {
                "name": "namespaces/default/policies/support",
                "revision": 3,
                "digest": "sha256:00",
                "routes": 12,
            }
        ],
        "waiting": 2,
        "policy_store": {"problem": "", "change": 0, "refused": []},
    }


@pytest.mark.parametrize(("state", "up"), [(HEALTHY, "1.0"), (DEGRADED, "0.0")])
async def test_metrics_show_the_state(running: Running, state: SidecarState, up: str) -> None:
    running.state = state

    status, text = await running.get("/metrics")

    assert status == 200
    assert f"llmrouter_routing_model_up {up}" in text
    assert "llmrouter_decisions_waiting 2.0" in text
    assert 'llmrouter_build_info{grpc="' in text
    assert 'policy="namespaces/default/policies/support"' in text


async def test_scraper_that_wants_openmetrics_gets_it(running: Running) -> None:
    headers = {"Accept": "application/openmetrics-text; version=1.0.0"}
    async with running.http.get(running.base + "/metrics", headers=headers) as response:
        assert response.content_type == "application/openmetrics-text"
        assert (await response.text()).endswith("# EOF\n")


@pytest.mark.parametrize(
    ("path", "holds"), [("/metrics", "llmrouter_ready 1.0"), ("/status", '"routes": 12')]
)
async def test_what_is_long_is_written_beside_the_event_loop(
    running: Running, monkeypatch: pytest.MonkeyPatch, path: str, holds: str
) -> None:
    threads: list[str] = []

    def noting(encode: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            threads.append(threading.current_thread().name)
            return encode(*args, **kwargs)

        return noted

    chosen = (noting(generate_latest), "text/plain")
    monkeypatch.setattr("sidecar.admin.server.choose_encoder", lambda accept: chosen)
    monkeypatch.setattr("sidecar.admin.server.json.dumps", noting(json.dumps))

    status, text = await running.get(path)

    assert (status, holds in text) == (200, True)
    assert threads
    assert threading.current_thread().name not in threads


async def test_port_in_use_says_so(running: Running) -> None:
    address = running.base.removeprefix("http://")

    with pytest.raises(OSError, match="another process listens there") as refused:
        await AdminServer(address, Metrics(), lambda: HEALTHY, lambda: True).start()

    assert address in str(refused.value)


@pytest.mark.parametrize(
    ("other_engine", "shown"),
    [(None, []), ("", ["1.0"]), ("another@1", ["0.0"])],
    ids=["it does not say", "the same", "another"],
)
async def test_metrics_show_whether_a_model_server_has_the_engine_that_the_sidecar_read(
    running: Running, other_engine: str | None, shown: list[str]
) -> None:
    target = TargetState("triton:8001", degraded="", in_flight=0, other_engine=other_engine)
    running.state = replace(HEALTHY, targets=(target,))

    _, text = await running.get("/metrics")

    found = re.findall(r'^llmrouter_target_same_engine{target="triton:8001"} (\S+)', text, re.M)
    assert found == shown
