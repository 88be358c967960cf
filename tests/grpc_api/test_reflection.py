"""What the server tells about itself."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sidecar.grpc_api.server import ServerOptions
from tests.grpc_api.standins import serving


async def reflected(
    channel: grpc.aio.Channel, request: reflection_pb2.ServerReflectionRequest
) -> Any:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
    (response,) = [each async for each in stub.ServerReflectionInfo(iter([request]))]
    return response


async def test_reflection_lists_all_services(channel: grpc.aio.Channel) -> None:
    response = await reflected(channel, reflection_pb2.ServerReflectionRequest(list_services=""))

    assert sorted(each.name for each in response.list_services_response.service) == [
        "grpc.channelz.v1.Channelz",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "llmrouter.v1.PolicyService",
        "llmrouter.v1.RoutingService",
    ]


async def test_reflection_describes_a_method(channel: grpc.aio.Channel) -> None:
    response = await reflected(
        channel,
        reflection_pb2.ServerReflectionRequest(
            file_containing_symbol="llmrouter.v1.RoutingService"
        ),
    )

    files = response.file_descriptor_response.file_descriptor_proto
    assert any(b"StreamRoute" in each for each in files)


async def test_channelz_counts_calls(channel: grpc.aio.Channel) -> None:
    stub: Any = channelz_pb2_grpc.ChannelzStub(channel)  # type: ignore[arg-type]

    response = await stub.GetServers(channelz_pb2.GetServersRequest(start_server_id=0))

    assert sum(each.data.calls_started for each in response.server) >= 1


async def test_switched_off_they_are_not_offered() -> None:
    async with serving(options=ServerOptions(reflection=False, channelz=False)) as (_, channel):
        channelz: Any = channelz_pb2_grpc.ChannelzStub(channel)  # type: ignore[arg-type]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channelz.GetServers(channelz_pb2.GetServersRequest())
        with pytest.raises(grpc.aio.AioRpcError) as also_caught:
            await reflected(channel, reflection_pb2.ServerReflectionRequest(list_services=""))

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert also_caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
