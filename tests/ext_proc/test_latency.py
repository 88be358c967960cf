"""How fast models begin to answer, measured behind a real Envoy; and what does not count."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from sidecar.core.decision import Needs, RoutingRequest
from sidecar.core.policy import Catalog, Model, ModelList, Preference, WeightedModel
from sidecar.ext_proc.effect import Effect
from sidecar.ext_proc.options import ExtProcOptions
from sidecar.ext_proc.timing import ResponseTimer
from sidecar.local import EnvoyServer, free_ports
from sidecar.routing import Latencies
from sidecar.routing.selection import select
from tests.ext_proc.client import post
from tests.ext_proc.gateway import Filter, gateway
from tests.ext_proc.parts import Conversation, header_map, request_body, request_headers, rules
from tests.ext_proc.standins import CATALOG, StubRouter, chat, service_on
from tests.ext_proc.upstream import Upstream

EXPECTED: Catalog = {
    "big/coder": replace(CATALOG["big/coder"], latency_ms=100),
    "small/mini": replace(CATALOG["small/mini"], latency_ms=300),
}
FASTEST = ModelList(tuple(WeightedModel(id) for id in EXPECTED), Preference.FASTEST)
ENOUGH = 5


@pytest.mark.parametrize("mode", ["BUFFERED", "FULL_DUPLEX_STREAMED"])
async def test_model_that_turns_out_to_be_slow_is_not_the_fastest(
    mode: str, tmp_path: Path
) -> None:
    latencies, router = Latencies(100, 600), StubRouter()

    def fastest(request: RoutingRequest) -> str:
        def latency_ms(model: Model) -> float | None:
            return latencies.latency_ms(model, request.whole_answer)

        return select(FASTEST, EXPECTED, Needs(), None, "", latency_ms).models[0].id

    router.choose = fastest
    socket, (port,) = tmp_path / "s", free_ports(1)
    listener = Filter(mode, trailers="SEND", response_headers="SEND", message_timeout_s=10)
    async with (
        Upstream("small") as small,
        Upstream("big") as big,
        service_on(socket, ExtProcOptions(measure_latency=True), router, latencies=latencies),
        EnvoyServer(
            gateway(
                {port: listener},
                {"small": small.port, "big": big.port},
                socket,
                tmp_path / "access.log",
            )
        ),
    ):
        big.delay_s = 0.5
        first = await asyncio.gather(*(post(port, chat(f"{n}")) for n in range(ENOUGH)))
        then = await post(port, chat("again"))

    assert [answer.json["served_by"] for answer in first] == ["big"] * ENOUGH
    assert then.json["served_by"] == "small"


class Answered(list[tuple[str, bool, float]]):
    """What was measured."""

    def answered(self, model: str, whole: bool, seconds: float) -> None:
        self.append((model, whole, seconds))


def response(headers: dict[str, str]) -> pb.ProcessingRequest:
    shown = pb.HttpHeaders(headers=header_map(headers))
    return pb.ProcessingRequest(response_headers=shown)


def timed(effect: Effect, *messages: pb.ProcessingRequest) -> Answered:
    """The request goes on at 10 s, each message comes 2 s after the one before."""
    ticks, answered = iter(range(10, 100, 2)), Answered()
    timer = ResponseTimer(answered, lambda: float(next(ticks)))
    timer.sent(effect)
    for message in messages:
        timer.heard(message)
    return answered


STREAMED = Effect(model="big/coder")
OK = response({":status": "200"})


def test_time_is_that_from_the_decision_to_the_headers_of_the_response() -> None:
    assert timed(STREAMED, OK) == [("big/coder", False, 2.0)]


def test_whole_answers_are_told_from_streamed_ones() -> None:
    assert timed(replace(STREAMED, whole_answer=True), OK) == [("big/coder", True, 2.0)]


@pytest.mark.parametrize(
    ("effect", "message"),
    [
        (STREAMED, response({":status": "429"})),
        (STREAMED, response({":status": "503"})),
        (STREAMED, response({":status": "200", "x-envoy-attempt-count": "2"})),
        (STREAMED, pb.ProcessingRequest(response_body=pb.HttpBody(body=b"data: 1"))),
        (Effect(), OK),
    ],
    ids=["refused", "failed", "answer of a fallback", "body", "nothing decided"],
)
def test_what_says_nothing_about_the_model_does_not_count(
    effect: Effect, message: pb.ProcessingRequest
) -> None:
    assert timed(effect, message) == []


def test_exchange_has_one_time() -> None:
    assert len(timed(STREAMED, OK, OK)) == 1


def test_stream_is_kept_until_the_response_begins_and_no_longer() -> None:
    talk = Conversation(used=replace(rules(), timed_response=True))
    talk.say(request_headers())
    talk.ask(request_body(b"1234"))
    talk.exchange.decided(STREAMED)
    assert not talk.exchange.finished

    talk.say(OK)

    assert talk.exchange.finished


def test_stream_of_a_request_that_nothing_was_decided_for_is_not_kept() -> None:
    talk = Conversation(used=replace(rules(), timed_response=True))

    talk.say(request_headers({":path": "/other"}))

    assert talk.exchange.finished
