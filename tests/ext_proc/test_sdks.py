"""The official SDKs of OpenAI and Anthropic, unchanged but for their base URL, in front of a real
Envoy. The walk is the real one with its pins; its routing model is a stub whose answers the tests
set, and the providers are stand-ins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from sidecar.core.decision import Decision, RoutingRequest
from sidecar.core.policy import ApiDialect, Capability, Catalog, Model
from sidecar.ext_proc.dialects import LlmDialects
from sidecar.local import EnvoyServer, free_ports
from sidecar.routing import DecisionCache, Pins
from tests.ext_proc.gateway import Filter, gateway
from tests.ext_proc.sdk_provider import TEXT, TOOL, SdkProvider, sdk_provider
from tests.ext_proc.standins import StubRouter, service_on
from tests.routing.worlds import World, a_world

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAID = "".join(TEXT)
PNG = "iVBORw0KGgo="
CODE, TRAVEL = (8, 1, 1), (1, 8, 1)
ALL = frozenset(Capability)
ANTHROPIC = frozenset({ApiDialect.ANTHROPIC_MESSAGES})
OPENAI = frozenset({ApiDialect.OPENAI_CHAT, ApiDialect.OPENAI_RESPONSES})
# The policy of the routing tests: code -> claude, gpt; travel -> gpt; default mini.
CATALOG: Catalog = {
    "claude": Model("claude", "claude-1", "anthropic", dialects=ANTHROPIC, capabilities=ALL),
    "gpt": Model("gpt", "gpt-1", "openai", dialects=OPENAI, capabilities=ALL),
    "mini": Model("mini", "mini-1", "openai", capabilities=ALL),
}
MODES = ("BUFFERED", "FULL_DUPLEX_STREAMED")


class Walking(StubRouter):
    """The router of a world, in the place of the stand-in."""

    def __init__(self, world: World, catalog: Catalog | None = None) -> None:
        super().__init__()
        self.catalog = CATALOG if catalog is None else catalog
        self._world = world

    async def decide(self, request: RoutingRequest) -> Decision:
        return await self._world.router.decide(request)


@dataclass
class Stage:
    """Envoys in both modes, and what stands behind them."""

    ports: dict[str, int]
    world: World
    openai: SdkProvider
    anthropic: SdkProvider


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("sdks")
    ports = dict(zip(MODES, free_ports(len(MODES)), strict=True))
    async with AsyncExitStack() as stack:
        theirs = await stack.enter_async_context(
            sdk_provider(["/v1/chat/completions", "/v1/responses"], {"gpt-1", "mini-1"})
        )
        others = await stack.enter_async_context(sdk_provider(["/v1/messages"], {"claude-1"}))
        world = await stack.enter_async_context(
            a_world(DecisionCache(0, 60), Pins(100, 60), CATALOG, budget_s=10)
        )
        await stack.enter_async_context(
            service_on(folder / "s", router=Walking(world), dialects=LlmDialects())
        )
        listeners = {
            ports["BUFFERED"]: Filter(),
            ports["FULL_DUPLEX_STREAMED"]: Filter(
                body="FULL_DUPLEX_STREAMED", trailers="SEND", fail_open=False
            ),
        }
        clusters = {"openai": theirs.port, "anthropic": others.port}
        config = gateway(listeners, clusters, folder / "s", folder / "access.log")
        await stack.enter_async_context(EnvoyServer(config))
        yield Stage(ports, world, theirs, others)


@pytest.fixture
def stage(running: Stage) -> Stage:
    for provider in (running.openai, running.anthropic):
        provider.bodies.clear()
        provider.headers.clear()
        provider.go_on.clear()
    running.world.model.logits = CODE
    return running


def openai_client(stage: Stage, mode: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{stage.ports[mode]}/v1", api_key="secret", max_retries=0
    )


def anthropic_client(stage: Stage, mode: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        base_url=f"http://127.0.0.1:{stage.ports[mode]}", api_key="secret", max_retries=0
    )


modes = pytest.mark.parametrize("mode", MODES)
FUNCTION: dict[str, Any] = {
    "name": TOOL,
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
HISTORY = [
    {"role": role, "content": f"turn {number} {role} " + "x" * 2000}
    for number in range(100)
    for role in ("user", "assistant")
]


@modes
async def test_openai_chat(stage: Stage, mode: str) -> None:
    async with openai_client(stage, mode) as client:
        answer = await client.chat.completions.create(
            model="auto",
            messages=[
                *HISTORY,  # type: ignore[list-item]
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is this?"},
                        {
                            "type": "image_url",
                            "image_url": {"url": f"data:image/png;base64,{PNG}"},
                        },
                    ],
                },
            ],
            seed=123456789,
        )

    assert answer.choices[0].message.content == SAID
    (body,) = stage.openai.bodies
    assert body["model"] == "gpt-1"
    assert body["messages"][:-1] == HISTORY
    assert body["seed"] == 123456789


@modes
async def test_openai_chat_stream_is_not_held_back(stage: Stage, mode: str) -> None:
    async with openai_client(stage, mode) as client:
        stream = await client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        first = await anext(stream)
        # The provider has sent no more than this, and waits.
        assert not stage.openai.go_on.is_set()
        stage.openai.go_on.set()
        rest = [chunk.choices[0].delta.content or "" async for chunk in stream]

    assert first.choices[0].delta.role == "assistant"
    assert "".join(rest) == SAID


@modes
async def test_openai_chat_tool_loop_keeps_its_model(stage: Stage, mode: str) -> None:
    messages: list[Any] = [{"role": "user", "content": f"Weather in Oslo? ({mode}, chat)"}]
    tools: Any = [{"type": "function", "function": FUNCTION}]
    async with openai_client(stage, mode) as client:
        first = await client.chat.completions.create(model="auto", messages=messages, tools=tools)
        message = first.choices[0].message
        assert message.tool_calls
        asked = stage.world.model.calls
        messages += [
            message,
            {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Rain"},
        ]
        second = await client.chat.completions.create(model="auto", messages=messages, tools=tools)

    assert second.choices[0].message.content == SAID
    assert [body["model"] for body in stage.openai.bodies] == ["gpt-1", "gpt-1"]
    assert stage.world.model.calls == asked
    assert stage.openai.headers[-1]["x-llm-source"] == "pin"


@modes
async def test_openai_responses(stage: Stage, mode: str) -> None:
    tools: Any = [{"type": "function", **FUNCTION}]
    given: list[Any] = [{"role": "user", "content": f"Weather in Oslo? ({mode}, responses)"}]
    async with openai_client(stage, mode) as client:
        first = await client.responses.create(model="auto", input=given, tools=tools)
        call = first.output[0]
        assert call.type == "function_call"
        given += [
            call.model_dump(exclude_none=True),
            {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"},
        ]
        second = await client.responses.create(model="auto", input=given)
        stage.openai.go_on.set()
        stream = await client.responses.create(model="auto", input="Hi", stream=True)
        events = [event async for event in stream]

    assert second.output_text == SAID
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == SAID
    assert {body["model"] for body in stage.openai.bodies} == {"gpt-1"}
    assert [headers["x-llm-source"] for headers in stage.openai.headers][1] == "pin"


@modes
async def test_openai_responses_stream_is_not_held_back(stage: Stage, mode: str) -> None:
    url = f"data:image/png;base64,{PNG}"
    given: list[Any] = [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What is this?"},
                {"type": "input_image", "image_url": url, "detail": "auto"},
            ],
        }
    ]
    async with openai_client(stage, mode) as client:
        stream = await client.responses.create(model="auto", input=given, stream=True)
        first = await anext(aiter(stream))
        assert not stage.openai.go_on.is_set()
        stage.openai.go_on.set()
        rest = [event async for event in stream]

    assert first.type == "response.created"
    assert "".join(e.delta for e in rest if e.type == "response.output_text.delta") == SAID
    assert stage.openai.bodies[0]["input"] == given


@modes
async def test_anthropic_messages(stage: Stage, mode: str) -> None:
    async with anthropic_client(stage, mode) as client:
        answer = await client.messages.create(
            model="auto",
            max_tokens=100,
            system="Be brief.",
            messages=[
                *HISTORY,  # type: ignore[list-item]
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image",
                            "source": {
                                "type": "base64",
                                "media_type": "image/png",
                                "data": PNG,
                            },
                        },
                        {"type": "text", "text": "What is this?"},
                    ],
                },
            ],
        )

    assert answer.content[0].type == "text"
    assert answer.content[0].text == SAID
    (body,) = stage.anthropic.bodies
    assert (body["model"], body["system"]) == ("claude-1", "Be brief.")
    assert body["messages"][:-1] == HISTORY


@modes
async def test_anthropic_stream_is_not_held_back(stage: Stage, mode: str) -> None:
    async with anthropic_client(stage, mode) as client:
        stream = await client.messages.create(
            model="auto",
            max_tokens=100,
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
        )
        first = await anext(aiter(stream))
        assert not stage.anthropic.go_on.is_set()
        stage.anthropic.go_on.set()
        rest = [event async for event in stream]

    assert first.type == "message_start"
    deltas = [event.delta for event in rest if event.type == "content_block_delta"]
    assert "".join(delta.text for delta in deltas if delta.type == "text_delta") == SAID


@modes
async def test_anthropic_tool_loop_keeps_its_model(stage: Stage, mode: str) -> None:
    messages: list[Any] = [{"role": "user", "content": f"Weather in Oslo? ({mode}, anthropic)"}]
    tools: Any = [{"name": TOOL, "input_schema": FUNCTION["parameters"]}]
    async with anthropic_client(stage, mode) as client:
        first = await client.messages.create(
            model="auto", max_tokens=100, messages=messages, tools=tools
        )
        call = first.content[0]
        assert call.type == "tool_use"
        stage.world.model.logits = TRAVEL
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain"}
        messages += [
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [result]},
        ]
        second = await client.messages.create(
            model="auto", max_tokens=100, messages=messages, tools=tools
        )

    assert second.content[0].type == "text"
    assert [body["model"] for body in stage.anthropic.bodies] == ["claude-1", "claude-1"]
    assert stage.anthropic.headers[-1]["x-llm-source"] == "pin"


@modes
async def test_a_model_that_the_client_names_is_kept(stage: Stage, mode: str) -> None:
    stage.world.model.logits = TRAVEL
    async with anthropic_client(stage, mode) as client:
        await client.messages.create(
            model="claude-1", max_tokens=9, messages=[{"role": "user", "content": "Hi"}]
        )

    (headers,) = stage.anthropic.headers
    assert headers["x-llm-source"] == "override"
