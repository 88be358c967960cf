"""Where the server listens and how it ends."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar._generated.llmrouter.v1.routing_pb2_grpc import RoutingServiceStub
from sidecar.grpc_api.listening import ListenError, check_tcp, check_unix
from sidecar.grpc_api.server import GrpcServer, ServerOptions
from sidecar.observability.metrics import Metrics
from tests.grpc_api.standins import (
    Gate,
    StandInRouter,
    registry,
    route_request,
    serving,
)
from tests.waiting import until


def server_at(options: ServerOptions) -> GrpcServer:
    return GrpcServer(StandInRouter(), registry(), Metrics(), options)


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "sidecar.sock"


def mode_of(path: Path) -> int | None:
    """Permissions; None if there is no such file."""
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


async def ask(target: str) -> routing_pb2.RouteResponse:
    async with grpc.aio.insecure_channel(target) as channel:
        return await RoutingServiceStub(channel).Route(route_request())


async def test_tcp_and_unix_socket_serve_at_once(socket_path: Path) -> None:
    async with serving(options=ServerOptions(socket=socket_path)) as (server, _):
        for target in (f"127.0.0.1:{server.port}", f"unix:{socket_path}"):
            assert (await ask(target)).decision.route == "billing"


async def test_unix_socket_alone(socket_path: Path) -> None:
    server = server_at(ServerOptions(address="", socket=socket_path))
    await server.start()

    assert (await ask(f"unix:{socket_path}")).decision.route == "billing"
    await server.stop(0)
    assert mode_of(socket_path) is None


async def test_unix_socket_is_for_owner_and_group(socket_path: Path) -> None:
    async with serving(options=ServerOptions(socket=socket_path)):
        assert mode_of(socket_path) == 0o660


async def test_socket_of_a_killed_process_is_replaced(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as abandoned:
        abandoned.bind(os.fspath(socket_path))
        abandoned.listen()

    async with serving(options=ServerOptions(socket=socket_path)):
        assert (await ask(f"unix:{socket_path}")).decision.route == "billing"


def make_file(path: Path) -> None:
    path.write_text("precious")


def nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "name", "says"),
    [
        (make_file, "sidecar.sock", "is not a socket"),
        (nothing, "x" * 120, "choose a shorter path"),
        (nothing, "folder/sidecar.sock", "make the folder"),
    ],
    ids=["a file", "long path", "no folder"],
)
async def test_socket_that_cannot_be_opened_says_what_to_do(
    tmp_path: Path, prepare: Callable[[Path], None], name: str, says: str
) -> None:
    path = tmp_path / name
    prepare(path)

    with pytest.raises(ListenError, match=says) as refused:
        await server_at(ServerOptions(socket=path)).start()

    assert str(path) in str(refused.value)


async def test_socket_in_use_is_left_alone(socket_path: Path) -> None:
    async with serving(options=ServerOptions(socket=socket_path)):
        with pytest.raises(ListenError, match="another process listens there"):
            await server_at(ServerOptions(socket=socket_path)).start()

        assert (await ask(f"unix:{socket_path}")).decision.route == "billing"


@pytest.mark.parametrize("waiting", [0, 1, 2])
def test_socket_of_a_frozen_process_is_told_at_once(socket_path: Path, waiting: int) -> None:
    """`waiting`: connections that it has not taken; the second fills its queue."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as frozen, ExitStack() as clients:
        frozen.bind(os.fspath(socket_path))
        frozen.listen(1)
        for _ in range(waiting):
            client = clients.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.connect(os.fspath(socket_path))

        with pytest.raises(ListenError, match="another process listens there"):
            check_unix(socket_path)


async def test_port_in_use_says_so() -> None:
    async with serving() as (first, _):
        address = f"127.0.0.1:{first.port}"
        with pytest.raises(ListenError, match="another process listens there") as refused:
            await server_at(ServerOptions(address=address)).start()

    assert address in str(refused.value)


async def test_address_of_another_machine_says_so() -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:0: Cannot assign requested address"):
        await server_at(ServerOptions(address="192.0.2.1:0")).start()


async def test_name_that_does_not_resolve_says_so() -> None:
    with pytest.raises(ListenError, match=r"nowhere\.invalid:0"):
        await server_at(ServerOptions(address="nowhere.invalid:0")).start()


@pytest.mark.parametrize("host", ["nowhere..invalid", "n" * 64])
def test_what_is_no_host_name_is_named(host: str) -> None:
    with pytest.raises(ListenError, match=f"{host}:0: a host name has parts"):
        check_tcp(f"{host}:0")


async def test_drain_answers_every_call_that_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers keep calling while the server stops. Each call that reached the router is answered;
    the others are told that the server is unavailable, so that they can be sent elsewhere."""
    # It lasts until each caller has been refused, however long that takes here.
    monkeypatch.setattr("sidecar.grpc_api.server._REFUSING_S", 600)
    router = StandInRouter()
    codes: list[grpc.StatusCode] = []

    async def briefly(_: object) -> None:
        await asyncio.sleep(0.002)

    router.behavior = briefly
    server = GrpcServer(router, registry(), Metrics(), ServerOptions())
    await server.start()

    async def caller() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = RoutingServiceStub(channel)
            while True:
                try:
                    await stub.Route(route_request())
                    codes.append(grpc.StatusCode.OK)
                except grpc.aio.AioRpcError as error:
                    codes.append(error.code())
                    return

    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(caller()) for _ in range(8)]
        await until(lambda: len(router.requests) > 100)
        stopping = group.create_task(server.stop(600))
        await asyncio.wait(callers)
        server.end_grace()
        await stopping

    assert router.cancelled == 0
    assert codes.count(grpc.StatusCode.OK) == len(router.requests)
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}


async def test_drain_ends_streams_after_their_answers() -> None:
    router, gate = StandInRouter(), Gate()
    router.behavior = gate
    async with serving(router) as (server, channel):
        call = RoutingServiceStub(channel).StreamRoute()
        await call.write(routing_pb2.StreamRouteRequest(request_id="a", request=route_request()))
        await until(lambda: router.running == 1)
        stopping = asyncio.create_task(server.stop(30))
        await until(lambda: not server.ready)
        gate.open()

        answer = await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
        await stopping

    assert isinstance(answer, routing_pb2.StreamRouteResponse)
    assert answer.WhichOneof("result") == "decision"
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in str(ended.value.details())


async def test_idle_stream_does_not_hold_up_the_drain() -> None:
    async with serving() as (server, channel):
        call = RoutingServiceStub(channel).StreamRoute()
        await call.write(routing_pb2.StreamRouteRequest(request_id="a", request=route_request()))
        assert isinstance(await call.read(), routing_pb2.StreamRouteResponse)

        async with asyncio.timeout(60):
            await server.stop(600)

    assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_end_of_grace_cancels_what_is_still_in_flight() -> None:
    router = StandInRouter()
    router.behavior = Gate()
    async with serving(router) as (server, channel):
        call = RoutingServiceStub(channel).Route(route_request())
        await until(lambda: router.running == 1)
        stopping = asyncio.create_task(server.stop(60))
        await until(lambda: not server.ready)

        server.end_grace()

        await stopping
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    assert router.cancelled == 1


async def test_server_is_ready_between_start_and_drain() -> None:
    server = server_at(ServerOptions())
    states = [server.ready]
    await server.start()
    states.append(server.ready)
    server.begin_drain()
    states.append(server.ready)
    await server.stop(0)

    assert states == [False, True, False]
