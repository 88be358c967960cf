"""A Unix domain socket for Envoy alone, served without gRPC's library."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from grpc_health.v1 import health_pb2

from sidecar._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from sidecar.ext_proc.http2.listener import Layer, Listener, Method
from sidecar.ext_proc.service import SERVICE, ExtProcService

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health(Protocol):
    """Answers Envoy's active health check."""

    async def Check(self, request: Any, context: Any) -> Any: ...  # noqa: N802

    async def Watch(self, request: Any, context: Any) -> None: ...  # noqa: N802


class EnvoySocket:
    """Offers the service, and `grpc.health.v1`, on `path`.

    Args:
        max_calls: at once, streams included.
    """

    def __init__(
        self, service: ExtProcService, path: Path, max_calls: int, max_message_bytes: int
    ) -> None:
        self.path = path
        self._service = service
        self._max_calls = max_calls
        self._max_message_bytes = max_message_bytes
        self._listener: Listener | None = None

    async def start(self, bound: socket.socket, health: Health, layers: Sequence[Layer]) -> None:
        """Serves on `bound`; the service was added to a server before."""
        check = health_pb2.HealthCheckRequest
        methods = {
            f"{SERVICE}/Process": Method(self._service.Process, pb.ProcessingRequest, True),
            # Refused, it would tell Envoy to send no requests at all, for there are many.
            f"{_HEALTH}/Check": Method(health.Check, check, always=True),
            f"{_HEALTH}/Watch": Method(health.Watch, check),
        }
        self._listener = Listener(methods, layers, self._max_calls, self._max_message_bytes)
        await self._listener.start(bound)

    async def stop(self) -> None:
        """Ends what has not ended by itself, and removes the socket."""
        if self._listener is not None:
            # First: as soon as nobody listens, another sidecar may have put its own there.
            self.path.unlink(missing_ok=True)
            await self._listener.stop()
