"""The console over a real HTTP port: a real router, whose routing model alone is a stub."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import ClientSession

import sidecar.admin
from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.admin import AdminServer, Console, console
from sidecar.core.decision import Explanation, RoutingRequest
from sidecar.grpc_api.convert.decisions import decision_to_core
from sidecar.grpc_api.errors import DEFECT
from sidecar.grpc_api.server import GrpcServer, ServerOptions
from sidecar.observability.metrics import Metrics
from sidecar.observability.recent import RecentDecisions
from sidecar.routing import DecisionCache
from tests.admin.test_admin import HEALTHY
from tests.doubles import talk
from tests.grpc_api.standins import decision, route_request
from tests.routing.worlds import POLICY, World, a_world

PAGE = Path(sidecar.admin.__file__).with_name("console.html").read_text()
SCRIPT = PAGE[PAGE.index("<script>") + 8 : PAGE.index("</script>")]
SECRET = "please review my very secret code"
ASKED = {"messages": [{"role": "ROLE_USER", "parts": [{"text": SECRET}]}]}
JSON = {"Content-Type": "application/json"}
PATHS = ["/console", "/console/decisions", "/console/policy", "/console/try"]


@dataclass
class Running:
    base: str
    http: ClientSession
    world: World
    server: GrpcServer
    channel: grpc.aio.Channel

    async def get(
        self, path: str, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], str]:
        async with self.http.get(self.base + path, headers=headers) as response:
            return response.status, response.headers, await response.text()

    async def try_(self, body: Any, headers: Mapping[str, str] = JSON) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"{self.base}/console/try"
        async with self.http.post(url, data=data, headers=headers) as response:
            return response.status, json.loads(await response.text())

    async def decisions(self) -> Any:
        return json.loads((await self.get("/console/decisions"))[2])["decisions"]


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    recent = RecentDecisions()
    async with a_world(DecisionCache(0, 60)) as world, ClientSession() as http:
        monkeypatch.setattr(world.sink, "record", recent.record)
        server = GrpcServer(world.router, world.registry, Metrics(), ServerOptions())
        await server.start()
        shown = Console("127.0.0.1:0", world.registry, recent.entries, server.trials.decide)
        admin = AdminServer("127.0.0.1:0", Metrics(), lambda: HEALTHY, lambda: True, shown)
        await admin.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield Running(f"http://127.0.0.1:{admin.port}", http, world, server, channel)
        await server.stop(0)
        await admin.stop()


async def test_the_root_names_the_console_where_it_is(running: Running) -> None:
    async with running.http.get(running.base + "/") as response:
        assert "/console, /healthz, " in await response.text()


@pytest.mark.parametrize("path", PATHS)
async def test_without_a_console_there_are_none_of_its_paths(path: str) -> None:
    server = AdminServer("127.0.0.1:0", Metrics(), lambda: HEALTHY, lambda: True)
    await server.start()
    async with (
        ClientSession(f"http://127.0.0.1:{server.port}") as http,
        http.get(path) as got,
        http.post(path, json=ASKED) as posted,
    ):
        assert (got.status, posted.status) == (404, 404)
    await server.stop()


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/console", 200, "text/html; charset=utf-8"),
        ("/console/decisions", 200, "application/json; charset=utf-8"),
        ("/console/policy?name=namespaces/default/policies/empty", 200, "application/json"),
        ("/console/policy?name=gone", 404, "application/json"),
    ],
)
async def test_every_answer_keeps_other_sites_and_scripts_out(
    running: Running, path: str, status: int, kind: str
) -> None:
    got, headers, _ = await running.get(path)

    assert (got, headers["Content-Type"][: len(kind)]) == (status, kind)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"
    policy = dict(each.split(" ", 1) for each in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["Content-Security-Policy"]


async def test_the_page_may_run_its_own_script_and_style_alone(running: Running) -> None:
    _, headers, page = await running.get("/console")

    for kind, inner in re.findall(r"<(script|style)>(.*?)</\1>", page, re.S):
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in headers["Content-Security-Policy"]
    # Nothing that those would not cover, and nothing from elsewhere.
    assert not re.findall(r"<(?:script|style)\s|\son\w+=|\sstyle=|https?:|\ssrc=|url\(", page)


def test_what_users_named_never_becomes_markup() -> None:
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|setHTML|Fragment|eval|"
        r"Function\(|srcdoc|setAttribute",
        SCRIPT,
    )


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_is_one() -> None:
    ran = subprocess.run(["node", "--check", "-"], input=SCRIPT, text=True, capture_output=True)

    assert ran.returncode == 0, ran.stderr


async def test_a_try_is_decided_as_by_grpc_and_explained(running: Running) -> None:
    request = route_request(SECRET)
    request.explain = True
    route = RoutingServiceStub(running.channel).Route
    by_grpc = decision_to_core((await route(request)).decision)

    status, tried = await running.try_(ASKED)

    assert status == 200
    for field in ("route", "source", "reason", "detail", "confidence", "routing_model"):
        assert tried[field] == getattr(by_grpc, field), field
    assert tried["model"] == by_grpc.model.id == "claude"
    assert tried["fallbacks"] == [each.id for each in by_grpc.fallbacks]
    assert (tried["policy"], tried["policy_revision"]) == (by_grpc.policy.name, 3)
    assert [(each["route"], each["probability"]) for each in tried["candidates"]] == list(
        by_grpc.candidates
    )
    assert [each["step"] for each in tried["steps"]] == [each.step for each in by_grpc.steps]
    explanation = by_grpc.explanation
    assert explanation is not None
    assert tried["explanation"]["prompt"] == explanation.prompt


async def test_a_try_is_decided_by_the_policy_that_it_names(running: Running) -> None:
    _, tried = await running.try_({**ASKED, "policy": "empty"})

    assert (tried["policy"], tried["model"]) == ("namespaces/default/policies/empty", "mini")


WRONG: dict[str, tuple[Any, int, str, str]] = {
    "no json": (SECRET.encode(), 400, "INVALID_REQUEST", "the body is not"),
    "no utf-8": (b"\xff", 400, "INVALID_REQUEST", "the body is not"),
    "deep": (b"[" * 100_000, 400, "INVALID_REQUEST", "the body is not"),
    "half a character": (
        b'{"messages":[{"role":"ROLE_USER","parts":[{"text":"\\ud800"}]}]}',
        400,
        "INVALID_REQUEST",
        "the body is not",
    ),
    "not compressed": (SECRET.encode(), 400, "INVALID_REQUEST", "not what Content-Encoding"),
    "no role": (
        {"messages": [{"role": SECRET}]},
        400,
        "INVALID_REQUEST",
        "(messages.role is wrong)",
    ),
    "no list": ({"messages": SECRET}, 400, "INVALID_REQUEST", "(messages is wrong)"),
    "OpenAI's content": (
        {"messages": [{"role": "ROLE_USER", "content": SECRET}]},
        400,
        "INVALID_REQUEST",
        "(messages has a field that there is not)",
    ),
    "no field": ({SECRET: 1}, 400, "INVALID_REQUEST", "(it has a field that there is not)"),
    "no messages": ({}, 400, "INVALID_REQUEST", "messages: is empty"),
    "no policy": ({**ASKED, "policy": "gone"}, 404, "POLICY_NOT_FOUND", "policies/gone"),
    "no model": ({**ASKED, "model": "gone"}, 404, "MODEL_NOT_FOUND", "'gone'"),
    "many messages": ({"messages": [{}] * 4097}, 413, "REQUEST_TOO_LARGE", "4097 messages"),
    "many objects": (b"{}," * 65_537, 413, "REQUEST_TOO_LARGE", "65536 objects"),
    "many bytes": (b" " * (1024 * 1024 + 1), 413, "REQUEST_TOO_LARGE", "1048576 bytes"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_request_is_an_error_of_the_list_without_its_content(
    running: Running, name: str
) -> None:
    body, status, code, says = WRONG[name]

    encoding = {"Content-Encoding": "gzip"} if name == "not compressed" else {}
    got, error = await running.try_(body, {**JSON, **encoding})

    assert (got, error["code"]) == (status, code)
    assert says in error["message"]
    assert SECRET not in json.dumps(error)


async def test_wrong_fields_are_named(running: Running) -> None:
    _, error = await running.try_({"messages": [{"role": "ROLE_USER", "toolCallId": "1"}]})

    assert [each["field"] for each in error["fields"]] == ["messages[0].tool_call_id"]


async def test_a_try_during_a_drain_is_refused(running: Running) -> None:
    running.server.begin_drain()

    status, error = await running.try_(ASKED)

    assert (status, error["code"]) == (503, "DRAINING")


async def test_a_defect_is_logged_and_shows_nothing_of_itself(
    running: Running, monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    async def fail(request: RoutingRequest) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(running.world.router, "decide", fail)

    status, error = await running.try_(ASKED)

    assert (status, error["code"]) == (500, "INTERNAL")
    assert "trial failed" in log.getvalue()
    assert SECRET not in json.dumps(error) + log.getvalue()
    assert DEFECT.__traceback__ is None, "holds the frames, and with them the request"


async def test_a_body_that_does_not_come_is_not_waited_for(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_BODY_S", 0.05)
    never = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    url = f"{running.base}/console/try"
    async with running.http.post(url, data=body(), headers=JSON) as response:
        assert response.status == 400
        assert "did not come within" in (await response.json())["message"]


async def test_who_sends_slowly_does_not_hold_up_the_end() -> None:
    unused: Any = None
    shown = Console("127.0.0.1:0", unused, list, unused)
    admin = AdminServer("127.0.0.1:0", Metrics(), lambda: HEALTHY, lambda: True, shown)
    await admin.start()
    _, writer = await asyncio.open_connection("127.0.0.1", admin.port)
    head = "POST /console/try HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: 9\r\n\r\n{{".encode())
    await asyncio.sleep(0.2)

    async with asyncio.timeout(console._BODY_S / 2):
        await admin.stop()
    writer.close()


OWN, OTHER = "http://localhost:{port}", "http://evil.example"
SENT: dict[str, tuple[dict[str, str], int, str]] = {
    "a program": ({}, 200, ""),
    "the page": ({"Origin": OWN, "Sec-Fetch-Site": "same-origin"}, 200, ""),
    "the page in an old browser": ({"Origin": OWN}, 200, ""),
    "another site": ({"Origin": OTHER, "Sec-Fetch-Site": "cross-site"}, 400, "Origin: "),
    "another site in an old browser": ({"Origin": OTHER}, 400, "Origin: "),
    "another port": ({"Origin": "http://localhost:1"}, 400, "Origin: "),
    "another port by its name alone": ({"Sec-Fetch-Site": "same-site"}, 400, "Origin: "),
    "a sandbox": ({"Origin": "null"}, 400, "Origin: "),
    "no origin that there is": ({"Origin": "http://[evil"}, 400, "Origin: "),
    "a form": ({"Content-Type": "text/plain"}, 400, "Content-Type: "),
    "a form with a file": (
        {"Content-Type": "application/x-www-form-urlencoded"},
        400,
        "Content-Type: ",
    ),
    "a name that was made to resolve to us": ({"Host": "evil.example:{port}"}, 400, "Host: "),
    "such a page, to its own origin": (
        {"Host": "evil.example", "Origin": OTHER, "Sec-Fetch-Site": "same-origin"},
        400,
        "Host: ",
    ),
}


@pytest.mark.parametrize("name", SENT)
async def test_another_site_cannot_try_requests(running: Running, name: str) -> None:
    headers, status, says = SENT[name]
    port = running.base.rpartition(":")[2]
    sent = {"Host": "localhost:{port}", **JSON, **headers}

    got, answer = await running.try_(
        ASKED, {key: value.format(port=port) for key, value in sent.items()}
    )

    assert got == status
    assert answer.get("message", "").startswith(says)
    # What was refused was not decided.
    assert len(await running.decisions()) == (1 if status == 200 else 0)


@pytest.mark.parametrize("path", PATHS[:3])
async def test_a_name_that_was_made_to_resolve_to_us_reads_nothing(
    running: Running, path: str
) -> None:
    status, headers, text = await running.get(path, {"Host": "evil.example:9091"})

    assert (status, json.loads(text)["code"]) == (400, "INVALID_REQUEST")
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("address", "host", "ours"),
    [
        ("127.0.0.1:9091", "127.0.0.1:9091", True),
        ("127.0.0.1:9091", "localhost:8080", True),
        ("127.0.0.1:9091", "LOCALHOST", True),
        ("127.0.0.1:9091", "[::1]:9091", True),
        ("127.0.0.1:9091", "10.0.0.7:9091", False),
        ("127.0.0.1:9091", "localhost.evil.example", False),
        ("127.0.0.1:9091", "127.0.0.1.evil.example:9091", False),
        ("127.0.0.1:9091", "evil.example:80:80", False),
        ("127.0.0.1:9091", "", False),
        ("router.internal:9091", "Router.internal:9091", True),
        ("router.internal:9091", "evil.internal:9091", False),
        ("router.internal:9091", "10.0.0.7:9091", False),
        ("10.0.0.7:9091", "10.0.0.7", True),
        ("0.0.0.0:9091", "10.0.0.7:9091", True),
        ("[::]:9091", "[fd00::7]:9091", True),
        ("0.0.0.0:9091", "evil.example:9091", False),
    ],
)
async def test_hosts_under_which_it_may_be_asked_for(address: str, host: str, ours: bool) -> None:
    shown = Console(address, None, list, None)  # type: ignore[arg-type]

    assert shown._is_ours(console._host_of(host)) is ours


async def test_a_decision_is_listed_without_what_was_said(running: Running) -> None:
    await RoutingServiceStub(running.channel).Route(route_request(SECRET))
    await running.try_(ASKED)

    tried, routed = await running.decisions()

    assert (tried["trial"], routed["trial"]) == (True, False)
    assert (routed["route"], routed["source"], routed["reason"]) == ("code", "model", "matched")
    assert "prompt" not in json.dumps([tried, routed])
    assert SECRET not in json.dumps([tried, routed])


def test_the_last_decisions_alone_are_kept_and_no_prompt() -> None:
    recent, made = (
        RecentDecisions(3),
        replace(decision(), explanation=Explanation(SECRET, 1, 0, False)),
    )
    for number in range(5):
        recent.record(RoutingRequest(talk(SECRET)), replace(made, id=str(number)))

    assert [each["decision_id"] for each in recent.entries()] == ["4", "3", "2"]
    assert SECRET not in repr(recent._kept)


async def test_a_policy_is_shown_with_its_routes_and_models(running: Running) -> None:
    _, _, text = await running.get("/console/policy?name=namespaces/default/policies/main")

    shown = json.loads(text)
    assert (shown["revision"], shown["digest"], shown["is_default"]) == (3, POLICY.digest(), True)
    assert shown["default"]["models"] == [{"id": "mini", "weight": 1}]
    assert [(each["name"], each["description"]) for each in shown["routes"]] == [
        ("code", "writing code"),
        ("travel", "booking trips"),
    ]
    assert [each["id"] for each in shown["routes"][0]["models"]] == ["claude", "gpt"]


def test_the_page_names_roles_as_the_api_does() -> None:
    roles = re.search(r'ROLES = (\["system".*?\])', SCRIPT)
    assert roles is not None
    names = [f"ROLE_{each.upper()}" for each in json.loads(roles[1])]

    assert sorted(names) == sorted(set(routing_pb2.Role.keys()) - {"ROLE_UNSPECIFIED"})
