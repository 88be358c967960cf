"""Calls a running sidecar, without an event loop."""

from __future__ import annotations

from types import TracebackType
from typing import Self, cast

import grpc
from grpc_health.v1 import health_pb2

from sidecar._generated.llmrouter.v1 import decision_pb2, routing_pb2
from sidecar.cli.connection import connect, no_answer
from sidecar.cli.failures import Failure
from sidecar.cli.tls_options import Tls
from sidecar.core.decision import RoutingRequest
from sidecar.grpc_api.convert.outgoing_requests import request_to_proto
from sidecar.grpc_api.health import ROUTING_MODEL


class Unreached(Failure):
    """Nobody has answered, or not in time."""


class SidecarClient:
    """One connection. `address` is `host:port` or `unix:path`."""

    def __init__(self, address: str, timeout_s: float, tls: Tls | None = None) -> None:
        """Raises Failure for files that TLS cannot use."""
        self._address = address
        self._timeout_s = timeout_s
        self._tls = tls
        # While one starts, look again soon.
        self._channel = connect(address, tls, ("grpc.max_reconnect_backoff_ms", 200))
        # The generated stubs are typed for asyncio alone.
        self._route = self._channel.unary_unary(
            "/llmrouter.v1.RoutingService/Route",
            request_serializer=routing_pb2.RouteRequest.SerializeToString,
            response_deserializer=routing_pb2.RouteResponse.FromString,
        )
        self._check = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._channel.close()

    def route(self, request: RoutingRequest) -> decision_pb2.Decision:
        """One decision. Raises Failure, with what to do."""
        try:
            answer = self._route(request_to_proto(request), timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise self._failure(cast(grpc.Call, error)) from None
        return answer.decision

    def decides_by_model(self) -> bool:
        """True if the sidecar serves and its routing model answers."""
        request = health_pb2.HealthCheckRequest(service=ROUTING_MODEL)
        try:
            answer = self._check(request, timeout=self._timeout_s)
        except grpc.RpcError:
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def _failure(self, error: grpc.Call) -> Failure:
        code = error.code()
        if code is grpc.StatusCode.UNAVAILABLE:
            why = no_answer(self._address, self._tls, error.details())
            return Unreached(f"{why}; start one with `sidecar up`, or name another with --address")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unreached(
                f"the sidecar at {self._address} did not answer within {self._timeout_s:g} s"
            )
        return Failure(f"{error.details()} ({code.name})")
