"""The configuration that is shipped, in a real Envoy, with stand-ins for the providers that answer
404 to models they do not have and 400 to APIs they do not speak. One of them speaks https."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import anthropic
import openai
import pytest
import pytest_asyncio

from sidecar.app_ext_proc import ext_proc_options
from sidecar.config import Settings, load_settings
from sidecar.core.decision import Decision, RoutingRequest
from sidecar.core.policy import ApiDialect
from sidecar.ext_proc.dialects import LlmDialects
from sidecar.ext_proc.options import OwnedHeader, Writing
from sidecar.ext_proc.request import HttpHead, HttpRequest, Passed, Understood
from sidecar.local import EnvoyServer, GatewayOptions, adapted, free_ports, shipped_config
from sidecar.policies import load_policies
from tests.ext_proc.client import Answer, exchange, post
from tests.ext_proc.standins import PATIENT, StubRouter, chat, service_on
from tests.ext_proc.upstream import Recorded, Upstream
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIXTURES = Path(__file__).with_name("fixtures")
CATALOG = load_policies([Path(__file__).parents[2] / "examples" / "policies"]).catalog
OPENAI = {"openai-chat", "openai-responses"}
KINDS = (
    ("s", ""),
    ("nobody", ""),
    ("s", "variants/full_duplex.yaml"),
    ("s", "variants/shadow.yaml"),
)
CONVERSATION_HEADERS = "x-llm-conversation, thread-id, session_id, x-session-affinity"
CREDENTIALS = {"authorization": "Bearer mine", "x-api-key": "mine", "cookie": "mine"}


class Issued(list[tuple[str, str, str]]):
    """Who has issued what."""

    def watching(self) -> None:
        pass

    def issued(self, response_id: str, caller: str, model: str, route: str) -> None:
        self.append((response_id, caller, model))


class SeenDialects(LlmDialects):
    """Remembers what reaches the sidecar."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[HttpHead] = []
        self.heads: list[HttpHead] = []

    def recognise(self, head: HttpHead) -> ApiDialect | Passed:
        self.asked.append(head)
        return super().recognise(head)

    def read(self, request: HttpRequest) -> Understood | Passed:
        self.heads.append(request.head)
        return super().read(request)


@dataclass
class Gateway:
    """Envoys with the shipped configuration: one has a sidecar, that of the other is dead; two have
    a sidecar and one of the variants."""

    alive: int
    dead: int
    full_duplex: int
    shadow: int
    providers: dict[str, Upstream]
    seen: SeenDialects
    router: StubRouter
    log: Path
    issued: Issued

    def reached(self) -> tuple[str, Recorded]:
        """The one provider that got a request since the last call, and the request."""
        got = [(name, each) for name, up in self.providers.items() for each in up.requests]
        for upstream in self.providers.values():
            upstream.requests.clear()
        assert len(got) == 1
        return got[0]


def models_of(cluster: str) -> set[str]:
    return {model.upstream_model for model in CATALOG.values() if model.cluster == cluster}


def by_text(request: RoutingRequest) -> str:
    """The conversation says which model it is for."""
    return request.conversation.messages[-1].text


def first_fallback(model: str) -> str:
    """As the stand-in router has it."""
    return next(other.id for other in CATALOG.values() if other.id != model)


def providers() -> dict[str, Upstream]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(FIXTURES / "tls_server.pem")
    chat_only = {"openai-chat"}
    return {
        "openai": Upstream("openai", models_of("openai"), OPENAI),
        "anthropic": Upstream("anthropic", models_of("anthropic"), {"anthropic-messages"}, tls),
        "google": Upstream("google", models_of("google"), chat_only, prefix="/v1beta/openai"),
        "mistral": Upstream("mistral", models_of("mistral"), chat_only),
        "deepseek": Upstream("deepseek", models_of("deepseek"), chat_only),
    }


def patient(config: str) -> str:
    """`config` that takes a sidecar for dead which is gone, and not one whose process, that of the
    tests, has not run for two seconds."""
    parsed = json.loads(config)
    for cluster in parsed["static_resources"]["clusters"]:
        for check in cluster.get("health_checks", ()):
            check["timeout"] = "60s"
    return json.dumps(parsed)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    keys = folder / "keys"
    keys.mkdir()
    async with AsyncExitStack() as stack:
        upstreams = {n: await stack.enter_async_context(u) for n, u in providers().items()}
        for name in upstreams:
            (keys / name).write_text(f"key-of-{name}\n")
        router = StubRouter()
        router.catalog = CATALOG
        router.choose = by_text
        seen = SeenDialects()
        issued = Issued()
        named = {"SIDECAR_EXT_PROC__CONVERSATION_HEADER": CONVERSATION_HEADERS}
        section = load_settings(environ=named).ext_proc
        options = replace(PATIENT, asking=ext_proc_options(section, 0).asking)
        service = service_on(folder / "s", options, router, seen, issued=issued)
        await stack.enter_async_context(service)
        schemes = {"anthropic": "https"}
        ports = free_ports(len(KINDS))
        for port, (socket, variant) in zip(ports, KINDS, strict=True):
            envoy = GatewayOptions(
                port=port,
                sidecar=folder / socket,
                message_timeout_s=PATIENT.waiting.message_timeout_s,
                variant=shipped_config(variant).read_text() if variant else "",
                keys=keys,
                providers={
                    name: f"{schemes.get(name, 'http')}://127.0.0.1:{upstream.port}"
                    for name, upstream in upstreams.items()
                },
                trusted_ca=FIXTURES / "tls_ca.pem",
                access_log=folder / "access.log",
            )
            config = patient(adapted(shipped_config().read_text(), envoy))
            server = EnvoyServer(config)
            await stack.enter_async_context(server)
        alive, dead, full_duplex, shadow = ports
        log = folder / "access.log"
        yield Gateway(alive, dead, full_duplex, shadow, upstreams, seen, router, log, issued)


async def messages(port: int, text: str, model: str = "auto") -> Answer:
    """A request of Anthropic's API."""
    body = {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": text}]}
    return await post(port, json.dumps(body).encode(), path="/v1/messages")


# --- With the sidecar -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        "openai/gpt-5.5",
        "mistral/mistral-large-2512",
        "deepseek/deepseek-v4-flash",
        "google/gemini-3.5-flash",
    ],
)
async def test_request_reaches_the_provider_of_the_decision(gateway: Gateway, model: str) -> None:
    body = chat(model)

    answer = await post(gateway.alive, body)

    name, request = gateway.reached()
    chosen = CATALOG[model]
    assert (answer.status, answer.json["model"]) == (200, chosen.upstream_model)
    assert name == chosen.cluster
    assert request.body == body.replace(b'"auto"', f'"{chosen.upstream_model}"'.encode())
    assert request.headers["host"] == chosen.host
    assert request.headers["content-length"] == str(len(request.body))
    assert request.headers["x-llm-model"] == model


async def test_provider_is_reached_over_https_with_its_host_checked(gateway: Gateway) -> None:
    answer = await messages(gateway.alive, "anthropic/claude-opus-5")

    name, request = gateway.reached()
    assert (answer.status, name) == (200, "anthropic")
    assert request.headers["host"] == "api.anthropic.com"


async def test_each_provider_gets_its_own_key_and_never_the_clients(gateway: Gateway) -> None:
    await post(gateway.alive, chat("mistral/mistral-small-2603"), headers=CREDENTIALS)
    _, to_mistral = gateway.reached()
    await messages(gateway.alive, "anthropic/claude-opus-5")
    _, to_anthropic = gateway.reached()

    assert to_mistral.headers["authorization"] == "Bearer key-of-mistral"
    assert to_anthropic.headers["x-api-key"] == "key-of-anthropic"
    assert not {"x-api-key", "cookie"} & to_mistral.headers.keys()
    assert "authorization" not in to_anthropic.headers


@pytest.mark.parametrize("kind", ["alive", "dead", "full_duplex", "shadow"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("OPTIONS", "/v1/chat/completions"),
        ("OPTIONS", "/v1/messages"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/files"),
    ],
)
async def test_page_of_another_site_cannot_read_what_the_keys_give(
    gateway: Gateway, kind: str, method: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for provider in gateway.providers.values():
        monkeypatch.setattr(provider, "headers", {"access-control-allow-origin": "*"})
    sent = {"host": "gateway", "origin": "https://elsewhere.example", "connection": "close"}

    answer = await exchange(getattr(gateway, kind), method, path, {**sent, "content-length": "0"})

    gateway.reached()
    assert answer.status
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("kind", ["alive", "dead", "full_duplex", "shadow"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/files"])
async def test_page_of_another_site_cannot_spend_the_keys(
    gateway: Gateway, kind: str, path: str
) -> None:
    # By fetch with `no-cors` and a Blob: without a content type, which needs no preflight.
    body = chat("openai/gpt-5.5")
    sent = {"host": "gateway", "origin": "https://elsewhere.example", "connection": "close"}
    sent |= {"sec-fetch-site": "cross-site", "content-length": str(len(body))}

    answer = await exchange(getattr(gateway, kind), "POST", path, sent, [body])

    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (403, "other_site")
    assert not any(provider.requests for provider in gateway.providers.values())


async def test_credentials_do_not_reach_the_sidecar(gateway: Gateway) -> None:
    await post(gateway.alive, chat("openai/gpt-5.5"), headers=CREDENTIALS | {"x-seen": "yes"})
    gateway.reached()

    head = gateway.seen.heads[-1]
    assert head.header("x-seen") == "yes"
    assert not CREDENTIALS.keys() & head.headers.keys()


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"thread-id": "t", "session_id": "s"}, "t"),
        ({"session_id": "s"}, "s"),
        ({"x-session-affinity": "a", "x-session-id": "i"}, "a"),
        ({"x-session-affinity": "a", "x-llm-conversation": "c"}, "c"),
        ({"x-session-id": "i"}, ""),
    ],
    ids=["Codex", "Codex of 2025", "OpenCode", "told by the application", "none of them"],
)
async def test_conversation_is_known_by_the_first_header_of_those_in_the_setting(
    gateway: Gateway, headers: dict[str, str], key: str
) -> None:
    await post(gateway.alive, chat("openai/gpt-5.5"), headers=headers)

    gateway.reached()
    assert gateway.router.requests[-1].conversation_key == key


async def test_concrete_model_reaches_its_provider(gateway: Gateway) -> None:
    answer = await post(gateway.alive, chat("hello", model="devstral-2512"))

    name, request = gateway.reached()
    assert (answer.status, name) == (200, "mistral")
    assert request.headers["x-llm-source"] == "override"


@pytest.mark.parametrize("kind", ["alive", "full_duplex", "shadow"])
async def test_provider_of_a_response_is_seen(gateway: Gateway, kind: str) -> None:
    """In the shadow, too, where the response is to a request without a decision."""
    gateway.issued.clear()
    body = json.dumps({"model": "auto", "input": "openai/gpt-5.5"}).encode()

    answer = await post(getattr(gateway, kind), body, path="/v1/responses?x")

    assert (answer.status, gateway.reached()[0]) == (200, "openai")
    await until(lambda: bool(gateway.issued))
    assert gateway.issued == [(answer.json["id"], "", "openai/gpt-5.5")]


async def test_provider_of_a_file_is_seen(gateway: Gateway) -> None:
    gateway.issued.clear()
    form = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--b--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}

    answer = await post(gateway.alive, form, path="/v1/files", headers=headers)

    assert (answer.status, gateway.reached()[0]) == (200, "openai")
    await until(lambda: bool(gateway.issued))
    assert [each[0] for each in gateway.issued] == [answer.json["id"]]


async def test_other_responses_are_not_shown_to_the_sidecar(gateway: Gateway) -> None:
    gateway.issued.clear()
    await post(gateway.alive, chat("openai/gpt-5.5"))
    gateway.reached()
    body = json.dumps({"model": "auto", "input": "openai/gpt-5.5"}).encode()
    answer = await post(gateway.alive, body, path="/v1/responses")
    gateway.reached()

    await until(lambda: bool(gateway.issued))

    assert [each[0] for each in gateway.issued] == [answer.json["id"]]


async def test_access_log_tells_route_model_source_and_decision(gateway: Gateway) -> None:
    await post(gateway.alive, chat("openai/gpt-5.5"), path="/v1/chat/completions?logged")
    _, request = gateway.reached()

    entry = await logged(gateway, "logged")
    assert entry["model"] == "openai/gpt-5.5"
    assert entry["source"] == "model"
    assert entry["decision_id"] == "d-openai/gpt-5.5"
    assert entry["cluster"] == "openai"
    head = gateway.seen.heads[-1]
    assert entry["request_id"] == head.header("x-request-id") == request.headers["x-request-id"]
    assert entry["request_id"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/files"), ("GET", "/v1/files/file_1?x"), ("GET", "/v1/skills")],
)
async def test_other_requests_of_anthropics_api_reach_anthropic(
    gateway: Gateway, method: str, path: str
) -> None:
    """Whose clients say so in each of them; OpenAI has paths that are called the same."""
    gateway.issued.clear()
    headers = {"host": "gateway", "anthropic-version": "2023-06-01", "connection": "close"}

    answer = await exchange(gateway.alive, method, path, headers | {"content-length": "0"})

    name, request = gateway.reached()
    assert (name, request.headers["x-api-key"]) == ("anthropic", "key-of-anthropic")
    if path == "/v1/files":
        await until(lambda: bool(gateway.issued))
        assert [each[0] for each in gateway.issued] == [answer.json["id"]]
        assert CATALOG[gateway.issued[0][2]].cluster == "anthropic"


async def test_client_of_http_1_0_is_routed(gateway: Gateway) -> None:
    """As nginx is one unless told otherwise."""
    body = chat("openai/gpt-5.5")
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.alive)
    head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(b"POST /v1/chat/completions HTTP/1.0\r\n" + head.encode() + body)
    answer = await reader.read()
    writer.close()

    assert answer.partition(b"\r\n")[0].endswith(b" 200 OK")
    assert gateway.reached()[1].model == "gpt-5.5"


@pytest.mark.parametrize(
    "headers",
    [{f"x-header-{number}": "value" for number in range(95)}, {"x-long": "x" * 61_200}],
    ids=["many", "long"],
)
async def test_as_many_headers_as_envoy_takes_by_itself_are_no_reason_to_fail(
    gateway: Gateway, headers: dict[str, str]
) -> None:
    """The sidecar's are counted with those of the client, and too many are answered with 500."""
    answer = await post(gateway.alive, chat("openai/gpt-5.5"), headers=headers)

    assert answer.status == 200
    assert gateway.reached()[1].model == "gpt-5.5"


@pytest.mark.parametrize("path", ["/v1/messages/batches", "/v1/files", "/v1/embeddings"])
@pytest.mark.parametrize("life", ["alive", "dead", "full_duplex"])
async def test_body_beyond_the_buffer_goes_on_where_no_llm_is_asked(
    gateway: Gateway, life: str, path: str
) -> None:
    body = b'{"requests": ["%b"]}' % (b"x" * 13_000_000)

    await post(getattr(gateway, life), body, path=path)

    name, request = gateway.reached()
    assert name == ("anthropic" if "messages" in path else "openai")
    assert request.body == body
    if life != "dead":
        assert request.headers["x-llm-reason"] == "not_an_llm_request"


@pytest.mark.parametrize(
    ("kind", "routed"), [("alive", False), ("full_duplex", True)], ids=["buffered", "full_duplex"]
)
async def test_body_that_envoy_would_refuse_when_it_is_rewritten_goes_on_as_it_came(
    gateway: Gateway, kind: str, routed: bool
) -> None:
    plain = chat("mistral/mistral-small-2603", model="gpt-5.5", size=13_000_000)
    body = gzip.compress(plain, 1)
    headers = {"content-encoding": "gzip", "x-llm-policy": "default"}

    answer = await post(getattr(gateway, kind), body, headers=headers)

    name, request = gateway.reached()
    if routed:
        assert (answer.status, name) == (200, "mistral")
        assert request.body == plain.replace(b'"gpt-5.5"', b'"mistral-small-2603"')
    else:
        assert (name, request.body, request.headers["content-encoding"]) == ("openai", body, "gzip")
        assert answer.headers["x-llm-reason"] == "decoded_too_large"


# --- What the client sees -------------------------------------------------------------------------


def owned(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("x-llm-")}


@pytest.fixture(params=["silent", "spoofing"])
def spoofing(gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[None]:
    """Providers once leave our headers alone, and once set all of them."""
    names = Writing().owned if request.param == "spoofing" else ()
    for upstream in gateway.providers.values():
        upstream.headers = dict.fromkeys(names, "spoofed")
    yield
    for upstream in gateway.providers.values():
        upstream.headers = {}


@pytest.mark.usefixtures("spoofing")
@pytest.mark.parametrize("kind", ["alive", "full_duplex"])
@pytest.mark.parametrize(
    ("model", "route"),
    [("big/coder", {"x-llm-route": "coding"}), ("openai/gpt-5.5", {})],
    ids=["route", "default"],
)
async def test_response_tells_the_decision(
    gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    model: str,
    route: dict[str, str],
) -> None:
    coder = replace(CATALOG["openai/gpt-5.5"], id="big/coder")
    monkeypatch.setattr(gateway.router, "catalog", {**CATALOG, coder.id: coder})

    answer = await post(getattr(gateway, kind), chat(model))

    _, request = gateway.reached()
    assert (answer.status, owned(answer)) == (
        200,
        {
            **route,
            "x-llm-model": model,
            "x-llm-decision-id": f"d-{model}",
            "x-llm-source": "model",
            "x-llm-reason": "matched",
            "x-llm-confidence": "0.50",
        },
    )
    assert owned(answer).items() <= request.headers.items()


async def test_response_of_envoy_itself_tells_the_decision(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = replace(CATALOG["openai/gpt-5.5"], id="lost", cluster="opnai")
    monkeypatch.setattr(gateway.router, "catalog", {"lost": nowhere})

    answer = await post(gateway.alive, chat("lost"))

    told = [answer.headers.get(f"x-llm-{name}") for name in ("model", "confidence")]
    assert (answer.status, told) == (503, ["lost", "0.50"])


@pytest.mark.usefixtures("spoofing")
async def test_response_tells_why_nothing_was_decided(gateway: Gateway) -> None:
    answer = await post(gateway.alive, b"not JSON")

    gateway.reached()
    assert owned(answer) == {"x-llm-source": "none", "x-llm-reason": "malformed_body"}


@pytest.mark.usefixtures("spoofing")
@pytest.mark.parametrize("kind", ["dead", "shadow"])
async def test_response_without_the_sidecar_tells_nothing(gateway: Gateway, kind: str) -> None:
    answer = await post(getattr(gateway, kind), chat("openai/gpt-5.5"))

    gateway.reached()
    assert (answer.status, owned(answer)) == (200, {})


@pytest.mark.parametrize("query", [{}, {"limit": 20}], ids=["all", "some"])
@pytest.mark.parametrize("kind", ["alive", "dead", "full_duplex", "shadow"])
async def test_models_that_can_be_chosen_are_those_that_ask_for_routing(
    gateway: Gateway, kind: str, query: dict[str, object]
) -> None:
    url = f"http://127.0.0.1:{getattr(gateway, kind)}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="mine", max_retries=0) as client:
        answer = await client.models.with_raw_response.list(extra_query=query)

    listed = answer.parse()
    assert (answer.headers["content-type"], listed.object) == ("application/json", "list")
    assert {each.object for each in listed.data} == {"model"}
    assert tuple(each.id for each in listed.data) == load_settings(environ={}).ext_proc.aliases
    nobody_was_asked(gateway, "/v1/models")


@pytest.mark.parametrize("kind", ["alive", "dead", "full_duplex", "shadow"])
async def test_models_that_can_be_chosen_are_listed_in_anthropics_form_for_its_clients(
    gateway: Gateway, kind: str
) -> None:
    url = f"http://127.0.0.1:{getattr(gateway, kind)}"
    async with anthropic.AsyncAnthropic(base_url=url, api_key="mine", max_retries=0) as client:
        raw = await client.models.with_raw_response.list(limit=20)
        paged = [each async for each in client.models.list()]

    aliases = load_settings(environ={}).ext_proc.aliases
    # The client itself takes a model that lacks fields.
    checked = [
        anthropic.types.ModelInfo.model_validate(each) for each in raw.http_response.json()["data"]
    ]
    assert raw.headers["content-type"] == "application/json"
    assert (
        tuple(each.id for each in paged) == tuple(each.display_name for each in checked) == aliases
    )
    page = await raw.parse()
    assert (page.has_more, page.first_id, page.last_id) == (False, aliases[0], aliases[-1])
    nobody_was_asked(gateway, "/v1/models")


@pytest.mark.parametrize("kind", ["alive", "dead", "full_duplex", "shadow"])
async def test_model_that_is_listed_is_found_by_its_name(gateway: Gateway, kind: str) -> None:
    url = f"http://127.0.0.1:{getattr(gateway, kind)}"
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="mine", max_retries=0) as client:
        (listed,) = (await client.models.list()).data
        found = await client.models.with_raw_response.retrieve("auto")
    async with anthropic.AsyncAnthropic(base_url=url, api_key="mine", max_retries=0) as other:
        (listed_there,) = (await other.models.list()).data
        found_there = await other.models.with_raw_response.retrieve("auto")
        beta = await other.beta.models.retrieve("auto")

    assert (found.parse(), await found_there.parse()) == (listed, listed_there)
    assert (listed.id, listed_there.id, beta.id) == ("auto", "auto", "auto")
    types = {each.headers["content-type"] for each in (found, found_there)}
    assert types == {"application/json"}
    nobody_was_asked(gateway, "/v1/models/auto")


def nobody_was_asked(gateway: Gateway, path: str) -> None:
    """Neither the sidecar nor a provider, with a GET of that path."""
    asked = [head.method for head in gateway.seen.asked if head.path.partition("?")[0] == path]
    assert "GET" not in asked
    assert [up.requests for up in gateway.providers.values()] == [[]] * len(gateway.providers)


PLAIN = {"host": "gateway", "content-length": "0", "connection": "close"}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/healthz", "/?verbose", "/api/hello"])
@pytest.mark.parametrize("kind", ["alive", "dead", "full_duplex", "shadow"])
async def test_probe_is_told_that_requests_are_taken(
    gateway: Gateway, kind: str, path: str, method: str
) -> None:
    asked = len(gateway.seen.asked)

    answer = await exchange(getattr(gateway, kind), method, path, PLAIN)

    assert (answer.status, answer.body[:3]) == (200, b"ok:" if method == "GET" else b"")
    assert len(gateway.seen.asked) == asked
    assert [up.requests for up in gateway.providers.values()] == [[]] * len(gateway.providers)


@pytest.mark.parametrize("path", ["/metrics", "/favicon.ico", "/readyz", "/models?x=/v1"])
@pytest.mark.parametrize("kind", ["alive", "dead", "full_duplex", "shadow"])
async def test_what_is_no_path_of_an_api_is_told_where_to_look(
    gateway: Gateway, kind: str, path: str
) -> None:
    answer = await exchange(getattr(gateway, kind), "GET", path, PLAIN)

    assert (answer.status, answer.headers["content-type"]) == (404, "application/json")
    error = answer.json["error"]
    assert error["code"] == "no_such_path"
    assert load_settings(environ={}).server.http_address in error["message"]
    nobody_was_asked(gateway, path.partition("?")[0])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files/file_1/content"),
        ("GET", "/v1/responses/resp_1?stream=true"),
        ("DELETE", "/v1/responses/resp_1"),
        ("HEAD", "/v1/batches"),
        ("GET", "/v1beta/models"),
        ("GET", "/team/v1/fine_tuning/jobs"),
        ("POST", "/openai/deployments/mine/embeddings"),
    ],
)
async def test_path_of_an_api_goes_on(gateway: Gateway, method: str, path: str) -> None:
    await exchange(gateway.alive, method, path, PLAIN)

    assert gateway.reached()[0] == "openai"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models"),
        ("DELETE", "/v1/models/auto"),
        ("GET", "/v1/models/auto-2"),
        ("GET", "/v1/models/gpt-5.4-mini"),
    ],
)
async def test_other_requests_for_models_go_on(gateway: Gateway, method: str, path: str) -> None:
    headers = {"host": "gateway", "content-length": "0", "connection": "close"}

    await exchange(gateway.alive, method, path, headers)

    assert gateway.reached()[0] == "openai"


@pytest.mark.parametrize(
    ("kind", "model"),
    [("alive", "gpt-5.5"), ("dead", "gpt-5.4-mini"), ("full_duplex", "gpt-5.5")],
)
@pytest.mark.parametrize(
    "offered",
    [
        {"upgrade": "TLS/1.2", "connection": "Upgrade"},
        {"upgrade": "h2c", "connection": "Upgrade, HTTP2-Settings", "http2-settings": "AAMAAABk"},
    ],
    ids=["Apache's client", "Java's client"],
)
async def test_protocol_that_a_client_offers_besides_is_no_reason_to_fail(
    gateway: Gateway, kind: str, model: str, offered: dict[str, str]
) -> None:
    answer = await post(getattr(gateway, kind), chat("openai/gpt-5.5"), headers=offered)

    assert answer.status == 200
    _, request = gateway.reached()
    assert (request.model, request.headers.get("upgrade")) == (model, None)


@pytest.mark.parametrize("path", ["/v1/realtime?model=gpt-realtime", "/v1/responses"])
@pytest.mark.parametrize("kind", ["alive", "dead", "full_duplex", "shadow"])
async def test_websocket_is_refused_with_what_to_do_instead(
    gateway: Gateway, kind: str, path: str
) -> None:
    asked = len(gateway.seen.asked)
    upgrade = {"host": "gateway", "connection": "Upgrade", "upgrade": "WebSocket"}
    upgrade |= {"sec-websocket-version": "13", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}

    answer = await exchange(getattr(gateway, kind), "GET", path, upgrade)

    assert (answer.status, answer.headers["content-type"]) == (426, "application/json")
    assert "Use HTTP" in answer.json["error"]["message"]
    assert len(gateway.seen.asked) == asked
    assert [up.requests for up in gateway.providers.values()] == [[]] * len(gateway.providers)


# --- Failover -------------------------------------------------------------------------------------


@pytest.fixture
def failing(gateway: Gateway) -> Iterator[Callable[[str, int], None]]:
    """Has a provider answer with a status from now on; 0: it closes the connection."""

    def fail(name: str, status: int) -> None:
        upstream = gateway.providers[name]
        upstream.status, upstream.reset = status or 200, status == 0

    yield fail
    for upstream in gateway.providers.values():
        upstream.status, upstream.reset = 200, False
        upstream.requests.clear()


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_failed_request_goes_to_the_fallback_with_its_model(
    gateway: Gateway, failing: Callable[[str, int], None], status: int
) -> None:
    failing("mistral", status)
    body = chat("mistral/mistral-large-2512")

    answer = await post(gateway.alive, body, headers=CREDENTIALS)

    fallback = CATALOG[first_fallback("mistral/mistral-large-2512")]
    (request,) = gateway.providers[fallback.cluster].requests
    assert (answer.status, answer.json["model"]) == (200, fallback.upstream_model)
    assert len(gateway.providers["mistral"].requests) == 1
    assert request.body == body.replace(b'"auto"', f'"{fallback.upstream_model}"'.encode())
    assert request.headers["content-length"] == str(len(request.body))
    assert request.headers["host"] == fallback.host
    assert request.headers["authorization"] == f"Bearer key-of-{fallback.cluster}"


async def test_fallback_gets_the_path_of_its_own(
    gateway: Gateway, failing: Callable[[str, int], None]
) -> None:
    failing("google", 503)

    answer = await post(gateway.alive, chat("google/gemini-3.5-flash"))

    fallback = CATALOG[first_fallback("google/gemini-3.5-flash")]
    (request,) = gateway.providers[fallback.cluster].requests
    assert (answer.status, request.path) == (200, "/v1/chat/completions")


async def test_fallback_does_not_get_the_key_of_the_provider_before(
    gateway: Gateway, failing: Callable[[str, int], None]
) -> None:
    failing("anthropic", 503)

    await messages(gateway.alive, "anthropic/claude-opus-5")

    fallback = CATALOG[first_fallback("anthropic/claude-opus-5")]
    (request,) = gateway.providers[fallback.cluster].requests
    assert request.headers["authorization"] == f"Bearer key-of-{fallback.cluster}"
    assert "x-api-key" not in request.headers


async def test_compressed_request_that_fails_goes_to_the_fallback_with_its_model(
    gateway: Gateway, failing: Callable[[str, int], None]
) -> None:
    failing("mistral", 503)
    body = chat("mistral/mistral-large-2512", model="mistral-large-2512")
    headers = {"content-encoding": "gzip", "x-llm-policy": "default"}

    answer = await post(gateway.alive, gzip.compress(body), headers=headers)

    chosen = CATALOG[first_fallback("mistral/mistral-large-2512")]
    assert (answer.status, answer.json["model"]) == (200, chosen.upstream_model)


async def test_fallback_that_answers_is_seen_as_the_provider_of_a_response(
    gateway: Gateway, failing: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = "openai/gpt-5.5", "mistral/mistral-large-2512"
    monkeypatch.setattr(gateway.router, "catalog", {id: CATALOG[id] for id in (first, second)})
    monkeypatch.setattr(gateway.providers["mistral"], "dialects", {"openai-responses"})
    failing("openai", 503)
    gateway.issued.clear()
    body = json.dumps({"model": "auto", "input": first}).encode()

    answer = await post(gateway.alive, body, path="/v1/responses")

    assert answer.json["served_by"] == "mistral"
    await until(lambda: bool(gateway.issued))
    assert gateway.issued == [(answer.json["id"], "", second)]


async def test_last_failure_is_the_clients_when_all_fail(
    gateway: Gateway, failing: Callable[[str, int], None]
) -> None:
    for name in gateway.providers:
        failing(name, 503)

    answer = await post(gateway.alive, chat("mistral/mistral-large-2512"))

    assert answer.status == 503
    assert sum(len(up.requests) for up in gateway.providers.values()) == 3


@pytest.mark.parametrize("status", [429, 503])
async def test_failure_is_the_clients_where_there_is_nothing_else_to_try(
    gateway: Gateway,
    failing: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    """Its SDK knows when to try again; the provider may have answered, and asks for it."""
    decide = gateway.router.decide

    async def alone(request: RoutingRequest) -> Decision:
        return replace(await decide(request), fallbacks=())

    monkeypatch.setattr(gateway.router, "decide", alone)
    failing("mistral", status)
    failing("openai", status)

    answer = await post(gateway.alive, chat("mistral/mistral-large-2512"))
    assert answer.status == status
    assert gateway.reached()[0] == "mistral"

    answer = await post(gateway.dead, chat("hello"))
    assert answer.status == status
    assert gateway.reached()[0] == "openai"


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_error_of_the_client_is_not_tried_elsewhere(
    gateway: Gateway, failing: Callable[[str, int], None], status: int
) -> None:
    failing("mistral", status)

    answer = await post(gateway.alive, chat("mistral/mistral-large-2512"))

    assert answer.status == status
    assert sum(len(up.requests) for up in gateway.providers.values()) == 1


# --- Without --------------------------------------------------------------------------------------


async def test_auto_becomes_the_default_model_of_the_api(gateway: Gateway) -> None:
    body = chat("hello")
    answer = await post(gateway.dead, body)
    name, request = gateway.reached()
    assert (answer.status, name) == (200, "openai")
    assert request.body == body.replace(b'"auto"', b'"gpt-5.4-mini"')
    assert request.headers["content-length"] == str(len(request.body))

    answer = await messages(gateway.dead, "hello")
    name, request = gateway.reached()
    assert (answer.status, name) == (200, "anthropic")
    assert request.model == "claude-haiku-4-5"


async def test_auto_in_a_chunked_body_becomes_the_default_model(gateway: Gateway) -> None:
    body = chat("hello")

    answer = await post(gateway.dead, body, chunks=[body[:15], body[15:]], pause_s=0.02)

    _, request = gateway.reached()
    assert answer.status == 200
    assert request.body == body.replace(b'"auto"', b'"gpt-5.4-mini"')


@pytest.mark.parametrize("kind", ["Application/JSON; charset=utf-8", None])
async def test_auto_becomes_the_default_model_of_what_the_sidecar_would_read(
    gateway: Gateway, kind: str | None
) -> None:
    body = chat("hello")
    headers = {"host": "gateway", "content-length": str(len(body)), "connection": "close"}
    headers |= {} if kind is None else {"content-type": kind}

    await exchange(gateway.dead, "POST", "/v1/chat/completions", headers, [body])

    assert gateway.reached()[1].model == "gpt-5.4-mini"


TRICKY = [
    b'{"messages":[{"role":"user","content":"say \\"model\\": \\"auto\\""}],"model":"%s"}',
    b'{"tools":[{"f":{"model":"auto"}}],"messages":[],"model" :\n "%s"}',
    b'{"messages":[{"content":"a \\\\"}],"model":"%s","x":{"model":"auto"}}',
    b'{"model":"auto","n":12345678901234567890123,"u":"\\u00e9","model":"%s"}',
]


@pytest.mark.parametrize("body", TRICKY)
async def test_only_the_model_that_counts_is_replaced(gateway: Gateway, body: bytes) -> None:
    answer = await post(gateway.dead, body % b"auto")

    _, request = gateway.reached()
    assert answer.status == 200
    assert request.body == body % b"gpt-5.4-mini"


@pytest.mark.parametrize("body", TRICKY)
async def test_concrete_model_is_left_alone(gateway: Gateway, body: bytes) -> None:
    await post(gateway.dead, body % b"gpt-5.5")

    assert gateway.reached()[1].body == body % b"gpt-5.5"


@pytest.mark.parametrize(
    "body",
    [b"", b"not JSON", b'{"model": 3}', b'{"model": "auto', b'{"messages": "model"}', b"[" * 500],
)
async def test_body_without_a_model_goes_on_as_it_came(gateway: Gateway, body: bytes) -> None:
    await post(gateway.dead, body)

    assert gateway.reached()[1].body == body


async def test_compressed_body_goes_on_as_it_came(gateway: Gateway) -> None:
    await post(gateway.dead, b"compressed", headers={"content-encoding": "gzip"})

    assert gateway.reached()[1].body == b"compressed"


@pytest.mark.parametrize(("chunked", "status"), [(False, 200), (True, 413)])
async def test_body_beyond_the_buffer_goes_on_as_it_came_if_it_says_so_before(
    gateway: Gateway, chunked: bool, status: int
) -> None:
    """Whether `auto` stands in a body without a length shows only when it has been read."""
    body = chat("hello", model="gpt-5.5", size=13_000_000)
    half = len(body) // 2

    answer = await post(gateway.dead, body, chunks=[body[:half], body[half:]] if chunked else None)

    assert answer.status == status
    assert chunked or gateway.reached()[1].body == body


async def test_access_log_tells_the_default_model(gateway: Gateway) -> None:
    await post(gateway.dead, chat("hello"), path="/v1/chat/completions?default")
    gateway.reached()

    entry = await logged(gateway, "default")
    assert entry["default_model"] == "gpt-5.4-mini"
    assert entry["model"] is None


# --- Spoofing -------------------------------------------------------------------------------------

SPOOFED = {
    OwnedHeader.CLUSTER: "deepseek",
    OwnedHeader.MODEL: "deepseek/deepseek-v4-pro",
}


@pytest.mark.parametrize("owned", list(OwnedHeader), ids=str)
@pytest.mark.parametrize("life", ["alive", "dead"])
async def test_header_of_a_client_never_decides_the_route(
    gateway: Gateway, owned: OwnedHeader, life: str
) -> None:
    name = Writing().names[owned]
    spoofed = {name: SPOOFED.get(owned, "spoofed")}

    answer = await post(getattr(gateway, life), chat("openai/gpt-5.5"), headers=spoofed)

    reached, request = gateway.reached()
    assert (answer.status, reached) == (200, "openai")
    assert request.headers.get(name) != spoofed[name]


# --- Variants -------------------------------------------------------------------------------------


async def test_full_duplex_routes_bodies_beyond_the_buffer_limit_with_their_length(
    gateway: Gateway,
) -> None:
    body = chat("mistral/mistral-small-2603", size=3_000_000)

    answer = await post(gateway.full_duplex, body)

    name, request = gateway.reached()
    assert (answer.status, name) == (200, "mistral")
    assert request.body == body.replace(b'"auto"', b'"mistral-small-2603"')
    assert request.headers["content-length"] == str(len(request.body))


async def test_full_duplex_chunked_body_stays_chunked(gateway: Gateway) -> None:
    body = chat("mistral/mistral-small-2603")

    answer = await post(gateway.full_duplex, body, chunks=[body[:9], body[9:]], pause_s=0.02)

    name, request = gateway.reached()
    assert (answer.status, name) == (200, "mistral")
    assert "content-length" not in request.headers


async def test_full_duplex_request_that_is_passed_on_keeps_its_length(gateway: Gateway) -> None:
    await post(gateway.full_duplex, b"x" * 200_000, path="/v1/files")

    name, request = gateway.reached()
    assert (name, request.body) == ("openai", b"x" * 200_000)
    assert request.headers["content-length"] == "200000"


async def test_shadow_decides_and_changes_nothing(gateway: Gateway) -> None:
    decided = len(gateway.router.requests)

    answer = await post(gateway.shadow, chat("mistral/mistral-small-2603"))

    name, request = gateway.reached()
    assert (answer.status, name) == (200, "openai")
    assert request.model == "gpt-5.4-mini"
    assert "x-llm-model" not in request.headers
    await until(lambda: len(gateway.router.requests) > decided)


# --- The file itself ------------------------------------------------------------------------------


async def test_owned_headers_are_all_removed_by_the_file() -> None:
    text = shipped_config().read_text()

    assert all(f"- remove: {name}\n" in text for name in Writing().owned)
    _, _, responses = text.partition("response_headers_to_remove:\n")
    removed, _, _ = responses.partition("response_headers_to_add")
    assert re.findall(r"^ *- (x-llm-.*)$", removed, re.MULTILINE) == list(Writing().owned)


async def test_timeouts_and_limits_agree_with_the_default_settings() -> None:
    settings: Settings = load_settings(environ={})
    text = shipped_config().read_text()
    ours = settings.ext_proc

    assert f"message_timeout: {ours.message_timeout_ms / 1000:g}s" in text
    budget = ours.message_timeout_ms - ours.margin_ms
    assert budget >= settings.routing.decision_budget_ms
    assert f"per_connection_buffer_limit_bytes: {ours.max_body_bytes}" in text
    assert f"(length or 0) > {ours.max_body_bytes}\n" in text


async def test_answer_is_awaited_for_longer_than_the_sdks_do() -> None:
    """At once or as a stream: Envoy ends neither what a model thinks about nor what goes on."""
    text = shipped_config().read_text()
    (idle,) = re.findall(r" stream_idle_timeout: (\d+)s\n", text)

    for theirs in (openai.DEFAULT_TIMEOUT, anthropic.DEFAULT_TIMEOUT):
        assert int(idle) > (theirs.read or 0) > 0
    route_timeouts = re.findall(r"auto_host_rewrite: true\n(?: *#.*\n)? *timeout: (\w+)\n", text)
    assert route_timeouts == ["0s"] * text.count("auto_host_rewrite: true")


async def logged(gateway: Gateway, mark: str) -> dict[str, object]:
    """The entry of the request whose path has `mark`."""
    async with asyncio.timeout(60):
        while True:
            if gateway.log.exists():
                # The last line may be there by half.
                for line in gateway.log.read_text().split("\n")[:-1]:
                    entry: dict[str, object] = json.loads(line)
                    if mark in str(entry["path"]):
                        return entry
            await asyncio.sleep(0.05)
