"""The service over a real gRPC connection, with a client in Envoy's place where it has to do what
Envoy does rarely."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from sidecar._generated.envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from sidecar._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from sidecar._generated.envoy.service.ext_proc.v3.external_processor_pb2_grpc import (
    ExternalProcessorStub,
)
from sidecar.core.decision import RoutingRequest
from sidecar.ext_proc.deciding import RequestDecider
from sidecar.ext_proc.dialects import LlmDialects
from sidecar.ext_proc.messages import BUFFERED, FULL_DUPLEX, Mode
from sidecar.ext_proc.options import ExtProcOptions, Waiting
from sidecar.ext_proc.request import HttpRequest, Passed, PassReason, Understood
from sidecar.ext_proc.service import SERVICE, ExtProcService
from sidecar.grpc_api.listening import ListenError, bound_unix
from sidecar.grpc_api.server import GrpcServer, ServerOptions
from sidecar.grpc_api.wire import MAX_FIELDS
from sidecar.observability.decisions import DecisionLog, DecisionSinks
from sidecar.observability.metrics import Metrics
from tests.ext_proc.parts import (
    header_map,
    kinds,
    request_body,
    request_headers,
    set_headers,
    streamed,
)
from tests.ext_proc.standins import (
    ALONE,
    RunningService,
    StubDialects,
    StubRouter,
    chat,
    decision_of,
    service_on,
)
from tests.grpc_api.standins import StandInRouter, registry
from tests.waiting import until

JSON = {"content-type": "application/json"}

if TYPE_CHECKING:
    Call = grpc.aio.StreamStreamCall[Any, Any]


class EnvoyStandIn:
    """One stream, as Envoy would open it."""

    def __init__(self, call: Call, mode: Mode.ValueType) -> None:
        self.call = call
        self._mode = mode
        self._begun = False

    async def say(self, message: pb.ProcessingRequest) -> None:
        if not self._begun:
            self._begun = True
            message.protocol_config.request_body_mode = self._mode
        await self.call.write(message)

    async def hear(self) -> pb.ProcessingResponse:
        async with asyncio.timeout(60):
            message = await self.call.read()
        assert isinstance(message, pb.ProcessingResponse), "the stream has ended"
        return message

    async def ended(self) -> bool:
        async with asyncio.timeout(60):
            return not isinstance(await self.call.read(), pb.ProcessingResponse)


@asynccontextmanager
async def stream(
    service: RunningService,
    mode: Mode.ValueType = BUFFERED,
    metadata: tuple[tuple[str, str], ...] = (),
) -> AsyncIterator[EnvoyStandIn]:
    async with grpc.aio.insecure_channel(f"unix:{service.socket}") as channel:
        stub: Any = ExternalProcessorStub(channel)
        call = stub.Process(metadata=metadata)
        try:
            yield EnvoyStandIn(call, mode)
        finally:
            call.cancel()


async def asked(envoy: EnvoyStandIn, body: bytes) -> None:
    """Sends headers and body."""
    await envoy.say(request_headers(JSON))
    assert kinds((await envoy.hear(),)) == ["request_headers"]
    await envoy.say(request_body(body))


async def reason(envoy: EnvoyStandIn) -> bytes:
    return set_headers((await envoy.hear()).request_body.response)["x-llm-reason"]


@pytest.fixture(params=["s", f"s{ALONE}"])
def socket(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name: str = request.param
    return tmp_path / name


IDS = {
    "x-request-id": "r-17",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}


def logged(log: io.StringIO, event: str) -> list[tuple[str | None, str | None]]:
    """Request and trace id of the entries."""
    read = [json.loads(line) for line in log.getvalue().splitlines()]
    found = [each for each in read if each["event"] == event]
    return [(each.get("request_id"), each.get("trace_id")) for each in found]


async def test_decision_carries_the_ids_of_its_request_alone(
    socket: Path, log: io.StringIO
) -> None:
    sinks, router = DecisionSinks(DecisionLog()), StubRouter()

    def recorded(request: RoutingRequest) -> str:
        sinks.record(request, decision_of(request))
        return "big/coder"

    router.choose = recorded
    async with (
        service_on(socket, router=router) as service,
        grpc.aio.insecure_channel(f"unix:{service.socket}") as channel,
    ):
        stub: Any = ExternalProcessorStub(channel)
        for ids in (IDS, dict[str, str]()):
            envoy = EnvoyStandIn(stub.Process(), BUFFERED)
            await envoy.say(request_headers(JSON | ids))
            await envoy.hear()
            await envoy.say(request_body(chat("code")))
            await envoy.hear()

    assert logged(log, "decision") == [
        ("r-17", "0af7651916cd43dd8448eb211c80319c"),
        (None, None),
    ]


async def test_request_that_is_passed_on_is_logged_with_its_ids(
    socket: Path, log: io.StringIO
) -> None:
    async with service_on(socket) as service, stream(service) as envoy:
        await envoy.say(request_headers({"content-type": "text/plain", **IDS}))
        await envoy.hear()

    assert logged(log, "passed on") == [("r-17", "0af7651916cd43dd8448eb211c80319c")]


async def test_decision_has_less_time_than_envoy_waits(socket: Path) -> None:
    waiting = Waiting(message_timeout_s=0.8, margin_s=0.3)
    async with service_on(socket, ExtProcOptions(waiting=waiting)) as service:
        async with stream(service) as envoy:
            await asked(envoy, chat("code"))
            await envoy.hear()

        assert service.router.requests[0].budget_s == pytest.approx(0.5)


async def test_time_runs_from_when_the_whole_body_has_come(socket: Path) -> None:
    class Noting(StubDialects):
        begun = 0.0

        def read(self, request: HttpRequest) -> Understood | Passed:
            self.begun = time.perf_counter()
            return super().read(request)

    noting = Noting()
    async with service_on(socket, dialects=noting) as service, stream(service) as envoy:
        await envoy.say(request_headers(JSON))
        await envoy.hear()
        before = time.perf_counter()
        await envoy.say(request_body(chat("code")))
        await envoy.hear()

        arrived = service.router.requests[0].arrived
    assert arrived is not None
    assert before <= arrived <= noting.begun


async def test_full_duplex_decision_has_the_routers_own_time(socket: Path) -> None:
    """Envoy has no time limit in this mode."""
    async with service_on(socket) as service:
        async with stream(service, FULL_DUPLEX) as envoy:
            await envoy.say(request_headers(JSON))
            await envoy.say(request_body(chat("code")))
            assert kinds((await envoy.hear(),)) == ["request_headers"]

        assert service.router.requests[0].budget_s is None


async def test_late_decision_asks_envoy_for_more_time_once(socket: Path) -> None:
    waiting = Waiting(message_timeout_s=0.15, max_message_timeout_s=30, margin_s=0.1)
    router = StubRouter()
    router.gate = asyncio.Event()
    options = ExtProcOptions(waiting=waiting)
    async with service_on(socket, options, router) as service, stream(service) as envoy:
        await asked(envoy, chat("code"))

        more = await envoy.hear()
        router.gate.set()
        answer = await envoy.hear()

    assert more.override_message_timeout.ToSeconds() == 30
    assert more.WhichOneof("response") is None
    assert kinds((answer,)) == ["request_body"]
    assert router.requests[0].budget_s == pytest.approx(29.9)


async def test_cancelled_stream_cancels_the_decision(socket: Path) -> None:
    router = StubRouter()
    router.gate = asyncio.Event()
    async with service_on(socket, router=router) as service, stream(service) as envoy:
        await asked(envoy, chat("code"))
        await until(lambda: router.requests != [])

        envoy.call.cancel()
        await until(lambda: router.cancelled > 0)

    assert (len(router.requests), router.cancelled) == (1, 1)


async def test_defect_of_the_router_passes_the_request_on(socket: Path) -> None:
    router = StubRouter()
    router.error = RuntimeError("with the text of a message")
    async with service_on(socket, router=router) as service, stream(service) as envoy:
        await asked(envoy, chat("code"))

        answer = await envoy.hear()

    assert set_headers(answer.request_body.response)["x-llm-reason"] == b"internal_error"
    assert b"text of a message" not in answer.SerializeToString()


async def test_unknown_policy_passes_the_request_on(socket: Path) -> None:
    async with service_on(socket) as service, stream(service) as envoy:
        await envoy.say(request_headers({**JSON, "x-llm-policy": "missing"}))
        await envoy.hear()
        await envoy.say(request_body(chat("code")))

        assert await reason(envoy) == b"unknown_policy"


async def test_initial_metadata_of_envoys_route_names_the_policy(socket: Path) -> None:
    async with service_on(socket) as service:
        async with stream(service, metadata=(("x-llm-policy", "travel"),)) as envoy:
            await asked(envoy, chat("code", model="whatever"))
            await envoy.hear()

        assert getattr(service.router.requests[0].policy, "name", "") == "travel"


async def test_malformed_body_is_passed_on_with_the_reason(socket: Path) -> None:
    async with service_on(socket) as service, stream(service) as envoy:
        await asked(envoy, b'{"model": "auto", "messages": [')

        assert await reason(envoy) == b"malformed_body"


async def test_large_body_is_read_in_a_thread_and_routed(socket: Path) -> None:
    async with service_on(socket) as service, stream(service) as envoy:
        await asked(envoy, chat("code", size=200_000))

        assert await reason(envoy) == b"matched"


async def test_full_duplex_body_that_stops_coming_goes_on_unrouted(socket: Path) -> None:
    options = ExtProcOptions(waiting=Waiting(body_s=0.05))
    async with service_on(socket, options) as service, stream(service, FULL_DUPLEX) as envoy:
        await envoy.say(request_headers(JSON))
        await envoy.say(request_body(b"12", end=False))

        head, body = await envoy.hear(), await envoy.hear()
        await envoy.say(request_body(b"34"))
        rest = await envoy.hear()

    assert set_headers(head.request_headers.response)["x-llm-reason"] == b"slow_body"
    assert streamed([body, rest]) == [(b"12", False), (b"34", True)]


async def test_buffered_stream_ends_by_itself_after_the_answer(socket: Path) -> None:
    async with service_on(socket) as service, stream(service) as envoy:
        await asked(envoy, chat("code"))
        await envoy.hear()

        assert await envoy.ended()


async def test_stream_that_waits_for_a_response_ends_when_the_server_drains(socket: Path) -> None:
    options = ExtProcOptions(stamp_response=True)
    async with service_on(socket, options) as service, stream(service) as envoy:
        await asked(envoy, chat("code"))
        await envoy.hear()

        service.drain.begin()

        assert await envoy.ended()
        assert await envoy.call.code() is grpc.StatusCode.OK


def readings() -> list[asyncio.Task[Any]]:
    """Tasks of the service that wait for a message."""
    tasks = asyncio.all_tasks()
    return [each for each in tasks if getattr(each.get_coro(), "__qualname__", "") == "_read"]


async def test_stream_that_is_reset_while_it_waits_for_a_response_leaves_no_task(
    socket: Path,
) -> None:
    options = ExtProcOptions(stamp_response=True)
    async with service_on(socket, options) as service:
        async with stream(service) as envoy:
            await asked(envoy, chat("code"))
            await envoy.hear()
            await until(lambda: readings() != [])
            (reading,) = readings()

        await until(reading.done)


async def test_stream_is_taken_and_answered_while_the_server_drains(socket: Path) -> None:
    """Envoy sends requests until its health check has seen the drain."""
    async with service_on(socket) as service:
        service.drain.begin()
        async with stream(service) as envoy:
            await asked(envoy, chat("code"))
            answer = await envoy.hear()

    assert set_headers(answer.request_body.response)["x-llm-model"] == b"big/coder"


async def test_server_waits_for_requests_that_are_not_answered(socket: Path) -> None:
    router = StubRouter()
    router.gate = asyncio.Event()
    async with service_on(socket, router=router) as service, stream(service) as envoy:
        await asked(envoy, chat("code"))
        await until(lambda: router.requests != [])
        service.drain.begin()
        idle = asyncio.ensure_future(service.drain.idle())
        await asyncio.sleep(0.05)
        assert not idle.done()

        router.gate.set()
        answer = await envoy.hear()
        async with asyncio.timeout(60):
            await idle

    assert set_headers(answer.request_body.response)["x-llm-model"] == b"big/coder"


def test_request_that_is_passed_on_is_counted_by_its_reason() -> None:
    class Counted(list[str]):
        def passed_on(self, reason: str) -> None:
            self.append(reason)

    counted, router = Counted(), StubRouter()
    decider = RequestDecider(router, router, StubDialects(), ExtProcOptions(), counted)

    decider.passing(Passed(PassReason.SLOW_BODY))

    assert counted == ["slow_body"]


class Noting:
    """Counts the responses that are watched."""

    watched = 0

    def watching(self) -> None:
        self.watched += 1

    def issued(self, response_id: str, caller: str, model: str, route: str) -> None:
        raise AssertionError("no response was shown")


@pytest.mark.parametrize(("path", "watched"), [("/v1/responses", 1), ("/v1/chat/completions", 0)])
async def test_only_responses_that_a_provider_keeps_are_watched(
    socket: Path, path: str, watched: int
) -> None:
    """Where Envoy shows those to all requests, the stream of the others ends with its first
    message."""
    noting = Noting()
    head = request_headers({**JSON, ":path": path, "x-llm-source": "model"})
    head.observability_mode = True
    async with (
        service_on(socket, dialects=LlmDialects(), issued=noting) as service,
        stream(service) as envoy,
    ):
        await envoy.call.write(head)
        if not watched:
            assert await envoy.ended()
        else:
            await until(lambda: noting.watched > 0)

    assert noting.watched == watched


async def test_responses_that_are_watched_leave_room_for_requests(socket: Path) -> None:
    """They can take minutes, and Envoy opens so many streams at most."""
    noting = Noting()
    options = ExtProcOptions(max_watched=1)
    failed = pb.ProcessingRequest(
        response_headers=pb.HttpHeaders(headers=header_map({":status": "404"}))
    )
    head = request_headers({**JSON, ":path": "/v1/responses", "x-llm-source": "model"})
    head.observability_mode = True
    async with service_on(socket, options, dialects=LlmDialects(), issued=noting) as service:
        async with stream(service) as first, stream(service) as second:
            await first.call.write(head)
            await until(lambda: noting.watched == 1)
            await second.call.write(head)
            assert await second.ended()
            await first.call.write(failed)
            assert await first.ended()
        async with stream(service) as third:
            await third.call.write(head)
            await until(lambda: noting.watched == 2)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/other"])
async def test_stream_of_a_request_that_is_only_observed_ends_with_it(
    socket: Path, path: str
) -> None:
    """Envoy would keep it open for as long as the response takes, and opens so many at most."""
    head = request_headers({**JSON, ":path": path})
    body = request_body(chat("code"))
    head.observability_mode = body.observability_mode = True
    async with service_on(socket) as service, stream(service) as envoy:
        await envoy.call.write(head)
        if path != "/other":
            await envoy.call.write(body)
        assert await envoy.ended()

    assert len(service.router.requests) == (path != "/other")


async def test_health_is_told_however_many_calls_there_are(tmp_path: Path) -> None:
    """Without an answer Envoy would send no requests at all."""
    path = tmp_path / f"s{ALONE}"
    # A connection of its own, as that of Envoy's health check is.
    apart = [("grpc.use_local_subchannel_pool", 1)]
    async with service_on(path, max_calls=1) as service, stream(service) as envoy:
        await envoy.say(request_headers(JSON))
        await envoy.hear()
        async with grpc.aio.insecure_channel(f"unix:{path}", options=apart) as channel:
            health: Any = HealthStub(channel)
            answer = await health.Check(HealthCheckRequest(service=SERVICE), timeout=60)

    assert answer.status == HealthCheckResponse.SERVING


async def test_socket_that_a_successor_has_opened_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / f"s{ALONE}"
    async with service_on(path):
        # It is not closed from here, so that the stop takes its time.
        reader, held = await asyncio.open_unix_connection(path)
        await reader.readexactly(1)
        opening = asyncio.ensure_future(open_when_free(path))
    await opening
    held.close()

    assert path.is_socket()


async def open_when_free(path: Path) -> None:
    while True:
        try:
            bound_unix(path).close()
            return
        except ListenError:
            await asyncio.sleep(0.01)


async def test_headers_without_end_are_refused_on_the_address_of_the_api() -> None:
    router = StubRouter()
    service = ExtProcService(router, router, StubDialects(), ExtProcOptions())
    server = GrpcServer(StandInRouter(), registry(), Metrics(), ServerOptions(), mounted=[service])
    await server.start()
    headers = [HeaderValue()] * (MAX_FIELDS + 1)
    shown = pb.HttpHeaders(headers=HeaderMap(headers=headers))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = ExternalProcessorStub(channel).Process()
        await call.write(pb.ProcessingRequest(request_headers=shown))
        code = await call.code()
    await server.stop(0)

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
