"""Route and BatchRoute over a real socket."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from sidecar._generated.llmrouter.v1 import decision_pb2, routing_pb2
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.core.decision import RoutingRequest
from sidecar.grpc_api.convert.requests import RequestLimits
from sidecar.grpc_api.routing_service import Concurrency
from sidecar.grpc_api.server import ServerOptions
from tests.grpc_api.standins import Gate, StandInRouter, route_request, serving
from tests.waiting import until


async def test_route_returns_the_decision(routing: RoutingServiceStub) -> None:
    response = await routing.Route(route_request())

    decision = response.decision
    assert decision.route == "billing"
    assert decision.model.upstream_model == "fast-1"
    assert [each.model for each in decision.fallbacks] == ["acme/large"]
    assert decision.source == decision_pb2.DECISION_SOURCE_MODEL
    assert decision.confidence == 0.75
    assert decision.policy == "namespaces/default/policies/support"
    assert [(each.step, each.duration.ToMicroseconds()) for each in decision.steps] == [
        ("model", 1250),
        ("total", 1500),
    ]


async def test_deadline_of_the_caller_is_the_budget(
    router: StandInRouter, routing: RoutingServiceStub
) -> None:
    await routing.Route(route_request(), timeout=30)
    await routing.Route(route_request())

    with_deadline, without = router.requests
    assert with_deadline.budget_s is not None
    # gRPC rounds it up to tenths of a second (src/core/lib/transport/timeout_encoding.cc).
    assert 0 < with_deadline.budget_s <= 31
    assert without.budget_s is None


async def test_cancelled_call_cancels_its_decision(
    router: StandInRouter, routing: RoutingServiceStub
) -> None:
    router.behavior = Gate()
    call = routing.Route(route_request())
    await until(lambda: router.running == 1)

    call.cancel()
    await until(lambda: router.running == 0)

    assert router.cancelled == 1


async def test_expired_deadline_cancels_the_decision(
    router: StandInRouter, routing: RoutingServiceStub
) -> None:
    router.behavior = Gate()
    for timeout_s in (0.05, 0.5, 5, 50):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await routing.Route(route_request(), timeout=timeout_s)
        if router.requests:  # On a busy machine the time may be over before it gets there.
            break

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: router.cancelled == 1)


def batch(*texts: str) -> routing_pb2.BatchRouteRequest:
    return routing_pb2.BatchRouteRequest(requests=[route_request(text) for text in texts])


def text_of(request: RoutingRequest) -> str:
    return request.conversation.messages[0].text


async def test_batch_keeps_the_order_whichever_is_decided_first(
    router: StandInRouter, routing: RoutingServiceStub
) -> None:
    turns = {str(number): asyncio.Event() for number in range(4)}
    decided: list[str] = []

    async def last_first(request: RoutingRequest) -> None:
        text = text_of(request)
        await turns[text].wait()
        decided.append(text)
        if text != "0":
            turns[str(int(text) - 1)].set()

    router.behavior = last_first
    turns["3"].set()
    sent = batch("0", "1", "2", "3")
    for number, each in enumerate(sent.requests):
        each.conversation_key = str(number)

    response = await routing.BatchRoute(sent)

    assert decided == ["3", "2", "1", "0"]
    assert [each.WhichOneof("result") for each in response.results] == ["decision"] * 4


async def test_bad_item_of_a_batch_does_not_fail_the_rest(
    router: StandInRouter, routing: RoutingServiceStub
) -> None:
    async def break_third(request: RoutingRequest) -> None:
        if text_of(request) == "breaks":
            raise ZeroDivisionError("canary-secret")

    router.behavior = break_third
    sent = batch("good", "", "breaks", "good")
    sent.requests[1].messages[0].role = routing_pb2.ROLE_UNSPECIFIED

    results = (await routing.BatchRoute(sent)).results

    assert [each.WhichOneof("result") for each in results] == [
        "decision",
        "error",
        "error",
        "decision",
    ]
    wrong, broken = results[1].error, results[2].error
    assert (wrong.code, wrong.reason) == (3, "INVALID_REQUEST")
    assert [each.field for each in wrong.field_violations] == ["messages[0].role"]
    assert (broken.code, broken.reason) == (13, "INTERNAL")
    assert "canary-secret" not in broken.message


async def test_batch_decides_only_so_many_at_once(router: StandInRouter) -> None:
    gate = Gate()
    router.behavior = gate
    options = ServerOptions(concurrency=Concurrency(batch=3))
    async with serving(router, options=options) as (_, channel):
        call = RoutingServiceStub(channel).BatchRoute(batch(*map(str, range(10))))
        await until(lambda: router.running == 3)
        gate.open()
        assert len((await call).results) == 10

    assert router.most_running == 3


async def test_cancelled_batch_cancels_all_its_decisions(
    router: StandInRouter, routing: RoutingServiceStub
) -> None:
    router.behavior = Gate()
    call = routing.BatchRoute(batch("1", "2", "3"))
    await until(lambda: router.running == 3)

    call.cancel()
    await until(lambda: router.running == 0)

    assert router.cancelled == 3


async def test_calls_beyond_the_limit_are_resource_exhausted(router: StandInRouter) -> None:
    router.behavior = gate = Gate()
    async with serving(router, options=ServerOptions(max_concurrent_calls=1)) as (_, channel):
        stub = RoutingServiceStub(channel)
        first = stub.Route(route_request())
        await until(lambda: router.running == 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Route(route_request())
        gate.open()
        await first
        assert (await stub.Route(route_request())).decision.route == "billing"

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "server.max_concurrent_calls (1)" in (caught.value.details() or "")


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (RequestLimits(max_messages=5), "6 messages in all, more than the 5"),
        (RequestLimits(max_content_bytes=300), "bytes of content in all, more than the 300"),
    ],
    ids=["messages", "bytes"],
)
async def test_batch_is_limited_as_a_whole(limits: RequestLimits, said: str) -> None:
    options = ServerOptions(limits=limits)
    async with serving(options=options) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RoutingServiceStub(channel).BatchRoute(batch(*["x" * 100] * 6))

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert said in str(caught.value.details())


async def test_requests_of_a_batch_are_read_in_turns_of_their_own(
    router: StandInRouter, routing: RoutingServiceStub
) -> None:
    turn = 0
    read_in: list[int] = []

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def note(request: RoutingRequest) -> None:
        read_in.append(turn)

    router.behavior = note
    counting = asyncio.create_task(count())
    await routing.BatchRoute(batch(*map(str, range(40))))
    counting.cancel()

    assert len(set(read_in)) == 40
