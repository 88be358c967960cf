"""StreamRoute over a real socket."""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.core.decision import RoutingRequest
from sidecar.grpc_api.route_stream import RouteStream
from sidecar.grpc_api.routing_service import Concurrency
from sidecar.grpc_api.server import GrpcServer, ServerOptions
from tests.grpc_api.standins import Gate, StandInRouter, call_tasks, route_request, serving
from tests.waiting import until


def request(request_id: str, text: str = "hi") -> routing_pb2.StreamRouteRequest:
    return routing_pb2.StreamRouteRequest(request_id=request_id, request=route_request(text))


async def answers(call: Any) -> list[routing_pb2.StreamRouteResponse]:
    return [response async for response in call]


def summary(response: routing_pb2.StreamRouteResponse) -> tuple[str, str]:
    return response.request_id, response.error.reason or "decided"


class ByText:
    """A behavior that holds each decision until its text is released."""

    def __init__(self) -> None:
        self._released: dict[str, asyncio.Event] = {}

    def _event(self, text: str) -> asyncio.Event:
        return self._released.setdefault(text, asyncio.Event())

    async def __call__(self, request: RoutingRequest) -> None:
        await self._event(request.conversation.messages[0].text).wait()

    def release(self, text: str) -> None:
        self._event(text).set()


async def test_answers_come_as_they_are_ready_with_their_ids(
    router: StandInRouter, routing: RoutingServiceStub
) -> None:
    held = ByText()
    router.behavior = held
    call = routing.StreamRoute()
    for name in ("a", "b", "c"):
        await call.write(request(name, text=name))

    for name in ("b", "c", "a"):
        held.release(name)
        response = await call.read()
        assert isinstance(response, routing_pb2.StreamRouteResponse)
        assert summary(response) == (name, "decided")

    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_half_close_drains_what_is_in_flight(
    router: StandInRouter, routing: RoutingServiceStub
) -> None:
    gate = Gate()
    router.behavior = gate
    call = routing.StreamRoute(iter([request("a"), request("b")]))
    await until(lambda: router.running == 2)

    gate.open()

    assert sorted(map(summary, await answers(call))) == [("a", "decided"), ("b", "decided")]
    assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (request(""), "request_id"),
        (request("x" * 129), "request_id"),
        (routing_pb2.StreamRouteRequest(request_id="b"), "request"),
        (
            routing_pb2.StreamRouteRequest(request_id="b", request=routing_pb2.RouteRequest()),
            "messages",
        ),
    ],
    ids=["no id", "long id", "no request", "bad request"],
)
async def test_wrong_item_is_an_error_of_its_own(
    routing: RoutingServiceStub, wrong: routing_pb2.StreamRouteRequest, field: str
) -> None:
    call = routing.StreamRoute(iter([wrong, request("good")]))

    received = {response.request_id: response for response in await answers(call)}

    error = received[wrong.request_id].error
    assert (error.reason, error.code) == ("INVALID_REQUEST", 3)
    assert [each.field for each in error.field_violations] == [field]
    assert received["good"].WhichOneof("result") == "decision"


async def test_id_in_flight_is_refused_and_the_first_is_not_disturbed(
    router: StandInRouter, routing: RoutingServiceStub
) -> None:
    gate = Gate()
    router.behavior = gate
    call = routing.StreamRoute()
    await call.write(request("a"))
    await call.write(request("a"))
    refused = await call.read()
    gate.open()
    decided = await call.read()

    assert isinstance(refused, routing_pb2.StreamRouteResponse)
    assert isinstance(decided, routing_pb2.StreamRouteResponse)
    assert [summary(refused), summary(decided)] == [("a", "INVALID_REQUEST"), ("a", "decided")]
    call.cancel()


async def test_id_can_be_used_again_once_it_is_answered(routing: RoutingServiceStub) -> None:
    call = routing.StreamRoute()
    for _ in range(2):
        await call.write(request("a"))
        response = await call.read()
        assert isinstance(response, routing_pb2.StreamRouteResponse)
        assert summary(response) == ("a", "decided")
    call.cancel()


async def test_no_more_are_read_than_may_be_in_flight(router: StandInRouter) -> None:
    gate = Gate()
    router.behavior = gate
    options = ServerOptions(concurrency=Concurrency(stream=3))
    async with serving(router, options=options) as (_, channel):
        call = RoutingServiceStub(channel).StreamRoute(request(str(n)) for n in range(20))
        await until(lambda: router.running == 3)
        gate.open()
        assert len(await answers(call)) == 20

    assert router.most_running == 3


async def test_cancelled_stream_cancels_its_decisions_and_leaves_no_task(
    router: StandInRouter, routing: RoutingServiceStub
) -> None:
    router.behavior = Gate()
    before = call_tasks()
    call = routing.StreamRoute()
    for number in range(5):
        await call.write(request(str(number)))
    await until(lambda: router.running == 5)

    call.cancel()
    await until(lambda: router.running == 0)
    await until(lambda: not (call_tasks() - before))

    assert router.cancelled == 5


def cancelled(router: StandInRouter, count: int) -> bool:
    return router.cancelled == count


async def test_cancelled_streams_are_not_kept_in_memory(
    router: StandInRouter, routing: RoutingServiceStub
) -> None:
    """https://github.com/grpc/grpc/issues/43360: what swallows a cancellation is kept for ever."""
    router.behavior = Gate()
    before = call_tasks()
    for number in range(100):
        call = routing.StreamRoute()
        await call.write(request("a"))
        await until(lambda: router.running == 1)
        call.cancel()
        await until(functools.partial(cancelled, router, number + 1))
    await until(lambda: not (call_tasks() - before))

    gc.collect()

    assert [each for each in gc.get_objects() if isinstance(each, RouteStream)] == []


async def test_caller_that_vanishes_leaves_no_task(
    router: StandInRouter, server: GrpcServer
) -> None:
    # It never opens: the decision ends because nobody waits for it.
    router.behavior = Gate()
    before = call_tasks()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = RoutingServiceStub(channel).StreamRoute()
        await call.write(request("a"))
        await until(lambda: router.running == 1)

    await until(lambda: router.running == 0)
    await until(lambda: not (call_tasks() - before))

    assert router.cancelled == 1


async def test_defect_in_one_decision_is_its_own_error(
    router: StandInRouter, routing: RoutingServiceStub
) -> None:
    async def broken(request_: RoutingRequest) -> None:
        if request_.conversation.messages[0].text == "breaks":
            raise ZeroDivisionError

    router.behavior = broken
    call = routing.StreamRoute(iter([request("a", "breaks"), request("b")]))

    assert sorted(map(summary, await answers(call))) == [("a", "INTERNAL"), ("b", "decided")]


async def test_thousands_of_requests_are_all_answered_once(routing: RoutingServiceStub) -> None:
    async def requests() -> AsyncIterator[routing_pb2.StreamRouteRequest]:
        for number in range(2000):
            yield request(str(number))

    received = await answers(routing.StreamRoute(requests()))

    assert sorted(int(each.request_id) for each in received) == list(range(2000))


async def test_bytes_that_are_no_message_lose_no_answer_to_what_came_before(
    router: StandInRouter, channel: grpc.aio.Channel
) -> None:
    gate = Gate()
    router.behavior = gate
    call: Any = channel.stream_stream(
        "/llmrouter.v1.RoutingService/StreamRoute",
        response_deserializer=routing_pb2.StreamRouteResponse.FromString,
    )()
    await call.write(request("a").SerializeToString())
    await until(lambda: router.running == 1)
    await call.write(b"\xff\xff\xff")
    # Nobody can see from outside that the server has read it.
    await asyncio.sleep(0.05)
    gate.open()

    assert summary(await call.read()) == ("a", "decided")
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
