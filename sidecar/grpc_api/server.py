"""The gRPC server: what it offers, where it listens, how it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import grpc
import structlog
from grpc_channelz.v1 import channelz_pb2
from grpc_channelz.v1.channelz import add_channelz_servicer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from sidecar._generated.llmrouter.v1 import (
    policy_pb2,
    policy_pb2_grpc,
    routing_pb2,
    routing_pb2_grpc,
)
from sidecar.core.naming import PolicySelection
from sidecar.grpc_api import wire
from sidecar.grpc_api.convert.requests import RequestLimits
from sidecar.grpc_api.deciding import Deciding
from sidecar.grpc_api.drain import Drain
from sidecar.grpc_api.health import HealthService
from sidecar.grpc_api.interceptors import (
    CallLimit,
    CallLog,
    CallMetrics,
    CallObserver,
    DrainRefusal,
    Errors,
    Layer,
    LayeredServer,
    Refuse,
)
from sidecar.grpc_api.listening import bound_unix, listen_tcp, listen_unix
from sidecar.grpc_api.policy_access import Policies, PolicyAccess, fixed_policies
from sidecar.grpc_api.policy_service import PolicyService
from sidecar.grpc_api.protocols import PolicyRegistry, Router
from sidecar.grpc_api.request_reader import Budget, RequestReader
from sidecar.grpc_api.routing_service import Concurrency, RoutingService
from sidecar.grpc_api.tls import TlsFiles, server_credentials
from sidecar.grpc_api.trials import Trials
from sidecar.policies import MAX_BYTES
from sidecar.policies.prices import MAX_AGE_DAYS

_log = structlog.get_logger(__name__)

ROUTING = routing_pb2.DESCRIPTOR.services_by_name["RoutingService"].full_name
POLICIES = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name

_KEEPALIVE_TIME_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
_MIN_PING_INTERVAL_MS = 5_000
"""Clients that ping more often are disconnected. gRPC's own limit of five minutes disconnects
clients with a usual keepalive of ten seconds (https://github.com/grpc/grpc/blob/master/doc/keepalive.md)."""

_MAX_POLICY_REQUEST_BYTES = 2 * MAX_BYTES
"""Of what is decoded: twice a policy or a catalog, so that a large one is told what it is."""

_BESIDES = 1000
"""Calls beyond the most that are served: health checks, and requests on their way in, which gRPC
alone sees. Its own limit knows no methods, so that health would be refused by it, too."""

_REFUSING_S = 0.1
"""How long new calls are refused before the connections are closed."""

_FLUSH_S = 1.0
"""How long an answer may take to leave, and a reflection stream to end, after the drain."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the server is set up.

    Args:
        address: `host:port` for TCP; empty for none. Port 0 takes a free one.
        tls: of the address; None: plaintext, as on the socket.
        socket: path of a Unix domain socket, besides the address; None for none.
        max_message_bytes: of a message in either direction.
        max_concurrent_calls: calls served at once, besides those of health; more are
            RESOURCE_EXHAUSTED.
        selection: of the policy, by a call's metadata, for requests that name none.
        max_price_age_days: prices that were looked up longer ago are doubtful.
        budget: of a decision, which reading its request is part of.
    """

    address: str = "127.0.0.1:0"
    tls: TlsFiles | None = None
    socket: Path | None = None
    max_message_bytes: int = 16 * 1024 * 1024
    max_concurrent_calls: int | None = None
    reflection: bool = True
    channelz: bool = True
    limits: RequestLimits = field(default_factory=RequestLimits)
    concurrency: Concurrency = field(default_factory=Concurrency)
    selection: PolicySelection = field(default_factory=PolicySelection)
    max_price_age_days: int = MAX_AGE_DAYS
    budget: Budget = field(default_factory=Budget)


class MountedService(Protocol):
    """A service of another edge, offered on the same addresses."""

    @property
    def name(self) -> str:
        """Full name of the service."""
        ...

    @property
    def notice_s(self) -> float:
        """Seconds after which its callers have seen that the server drains; 0 if it has none. Until
        then its calls are still taken."""
        ...

    @property
    def fields(self) -> Mapping[str, wire.Fields]:
        """By method: which fields of its requests hold messages, so that these are counted before
        they are decoded."""
        ...

    def add_to(self, server: grpc.aio.Server, drain: Drain) -> None: ...


class OwnSocket(Protocol):
    """A Unix domain socket on which a mounted service is served by other means."""

    @property
    def path(self) -> Path: ...

    async def start(
        self, bound: socket.socket, health: HealthService, layers: Sequence[Layer]
    ) -> None: ...

    async def stop(self) -> None: ...


class GrpcServer:
    """Serves the API on TCP and a Unix domain socket at once."""

    def __init__(
        self,
        router: Router,
        registry: PolicyRegistry,
        observer: CallObserver,
        options: ServerOptions,
        mounted: Sequence[MountedService] = (),
        policies: Policies | None = None,
        sockets: Sequence[OwnSocket] = (),
        layers: Sequence[Layer] = (),
    ) -> None:
        """
        Args:
            policies: where policies are kept; None: those of the registry, which stay.
            layers: further ones, within those that every call has.
        """
        self._router = router
        self._policies = policies or fixed_policies(registry)
        self._options = options
        self._mounted = mounted
        self._sockets = sockets
        self._drain = Drain()
        names = (ROUTING, POLICIES, *(service.name for service in mounted))
        self._health = HealthService(names, self._drain)
        self._following: asyncio.Task[None] | None = None
        self._grace_ended = asyncio.Event()
        common, most = _layers(observer, self._drain), options.max_concurrent_calls
        self._layers = (*common, *layers)
        limit = () if most is None else (CallLimit(most),)
        self._server = LayeredServer(
            grpc.aio.server(
                options=_channel_options(options),
                maximum_concurrent_rpcs=most and most + _BESIDES,
            ),
            (*common, *limit, *layers),
            _refusals(options.limits, mounted),
        )
        reader = RequestReader(registry, options.limits, options.selection, options.budget)
        deciding = Deciding(router, reader)
        self.trials = Trials(router, reader, self._drain)
        routing_pb2_grpc.add_RoutingServiceServicer_to_server(
            RoutingService(deciding, options.concurrency, self._drain), self._server
        )
        access = PolicyAccess(self._policies, registry)
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(
            PolicyService(registry, access, router, self._drain, options.max_price_age_days),
            self._server,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for service in mounted:
            service.add_to(self._server, self._drain)
        self._offer_diagnostics()
        self.port = 0

    @property
    def ready(self) -> bool:
        """True while the server takes requests and is not about to stop."""
        return self._following is not None and not self._drain.begun

    def _offer_diagnostics(self) -> None:
        names = [ROUTING, POLICIES, *(service.name for service in self._mounted)]
        names.append(health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        if self._options.channelz:
            add_channelz_servicer(self._server)
            names.append(channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name)
        if self._options.reflection:
            reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self._server)

    async def start(self) -> None:
        """Opens the addresses and serves; `port` is then the TCP port. Raises ListenError."""
        if self._options.address:
            tls = self._options.tls
            credentials = server_credentials(tls) if tls is not None else None
            self.port = listen_tcp(self._server, self._options.address, credentials)
        if self._options.socket is not None:
            listen_unix(self._server, self._options.socket)
        await self._server.start()
        for each in self._sockets:
            await each.start(bound_unix(each.path), self._health, self._layers)
        self._following = asyncio.create_task(
            self._health.follow(self._router, self._policies.feed), name="health"
        )
        self._health.serve()
        _log.info("serving", port=self.port, socket=str(self._options.socket or ""))

    def begin_drain(self) -> None:
        """Health says NOT_SERVING, long-lived calls come to their end, new ones are refused."""
        self._drain.begin()
        self._health.stop_serving()

    async def stop(self, grace_s: float) -> None:
        """Begins the drain and waits for the calls in flight at most `grace_s`; then they are
        cancelled."""
        self.begin_drain()
        answered = asyncio.create_task(self._answer_what_was_taken())
        ended = asyncio.create_task(self._grace_ended.wait())
        await asyncio.wait({answered, ended}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        # What remains is the last answers on their way out, or what must end now.
        flush_s = _FLUSH_S if answered.done() else 0
        await asyncio.gather(self._server.stop(flush_s), *(s.stop() for s in self._sockets))
        for task in (answered, ended, self._following):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _answer_what_was_taken(self) -> None:
        await asyncio.sleep(max((service.notice_s for service in self._mounted), default=0.0))
        await self._drain.idle()
        # Calls that are on their way get the drain's answer; those that gRPC holds and has not
        # handed over yet when it stops would be told CANCELLED, which callers do not try again.
        await asyncio.sleep(_REFUSING_S)

    def end_grace(self) -> None:
        """Ends the waiting of `stop`: calls in flight are cancelled now."""
        self._grace_ended.set()


def _layers(observer: CallObserver, drain: Drain) -> tuple[Layer, ...]:
    return (
        # Outermost, so that an exception of any other layer becomes a status too.
        Errors(),
        # Inside the errors: it still sees which error it was, not the status made of it; outside
        # the logging, so that it times what the caller waits for.
        CallMetrics(observer),
        # Around everything that the handler does, so that what it binds is bound there.
        CallLog(),
        # Innermost: a call that it refuses is counted and logged like any other refusal.
        DrainRefusal(drain),
    )


def _refusals(limits: RequestLimits, mounted: Sequence[MountedService]) -> dict[str, Refuse]:
    methods = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].methods
    policies: Refuse = partial(
        wire.too_long, max_bytes=_MAX_POLICY_REQUEST_BYTES, remedy="send less at once"
    )
    others: dict[str, Refuse] = {
        f"{service.name}/{method}": partial(wire.refusal, within=fields)
        for service in mounted
        for method, fields in service.fields.items()
    }
    return {
        **others,
        **{f"{POLICIES}/{method.name}": policies for method in methods},
        f"{ROUTING}/Route": partial(
            wire.refusal, within=wire.ROUTE, max_bytes=limits.max_request_bytes
        ),
        f"{ROUTING}/BatchRoute": wire.batch_refusal,
        f"{ROUTING}/StreamRoute": partial(wire.refusal, within=wire.STREAM),
    }


def _channel_options(options: ServerOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        # Without this a second sidecar on the same port starts, and each gets half the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.enable_channelz", int(options.channelz)),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # Without it a ping's answer is waited for a minute.
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
    ]
