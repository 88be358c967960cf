"""Envoy with the shipped configuration, the whole sidecar and a real Triton."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from sidecar.app import Sidecar
from sidecar.config import load_settings
from sidecar.engines import EngineInfo
from sidecar.local import (
    EnvoyServer,
    GatewayOptions,
    TritonServer,
    adapted,
    free_ports,
    shipped_config,
)
from tests.ext_proc.client import Answer, post
from tests.ext_proc.standins import chat
from tests.ext_proc.upstream import Upstream
from tests.integration.running_sidecar import POLICIES
from tests.waiting import until

CLUSTERS = ("openai", "anthropic", "google", "mistral", "deepseek")
FROM_MODEL = {"model", "cache"}


class Running:
    """A gateway, its sidecar and the providers behind it."""

    def __init__(self, port: int, sidecar: Sidecar, providers: dict[str, Upstream]) -> None:
        self.port = port
        self.sidecar = sidecar
        self.providers = providers

    async def ask(self, text: str, policy: str = "default") -> tuple[Answer, dict[str, str]]:
        """What the client sees, and the headers that reached a provider."""
        for provider in self.providers.values():
            provider.requests.clear()
        answer = await post(self.port, chat(text), headers={"x-llm-policy": policy})
        got = [each for up in self.providers.values() for each in up.requests]
        return answer, dict(got[0].headers) if got else {}

    async def decides_by_model(self, policy: str = "default") -> None:
        async with asyncio.timeout(90):
            while True:
                _, headers = await self.ask("Write a haiku about rain.", policy)
                if decided_by_model(headers):
                    return
                await asyncio.sleep(0.1)


def decided_by_model(headers: Mapping[str, str]) -> bool:
    """True if the routing model answered, be it that no route fits."""
    answered = {"no_match", "low_confidence"}
    return headers.get("x-llm-source") in FROM_MODEL or headers.get("x-llm-reason") in answered


@asynccontextmanager
async def gateway(
    folder: Path, triton_address: str, engine: EngineInfo, notice_ms: int = 0
) -> AsyncIterator[Running]:
    settings = load_settings(
        flags={
            "server": {
                "grpc_address": "",
                "http_address": "",
                "uds_path": folder / "sidecar.sock",
            },
            "policies": {"paths": (POLICIES,)},
            "routing": {"decision_budget_ms": 10_000},
            "triton": {"address": triton_address},
            "routing_model": {"directory": engine.path},
            "ext_proc": {"message_timeout_ms": 12_000, "notice_ms": notice_ms},
        },
        environ={},
    )
    async with AsyncExitStack() as stack:
        upstreams = {n: await stack.enter_async_context(Upstream(n)) for n in CLUSTERS}
        sidecar = Sidecar(settings)
        await sidecar.start()
        stack.push_async_callback(sidecar.stop, 1)
        options = GatewayOptions(
            port=free_ports(1)[0],
            sidecar=folder / "sidecar.sock",
            message_timeout_s=12,
            providers={n: f"http://127.0.0.1:{up.port}" for n, up in upstreams.items()},
        )
        await stack.enter_async_context(EnvoyServer(adapted(shipped_config().read_text(), options)))
        yield Running(options.port, sidecar, upstreams)


async def test_request_is_routed_by_the_routing_model(
    triton: TritonServer, cpu_engine: EngineInfo, tmp_path: Path
) -> None:
    async with gateway(tmp_path, triton.grpc_address, cpu_engine) as running:
        await running.decides_by_model()
        answer, headers = await running.ask("Translate 'good morning' to French, please.")

        assert answer.status == 200
        assert decided_by_model(headers), headers
        assert answer.json["served_by"] == headers["x-llm-cluster"]


async def test_without_triton_the_request_goes_to_the_policys_default(
    cpu_engine: EngineInfo, tmp_path: Path
) -> None:
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    async with gateway(tmp_path, nobody, cpu_engine) as running:
        answer, headers = await running.ask("Translate 'good morning' to French, please.")

        assert answer.status == 200
        assert headers["x-llm-source"] == "fallback"
        assert headers["x-llm-model"] == "openai/gpt-5.4-mini"
        (request,) = running.providers["openai"].requests
        assert request.model == "gpt-5.4-mini"


async def test_drain_fails_no_request(cpu_engine: EngineInfo, tmp_path: Path) -> None:
    """Envoy sees the drain by its health check before the sidecar stops; requests go on all the
    time, with the decision or to the default."""
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    async with gateway(tmp_path, nobody, cpu_engine, notice_ms=3000) as running:
        stopped = asyncio.Event()
        seen: list[tuple[int, str]] = []

        async def ask_on() -> None:
            while not stopped.is_set():
                answer, headers = await running.ask("hello")
                seen.append((answer.status, headers.get("x-llm-source", "without")))

        asking = asyncio.ensure_future(ask_on())
        await until(lambda: bool(seen))
        await running.sidecar.stop(20)
        gone = len(seen)
        # One was begun before.
        await until(lambda: len(seen) > gone + 1)
        stopped.set()
        await asking

    assert {status for status, _ in seen} == {200}
    sources = [source for _, source in seen]
    assert sources[0] == "fallback"
    assert sources[-1] == "without"


async def test_anthropic_request_reaches_a_model_that_speaks_its_api(
    cpu_engine: EngineInfo, tmp_path: Path
) -> None:
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    body = {"model": "auto", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    async with gateway(tmp_path, nobody, cpu_engine) as running:
        answer = await post(running.port, json.dumps(body).encode(), path="/v1/messages")

        assert answer.status == 200
        (request,) = running.providers["anthropic"].requests
        assert request.model == "claude-haiku-4-5"
