"""`grpc.health.v1`: one name per service, and one each for the routing model and the policy store.

A service is SERVING when it can answer, and it can without a routing model: by fallback. The states
of the routing model and of the policy store have names of their own, for people and dashboards; no
probe should use them.

The servicer is our own because that of grpcio-health-checking loses watchers: the first of several
that leaves takes the others' notifications with it (https://github.com/grpc/grpc/pull/43403), and
none of them ends on shutdown, so that each would use up the whole grace period.
"""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.grpc_api.context import Context
from sidecar.grpc_api.drain import Drain
from sidecar.grpc_api.protocols import ChangeFeed, Router

WHOLE_SERVER = ""
ROUTING_MODEL = "llmrouter.v1.RoutingModel"
"""SERVING while the routing model answers."""
POLICY_STORE = "llmrouter.v1.PolicyStore"
"""SERVING while what is in force is what the policy store holds."""

_LOOK_INTERVAL_S = 0.25

_Status = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):
    """Answers Check and Watch. Every service is NOT_SERVING until it is set."""

    def __init__(self, services: tuple[str, ...], drain: Drain) -> None:
        self._serving = dict.fromkeys((WHOLE_SERVER, *services, ROUTING_MODEL, POLICY_STORE), False)
        self._services = (WHOLE_SERVER, *services)
        self._drain = drain
        # Replaced at every change: whoever waits for the old one has a change to look at.
        self._changed = asyncio.Event()

    def serve(self) -> None:
        """All services can answer now."""
        self._set(self._services, True)

    def stop_serving(self) -> None:
        """No service can answer any more, and the drain has begun: watchers are told and end."""
        self._set(tuple(self._serving), False)

    def set_routing_model(self, answers: bool) -> None:
        self._set((ROUTING_MODEL,), answers and not self._drain.begun)

    def set_policy_store(self, good: bool) -> None:
        self._set((POLICY_STORE,), good and not self._drain.begun)

    async def follow(self, router: Router, feed: ChangeFeed) -> None:
        """Keeps the states of the routing model and of the policy store up to date until
        cancelled."""
        while True:
            self.set_routing_model(not router.degraded)
            self.set_policy_store(not feed.problem)
            await asyncio.sleep(_LOOK_INTERVAL_S)

    def _set(self, names: tuple[str, ...], serving: bool) -> None:
        if all(self._serving[name] == serving for name in names) and not self._drain.begun:
            return
        self._serving.update(dict.fromkeys(names, serving))
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, service: str) -> int:
        serving = self._serving.get(service)
        if serving is None:
            return int(_Status.SERVICE_UNKNOWN)
        return int(_Status.SERVING if serving else _Status.NOT_SERVING)

    async def Check(  # noqa: N802 -- the method's name in the API
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._serving:
            known = ", ".join(name or '""' for name in self._serving)
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"unknown service; the services are {known}"
            )
        return _Status(status=self._status(request.service))

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        sent = None
        while True:
            changed = self._changed
            # Asked before the write: a drain that begins during it changes the status once more.
            last = self._drain.begun
            status = self._status(request.service)
            if status != sent:
                await context.write(_Status(status=status))
                sent = status
            if last:
                return
            await changed.wait()
