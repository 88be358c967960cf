"""Which provider has issued a response: read in the response, and remembered for the next request.

The last tests have a real Envoy, and providers that answer 404 to what they have not issued.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeAlias

import brotli
import openai
import pytest
import pytest_asyncio
from backports import zstd
from ruamel.yaml import YAML

from sidecar._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from sidecar.core.policy import ApiDialect, Catalog, Model
from sidecar.ext_proc.dialects import LlmDialects
from sidecar.ext_proc.dialects.issued import IssuedId
from sidecar.ext_proc.issued import ResponseWatch
from sidecar.ext_proc.options import Writing
from sidecar.ext_proc.request import HttpHead
from sidecar.local import EnvoyServer, free_ports, shipped_config
from sidecar.routing import DecisionCache, Pins
from tests.ext_proc import istio
from tests.ext_proc.client import post
from tests.ext_proc.gateway import Filter, gateway
from tests.ext_proc.parts import header_map
from tests.ext_proc.sdk_provider import SdkProvider, sdk_provider
from tests.ext_proc.standins import service_on
from tests.ext_proc.test_sdks import CODE, TRAVEL, Walking
from tests.routing.worlds import World, a_world

ISTIO = shipped_config().parent / "kubernetes" / "istio.yaml"

TraceFunction: TypeAlias = Callable[[FrameType, str, Any], Any]

JSON, EVENTS = "application/json; charset=utf-8", "text/event-stream"
WHOLE = b'{"id":"resp_1","object":"response"}'
CREATED = b'event: a\r\ndata: {"type":"response.created","response":{"id":"resp_1","o":1}}\r\n\r\n'


def deflated(body: bytes) -> bytes:
    return zlib.compress(body)


READ: dict[str, tuple[str, str, bytes, str]] = {
    "JSON": (JSON, "", WHOLE, "resp_1"),
    "JSON of a conversation": (JSON, "", b'{"id":"conv_1"}', "conv_1"),
    "the id behind others": (
        JSON,
        "",
        b'{"o":{"id":"x"},"l":[{"id":"y"}],"id":"resp_1"}',
        "resp_1",
    ),
    "an id in a text": (JSON, "", b'{"t":"\\"id\\":\\"x\\"","id" : "resp_1"}', "resp_1"),
    "an id as a value": (JSON, "", b'{"a":"id","b":["id","x"]}', ""),
    "an error": (JSON, "", b'{"error":{"id":"x"}}', ""),
    "an array": (JSON, "", b'["id","x"]', ""),
    "no string": (JSON, "", b'{"id":7}', ""),
    "a line break in the id": (JSON, "", b'{"id":"a\\nb"}', ""),
    "too long": (JSON, "", b'{"id":"%s"}' % (b"x" * 300), ""),
    "an id in a deep array": (JSON, "", b'{"a":[[{"id":"x"}]],"id":"resp_1"}', "resp_1"),
    "a backslash at an end": (JSON, "", b'{"t":"\\\\","id":"resp_1"}', "resp_1"),
    "no JSON": (JSON, "", b"<html>", ""),
    "another type": ("text/plain", "", WHOLE, ""),
    "events": (EVENTS, "", CREATED, "resp_1"),
    "events behind others": (EVENTS, "", b'da\ndata: {"a":["\n: "\n\n' + CREATED[10:], "resp_1"),
    "events of something else": (EVENTS, "", b'data: {"id":"x"}\n\ndata: [DONE]\n\n', ""),
    "gzip": (JSON, "gzip", gzip.compress(WHOLE), "resp_1"),
    "deflate": (JSON, "deflate", deflated(WHOLE), "resp_1"),
    "br": (JSON, "br", brotli.compress(WHOLE), "resp_1"),
    "zstd": (JSON, "zstd", zstd.compress(WHOLE), "resp_1"),
    "an encoding that is not known": (JSON, "snappy", WHOLE, ""),
    "not what its encoding says": (JSON, "gzip", WHOLE, ""),
}


@pytest.mark.parametrize(("kind", "encoding", "body", "id"), READ.values(), ids=READ.keys())
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_id_is_read_from_parts(kind: str, encoding: str, body: bytes, id: str, step: int) -> None:
    reading = IssuedId(kind, encoding)

    for start in range(0, len(body), step):
        reading.feed(body[start : start + step])
        assert reading.id in ("", id), "what has not come whole is no id"

    # One that comes in single bytes is given up on: no provider does that.
    assert reading.id == id or len(body) / step > 64


def test_reading_ends_at_the_id() -> None:
    reading = IssuedId(JSON, "")
    assert reading.wants_more

    reading.feed(WHOLE)

    assert not reading.wants_more


@pytest.mark.parametrize("part", [b'{"x":"' + b"y" * 70_000, b'{"x":"'], ids=["long", "many"])
def test_body_without_an_id_is_not_read_for_long(part: bytes) -> None:
    reading = IssuedId(JSON, "")

    parts = 0
    while reading.wants_more:
        reading.feed(part)
        parts += 1

    assert parts <= 64


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("gzip", gzip.compress), ("br", brotli.compress), ("zstd", zstd.compress)],
)
def test_body_that_decodes_to_very_much_is_not_decoded(
    encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    reading = IssuedId(JSON, encoding)

    reading.feed(compress(b'{"x":"' + b"y" * 2_000_000))

    assert not reading.wants_more
    assert reading._size < 1_000_000


def lines_run(feed: Callable[[], object]) -> int:
    """Lines of code that are run meanwhile; unlike the time, always as many."""
    count = 0

    def traced(frame: FrameType, event: str, arg: object) -> TraceFunction:
        nonlocal count
        count += event == "line"
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        feed()
    finally:
        sys.settrace(before)
    return count


def feed_by_parts(kind: str, body: bytes) -> None:
    reading = IssuedId(kind, "")
    for start in range(0, len(body), 256):
        reading.feed(body[start : start + 256])


@pytest.mark.parametrize(
    ("kind", "beginning", "more"),
    [
        (JSON, b'{"a":', b"[" * 1000),
        (EVENTS, b'data: {"a":', b"[" * 1000),
        (EVENTS, b"", b"data: [1,2]\n" * 100),
    ],
    ids=["nested", "nested in an event", "events"],
)
def test_each_byte_is_read_once(kind: str, beginning: bytes, more: bytes) -> None:
    once = lines_run(lambda: feed_by_parts(kind, beginning + more * 4))
    twice = lines_run(lambda: feed_by_parts(kind, beginning + more * 8))

    assert twice < once * 2.1


# --- The watch of one response --------------------------------------------------------------------

SPEAKING = frozenset({ApiDialect.OPENAI_RESPONSES})
CATALOG: Catalog = {
    "claude": Model("claude", "claude-1", "one", dialects=SPEAKING),
    "gpt": Model("gpt", "gpt-1", "two", dialects=SPEAKING),
    "mini": Model("mini", "mini-1", "two", dialects=SPEAKING),
}
DECIDED = {"x-llm-model": "claude", "x-llm-route": "code", "x-llm-fallbacks": "mini,gpt"}


class Noted(list[tuple[str, str, str, str]]):
    def watching(self) -> None:
        pass

    def issued(self, response_id: str, caller: str, model: str, route: str) -> None:
        self.append((response_id, caller, model, route))


def watch(noted: Noted, headers: Mapping[str, str]) -> ResponseWatch:
    head = HttpHead("POST", "/v1/responses", "g", {k: (v,) for k, v in headers.items()})
    return ResponseWatch(head, Writing().names, "team-a", CATALOG, noted)


def answered(cluster: str = "", status: str = "200", end: bool = False) -> pb.ProcessingRequest:
    headers = header_map({":status": status, "content-type": JSON})
    message = pb.ProcessingRequest(
        response_headers=pb.HttpHeaders(headers=headers, end_of_stream=end)
    )
    if cluster:
        message.attributes["envoy.filters.http.ext_proc"]["xds.cluster_name"] = cluster
    return message


def body(part: bytes = WHOLE) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(response_body=pb.HttpBody(body=part))


WATCHED: dict[str, tuple[dict[str, str], str, tuple[str, str] | None]] = {
    "the decision": (DECIDED, "one", ("claude", "code")),
    "a fallback that took over": (DECIDED, "two", ("mini", "code")),
    "a gateway that does not say the cluster": (
        {**DECIDED, "x-llm-cluster": "one"},
        "",
        ("claude", "code"),
    ),
    "no decision": ({}, "two", ("gpt", "")),
    "a cluster that no model is reached by": (DECIDED, "three", None),
    "no cluster at all": (DECIDED, "", None),
}


@pytest.mark.parametrize(("headers", "cluster", "issuer"), WATCHED.values(), ids=WATCHED.keys())
def test_issuer_is_the_cluster_that_answered(
    headers: dict[str, str], cluster: str, issuer: tuple[str, str] | None
) -> None:
    noted = Noted()
    watching = watch(noted, headers)

    watching.heard(answered("", status="103"))
    watching.heard(answered(cluster))
    assert not watching.ended
    watching.heard(body())

    assert watching.ended
    assert noted == ([("resp_1", "team-a", *issuer)] if issuer else [])


@pytest.mark.parametrize("message", [answered(status="500"), answered(end=True), body()])
def test_watch_ends_where_no_id_will_come(message: pb.ProcessingRequest) -> None:
    watching = watch(Noted(), DECIDED)

    watching.heard(message)

    assert watching.ended


# --- In Envoy -------------------------------------------------------------------------------------


@dataclass
class Stage:
    ports: dict[str, int]
    """Of an Envoy as it is shipped, and of one as Istio sets it up."""
    world: World
    one: SdkProvider
    two: SdkProvider

    def clients(self, envoy: str = "shipped") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{self.ports[envoy]}/v1", api_key="secret", max_retries=0
        )


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("issued")
    ports = dict(zip(["shipped", "istio"], free_ports(2), strict=True))
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(sdk_provider(["/v1/responses"], {"claude-1"}))
        two = await stack.enter_async_context(sdk_provider(["/v1/responses"], {"gpt-1", "mini-1"}))
        world = await stack.enter_async_context(
            a_world(DecisionCache(0, 60), Pins(100, 60), CATALOG, budget_s=10)
        )
        await stack.enter_async_context(
            service_on(
                folder / "s", None, Walking(world, CATALOG), LlmDialects(), issued=world.router
            )
        )
        clusters = {"two": two.port, "one": one.port}
        listeners = {ports["shipped"]: Filter(watching=True), ports["istio"]: Filter()}
        config = gateway(listeners, clusters, folder / "s", folder / "log")
        await stack.enter_async_context(EnvoyServer(as_in_istio(config, ports["istio"])))
        yield Stage(ports, world, one, two)


def as_in_istio(config: str, port: int) -> str:
    """With the manifest's filters and routes at that port; the rest is Istio's to make."""
    documents = YAML(typ="safe", pure=True).load_all(ISTIO.read_text())
    manifests = {each["kind"]: each for each in documents}
    patches = manifests["EnvoyFilter"]["spec"]["configPatches"]
    # The test's sidecar listens elsewhere, and the listener's limits are the test's.
    kept = [each for each in patches if each["applyTo"] not in ("CLUSTER", "LISTENER")]
    # The catalog's clusters, by the hosts that the manifest has for two of them.
    hosts = {"api.anthropic.com": "one", "api.openai.com": "two"}
    text = json.dumps(manifests["VirtualService"])
    for cluster, name in (("anthropic", "one"), ("openai", "two")):
        text = text.replace(f'"exact": "{cluster}"', f'"exact": "{name}"')
    made = json.loads(config)
    (listener,) = (
        each for each in made["static_resources"]["listeners"] if each["name"] == f"port_{port}"
    )
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"] = [manager["http_filters"][-1] | {"name": istio.ROUTER}]
    (host,) = manager["route_config"]["virtual_hosts"]
    host["routes"] = istio.routes(json.loads(text), hosts)
    filters = {"spec": {"configPatches": kept}}
    return istio.patched(json.dumps(made), filters, listener["name"])


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("envoy", ["shipped", "istio"])
@pytest.mark.parametrize("first_is", ["whole", "streamed"])
async def test_conversation_goes_on_where_its_response_was_issued(
    stage: Stage, first_is: str, envoy: str
) -> None:
    async with stage.clients(envoy) as client:
        stage.world.model.logits = CODE
        stage.one.go_on.set()
        if first_is == "whole":
            first = (await client.responses.create(model="auto", input="review my code")).id
        else:
            stream = await client.responses.create(model="auto", input="My code?", stream=True)
            events = [event async for event in stream]
            first = next(e.response.id for e in events if e.type == "response.created")
        # Another provider would be chosen for this, and would answer 404.
        stage.world.model.logits = TRAVEL
        second = await client.responses.create(
            model="auto", input="book a flight", previous_response_id=first
        )
        third = await client.responses.create(
            model="auto", input="and a hotel", previous_response_id=second.id
        )
        elsewhere = await client.responses.create(model="auto", input="book a flight")

    assert {first, second.id, third.id} <= stage.one.issued
    assert elsewhere.id in stage.two.issued
    assert stage.one.headers[-1]["x-llm-source"] == "pin"


@pytest.mark.asyncio(loop_scope="module")
async def test_response_that_nobody_knows_goes_to_the_policys_default(stage: Stage) -> None:
    stage.world.model.logits = CODE
    stage.two.issued.add("resp_before")
    async with stage.clients() as client:
        answer: Any = await client.responses.create(
            model="auto", input="review my code", previous_response_id="resp_before"
        )

    assert answer.model == "mini-1"
    assert stage.two.headers[-1]["x-llm-reason"] == "unknown_issuer"


@pytest.mark.asyncio(loop_scope="module")
async def test_tls_that_a_client_of_istio_offers_besides_is_no_reason_to_fail(
    stage: Stage,
) -> None:
    """As Apache's client for Java does with each request."""
    offered = {"upgrade": "TLS/1.2", "connection": "Upgrade"}
    body = json.dumps({"model": "auto", "input": "review my code"}).encode()

    answer = await post(stage.ports["istio"], body, path="/v1/responses", headers=offered)

    assert answer.status == 200
