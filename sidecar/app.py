"""The composition root: settings in, a running sidecar out. Nothing else knows all the parts."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog

from sidecar.admin import AdminServer, Console
from sidecar.app_ext_proc import build_ext_proc, envoy_sockets
from sidecar.app_policies import (
    PolicySourceError,
    api_policies,
    begin_live,
    open_policies,
    store_state,
)
from sidecar.app_prices import PriceWatch
from sidecar.app_routing import Routing, StartupError, build_routing
from sidecar.app_selection import call_selection
from sidecar.app_tracing import TracingError, begin_tracing
from sidecar.config import ServerSettings, Settings
from sidecar.core.errors import SidecarError
from sidecar.grpc_api.listening import ListenError, is_loopback
from sidecar.grpc_api.request_reader import Budget
from sidecar.grpc_api.server import GrpcServer, ServerOptions
from sidecar.grpc_api.tls import TlsFiles
from sidecar.observability.background import logging_in_background
from sidecar.observability.decisions import DecisionLog, DecisionSinks
from sidecar.observability.logging import LogOptions, configure_logging
from sidecar.observability.metrics import (
    LoadedPolicy,
    MeasuredLatency,
    Metrics,
    SidecarState,
    TargetState,
)
from sidecar.observability.recent import RecentDecisions
from sidecar.policies.stores import PolicyStore
from sidecar.routing.live import LivePolicies

if TYPE_CHECKING:
    from sidecar.observability.tracing import Tracing

_log = structlog.get_logger(__name__)


def _policies(settings: Settings, routing: Routing) -> tuple[PolicyStore, LivePolicies]:
    try:
        store = open_policies(settings)
        return store, begin_live(store, routing.registry, routing.targets, settings)
    except (PolicySourceError, SidecarError) as error:
        raise StartupError(str(error)) from None


def _tracing(settings: Settings, metrics: Metrics) -> Tracing | None:
    try:
        return begin_tracing(settings.tracing, metrics.spans)
    except TracingError as error:
        raise StartupError(str(error)) from None


def _tls(server: ServerSettings) -> TlsFiles | None:
    if server.tls_certificate is None or server.tls_key is None:
        return None
    return TlsFiles(server.tls_certificate, server.tls_key, server.tls_client_ca)


class Sidecar:
    """One sidecar: what decides and what listens.

    Raises:
        StartupError: when made, for settings that cannot work.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        metrics = Metrics(settings.metrics.max_policy_labels)
        self._tracing = _tracing(settings, metrics)
        traced = [] if self._tracing is None else [self._tracing]
        shows = settings.admin.console and settings.server.http_address
        recent = RecentDecisions() if shows else None
        shown = [] if recent is None else [recent]
        log = DecisionLog(settings.logging.log_message_text)
        self._routing = build_routing(
            settings,
            DecisionSinks(log, metrics, *traced, *shown),
            None if self._tracing is None else self._tracing.begin_trace,
        )
        self._store, self._live = _policies(settings, self._routing)
        self._prices = PriceWatch(
            lambda: self._routing.registry.catalog, settings.policies.price_max_age_days
        )
        self._following: list[asyncio.Task[None]] = []
        server = settings.server
        mounted = build_ext_proc(
            settings,
            self._routing.router,
            self._routing.registry,
            metrics,
            self._routing.latencies,
            self._routing.router,
            self._tracing,
        )
        self.grpc = GrpcServer(
            self._routing.router,
            self._routing.registry,
            metrics,
            ServerOptions(
                address=server.grpc_address,
                tls=_tls(server),
                socket=server.uds_path,
                max_message_bytes=server.max_message_bytes,
                max_concurrent_calls=server.max_concurrent_calls,
                reflection=server.reflection,
                channelz=server.channelz,
                selection=call_selection(settings),
                max_price_age_days=settings.policies.price_max_age_days,
                budget=Budget(
                    settings.routing.decision_budget_ms / 1000, settings.routing.reserve_ms / 1000
                ),
            ),
            mounted=mounted,
            sockets=envoy_sockets(settings, mounted),
            policies=api_policies(settings, self._store, self._live),
            layers=traced,
        )
        metrics.watch(self.state)
        self.admin = self._admin(metrics, recent) if server.http_address else None

    def _admin(self, metrics: Metrics, recent: RecentDecisions | None) -> AdminServer:
        address, console = self._settings.server.http_address, None
        if recent is not None:
            registry, trials = self._routing.registry, self.grpc.trials
            console = Console(address, registry, recent.entries, trials.decide)
            if not is_loopback(address):
                _log.warning(
                    "the console shows policies and decisions to whoever reaches its address, and "
                    "tries their requests; admin.console switches it off",
                    address=address,
                )
        return AdminServer(address, metrics, self.state, lambda: self.grpc.ready, console)

    def state(self) -> SidecarState:
        """What it is doing now."""
        routing, prices = self._routing, self._prices.ages()
        return SidecarState(
            ready=self.grpc.ready,
            degraded=routing.router.degraded,
            routing_model=routing.ref.id,
            prompt_format=routing.ref.prompt_format,
            policies=tuple(
                LoadedPolicy(
                    each.ref.name, each.ref.revision, each.ref.digest, len(each.policy.routes)
                )
                for each in routing.registry.named()
            ),
            waiting=routing.router.waiting,
            policy_store=store_state(self._live),
            targets=tuple(
                TargetState(
                    each.name,
                    each.model.degraded,
                    each.load.in_flight,
                    each.encoder_lost(),
                    each.other_engine(),
                )
                for each in routing.targets
            ),
            pinned=len(routing.pins or ()),
            compiled=routing.registry.compiled_policies,
            compiled_bytes=routing.registry.compiled_bytes,
            cached=len(routing.cache or ()),
            cached_bytes=routing.cache.nbytes if routing.cache else 0,
            models=len(routing.registry.catalog),
            models_unpriced=len(prices.unpriced),
            prices_stale=len(prices.stale),
            prices_undated=len(prices.undated),
            prices_oldest=prices.oldest.isoformat() if prices.oldest else "",
            latencies=tuple(
                MeasuredLatency(model, whole, seconds)
                for (model, whole), seconds in (
                    routing.latencies.measured() if routing.latencies else {}
                ).items()
            ),
        )

    async def start(self) -> None:
        """Opens the addresses. Raises StartupError."""
        self._routing.start()
        self._following = [
            asyncio.create_task(self._live.follow(), name="policies"),
            asyncio.create_task(self._prices.follow(), name="prices"),
        ]
        try:
            # HTTP first: a process that cannot be watched should not take requests.
            if self.admin is not None:
                await self.admin.start()
            await self.grpc.start()
        except (ListenError, OSError) as error:
            await self.stop(0)
            raise StartupError(str(error)) from None

    async def stop(self, grace_s: float) -> None:
        """Drains within `grace_s` and closes everything. A second call with a shorter time, while
        the first waits, shortens it."""
        await self.grpc.stop(grace_s)
        if self.admin is not None:
            await self.admin.stop()
        for each in self._following:
            each.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        await self._live.close()
        self._store.close()
        await self._routing.close()
        if self._tracing is not None:
            await self._tracing.close()


_SWITCH_S = 0.002
"""How long a thread that computes, such as one that reads a large body, keeps the event loop from
going on. With CPython's 5 ms a request that takes three steps waits 15 ms beside it."""


def run(settings: Settings, started: Callable[[Sidecar], None] = lambda sidecar: None) -> None:
    """Serves until SIGTERM or SIGINT. Raises StartupError.

    Args:
        started: called once the addresses are open.
    """
    configure_logging(
        LogOptions(
            settings.logging.level, settings.logging.format, settings.logging.log_message_text
        )
    )
    sys.setswitchinterval(_SWITCH_S)
    with logging_in_background(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings, started))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        # It has no build for every platform; the standard loop is half as fast and right.
        return None
    return uvloop.new_event_loop


async def serve(
    settings: Settings,
    started: Callable[[Sidecar], None] = lambda sidecar: None,
    stop: asyncio.Event | None = None,
) -> None:
    """As `run`, in the running event loop; setting `stop` ends it like a signal does."""
    asyncio.get_running_loop().set_exception_handler(_log_loop_error)
    stopping = stop or asyncio.Event()
    with _signals(stopping) as forced:
        # Thousands of policies are read: collections in between would visit them all each time.
        gc.disable()
        try:
            sidecar = Sidecar(settings)
            await sidecar.start()
            # What was made until now stays for good; left out of collections, which visit it all,
            # these hold up the event loop for a few milliseconds instead of fifty.
            gc.collect()
            gc.freeze()
        finally:
            gc.enable()
        started(sidecar)
        await stopping.wait()
        grace = settings.server.drain_seconds
        _log.info("stopping: waiting for calls in flight, a second signal ends them", grace_s=grace)
        draining = asyncio.create_task(sidecar.stop(grace))
        forcing = asyncio.create_task(forced.wait())
        await asyncio.wait({draining, forcing}, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            _log.warning("stopping now: calls in flight are cancelled")
            sidecar.grpc.end_grace()
        forcing.cancel()
        await draining
    _log.info("stopped")


@contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[asyncio.Event]:
    """The first SIGTERM or SIGINT sets `stopping`, the second the event that is yielded."""
    forced = asyncio.Event()

    def received() -> None:
        (forced if stopping.is_set() else stopping).set()

    loop = asyncio.get_running_loop()
    caught = (signal.SIGTERM, signal.SIGINT)
    for number in caught:
        loop.add_signal_handler(number, received)
    try:
        yield forced
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


def _log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Leaves out asyncio's own text, which quotes the exception and with it what it holds."""
    _log.error(
        "error in the event loop", what=context["message"], exc_info=context.get("exception")
    )
