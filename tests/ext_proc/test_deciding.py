"""From the request that an LLM client sends to what is done to it, with the real dialects."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from collections.abc import Mapping, Sequence

import pytest

from sidecar.core.policy import ApiDialect, Capability, Catalog, Model
from sidecar.ext_proc.asking import RouteSays
from sidecar.ext_proc.deciding import RequestDecider
from sidecar.ext_proc.dialects import LlmDialects
from sidecar.ext_proc.effect import Effect
from sidecar.ext_proc.options import ExtProcOptions, Waiting
from sidecar.ext_proc.request import HttpHead, HttpRequest, Passed, Understood
from sidecar.routing import DecisionCache, Pins
from tests.ext_proc.standins import PATIENT, StubRouter
from tests.routing.worlds import CATALOG, World, a_world

JSON = {"content-type": ("application/json",)}


class NotingDialects(LlmDialects):
    """Says in which threads bodies were read."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []

    def read(self, request: HttpRequest) -> Understood | Passed:
        self.threads.append(threading.get_ident())
        return super().read(request)


def sent(
    body: Mapping[str, object],
    path: str = "/v1/chat/completions",
    headers: Mapping[str, tuple[str, ...]] = JSON,
    *,
    compressed: bool = False,
) -> HttpRequest:
    data = json.dumps(body).encode()
    if compressed:
        data, headers = gzip.compress(data), {**headers, "content-encoding": ("gzip",)}
    return HttpRequest(HttpHead("POST", path, "gateway", headers), data)


def user(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


CODE: dict[str, object] = {"model": "auto", "messages": [user("write code")]}


def decider(router: StubRouter, dialects: LlmDialects | None = None) -> RequestDecider:
    return RequestDecider(router, router, dialects or LlmDialects(), PATIENT)


async def effect(made: RequestDecider, request: HttpRequest) -> Effect:
    return (await made.decide(request, RouteSays(), None)).whole()


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
async def test_model_is_decided_and_written_into_the_body(compressed: bool) -> None:
    done = await effect(decider(StubRouter()), sent(CODE, compressed=compressed))

    assert dict(done.headers)["x-llm-cluster"] == "big"
    assert done.body == json.dumps({**CODE, "model": "coder-1"}).encode()
    assert ("content-encoding" in done.remove) is compressed


WITHOUT_MODEL: dict[str, tuple[str, dict[str, object]]] = {
    "chat": ("/v1/chat/completions", {"messages": [user("write code")]}),
    "responses": ("/v1/responses", {"input": [user("write code")]}),
    "a stored prompt": ("/v1/responses", {"prompt": {"id": "pmpt_1"}, "input": "write code"}),
    "completions": ("/v1/completions", {"prompt": "write code"}),
    "messages": ("/v1/messages", {"messages": [user("write code")]}),
}


@pytest.mark.parametrize(("path", "body"), WITHOUT_MODEL.values(), ids=WITHOUT_MODEL.keys())
@pytest.mark.parametrize("model", [{}, {"model": ""}, {"model": None}], ids=["no", "empty", "null"])
async def test_body_of_each_api_gets_a_model_where_it_has_none(
    path: str, body: dict[str, object], model: dict[str, object]
) -> None:
    done = await effect(decider(StubRouter()), sent({**body, **model}, path=path))

    assert done.body is not None
    assert json.loads(done.body) == {**body, "model": "coder-1"}


@pytest.mark.parametrize(
    ("request_", "inline"),
    [
        (sent(CODE), True),
        (sent({**CODE, "messages": [user("x" * 100_000)]}), False),
        # A few kilobytes that may decode to megabytes.
        (sent(CODE, compressed=True), False),
    ],
    ids=["small", "large", "compressed"],
)
async def test_what_takes_long_to_read_is_read_in_a_thread(
    request_: HttpRequest, inline: bool
) -> None:
    dialects = NotingDialects()
    await effect(decider(StubRouter(), dialects), request_)

    assert [thread == threading.get_ident() for thread in dialects.threads] == [inline]


class HeldUp(LlmDialects):
    """Reads large bodies when `gate` is open, as behind a flood of them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.read_late: list[float] = []

    def read(self, request: HttpRequest) -> Understood | Passed:
        self.read_late.append(time.perf_counter())
        if len(request.body or b"") > 64 * 1024:
            assert self.gate.wait(60)
        return super().read(request)


LARGE = {**CODE, "messages": [user("x" * 100_000), user("write code")]}


async def test_a_large_body_that_is_not_read_in_time_goes_on_unrouted_and_unread() -> None:
    dialects, options = HeldUp(), ExtProcOptions(waiting=Waiting(0.2, margin_s=0.1))
    router = StubRouter()
    made = RequestDecider(router, router, dialects, options)
    several = await asyncio.gather(*(effect(made, sent(LARGE)) for _ in range(20)))
    small = await effect(made, sent(CODE))
    dialects.gate.set()

    reasons = {dict(each.headers)["x-llm-reason"] for each in several}
    assert reasons == {"slow_reading"}
    assert all(each.body is None for each in several)
    assert dict(small.headers)["x-llm-reason"] == "matched"
    # The first large one, if it was begun in time, and the small one.
    assert len(dialects.read_late) <= 2


async def test_the_time_that_reading_took_is_part_of_the_decisions() -> None:
    dialects, router = HeldUp(), StubRouter()
    dialects.gate.set()
    made = decider(router, dialects)
    for body in (CODE, LARGE):
        await effect(made, sent(body))
    await made.decide(sent(CODE), RouteSays(), 1.0, arrived=17.0)

    small, large, told = [request.arrived or 0 for request in router.requests]
    assert small <= dialects.read_late[0]
    assert large <= dialects.read_late[1]
    assert told == 17.0


async def test_a_model_that_does_not_speak_the_clients_api_is_not_called() -> None:
    router = StubRouter()
    openai = frozenset({ApiDialect.OPENAI_CHAT})
    router.catalog = {
        "big/coder": Model("big/coder", "coder-1", cluster="big", dialects=openai),
    }

    done = await effect(decider(router), sent({**CODE, "max_tokens": 9}, "/v1/messages"))

    assert dict(done.headers) == {"x-llm-source": "none", "x-llm-reason": "no_eligible_model"}
    assert done.body is None


def sources(done: Sequence[Effect]) -> list[tuple[str, str]]:
    return [
        (headers["x-llm-source"], headers["x-llm-reason"])
        for headers in (dict(each.headers) for each in done)
    ]


async def test_a_tool_loop_of_an_agent_keeps_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """An Anthropic agent that changes its instructions and reminders between the calls."""
    first = {"model": "auto", "system": "Now: 10:00", "messages": [user("fix the bug")]}
    call = {"type": "tool_use", "id": "t", "name": "ls", "input": {}}
    reminder = {"type": "text", "text": "<system-reminder>Mind the time.</system-reminder>"}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "travel plans"}
    then = {
        "model": "auto",
        "system": "Now: 10:01",
        "messages": [
            user("<system-reminder>Today is Monday.</system-reminder>fix the bug"),
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result, reminder]},
        ],
    }

    able = frozenset(Capability)
    monkeypatch.setitem(CATALOG, "claude", Model("claude", "claude-1", capabilities=able))
    async with a_world(DecisionCache(0, 60), Pins(10, 60)) as world:
        made = routed(world)
        world.model.logits = (8, 1, 1)
        done = [await effect(made, sent(first, "/v1/messages"))]
        world.model.logits = (1, 8, 1)
        done.append(await effect(made, sent(then, "/v1/messages")))

    assert sources(done) == [("model", "matched"), ("pin", "pinned_task")]
    assert {dict(each.headers)["x-llm-model"] for each in done} == {"claude"}


def routed(world: World) -> RequestDecider:
    class Models:
        catalog: Catalog = world.registry.catalog

    return RequestDecider(world.router, Models(), LlmDialects(), PATIENT)
