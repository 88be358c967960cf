"""Health, metrics and the console over HTTP.

    /          which paths there are
    /healthz   200 while the process works at all (liveness)
    /readyz    200 while requests are taken, 503 before and after (readiness)
    /metrics   Prometheus
    /status    what is running, as JSON
    /console   the console, where it is on

Neither probe depends on the model server: the sidecar answers without it, by fallback.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.log import server_logger
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sidecar import __version__
from sidecar.admin.console import MAX_BYTES, Console
from sidecar.observability.metrics import Metrics, SidecarState

_SHUTDOWN_S = 1.0

T = TypeVar("T")


class _Log(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's, where what a client sends that is no HTTP, such as gRPC, is no defect."""

    def exception(self, msg: object, *args: object, **kwargs: Any) -> None:
        bad_input = isinstance(kwargs.get("exc_info"), HttpProcessingError)
        self.log(logging.DEBUG if bad_input else logging.ERROR, msg, *args, **kwargs)


class AdminServer:
    """Serves the state and the metrics of one sidecar."""

    def __init__(
        self,
        address: str,
        metrics: Metrics,
        state: Callable[[], SidecarState],
        ready: Callable[[], bool],
        console: Console | None = None,
    ) -> None:
        """
        Args:
            address: `host:port`; port 0 takes a free one.
            ready: whether requests are taken: of the state alone what probes ask every few seconds.
            console: None: there is none.
        """
        self._address = address
        self._metrics = metrics
        self._state = state
        self._ready = ready
        self._console = console
        self._encoding = ThreadPoolExecutor(1, "encode-admin")
        self._started = time.monotonic()
        self._runner = web.AppRunner(
            self._application(),
            # Every probe would be an entry.
            access_log=None,
            logger=_Log(server_logger),
            # Whoever reads slowly must not hold up the end; decisions are waited for before.
            shutdown_timeout=_SHUTDOWN_S,
        )
        self.port = 0

    async def start(self) -> None:
        """Opens the address; `port` is then its port. Raises OSError that says what to do."""
        host, _, port = self._address.rpartition(":")
        await self._runner.setup()
        site = web.TCPSite(self._runner, host.strip("[]"), int(port), reuse_port=False)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            if error.errno == errno.EADDRINUSE:
                raise OSError(
                    error.errno,
                    f"cannot listen on {self._address}: another process listens there; stop it or "
                    "choose another port",
                ) from None
            raise
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=MAX_BYTES)
        application.router.add_get("/", self._index)
        application.router.add_get("/healthz", self._live)
        application.router.add_get("/readyz", self._readiness)
        application.router.add_get("/metrics", self._metrics_page)
        application.router.add_get("/status", self._status)
        if self._console is not None:
            self._console.add_to(application.router)
        return application

    async def _index(self, request: web.Request) -> web.Response:
        paths = {resource.canonical for resource in request.app.router.resources()}
        pages = sorted(path for path in paths if path.count("/") == 1 and path != "/")
        return web.Response(text=f"LLM Routing Sidecar {__version__}: {', '.join(pages)}\n")

    async def _live(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readiness(self, request: web.Request) -> web.Response:
        if self._ready():
            return web.Response(text="ready\n")
        return web.Response(status=503, text="not ready: starting or shutting down\n")

    async def _metrics_page(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # Collected here, where what is counted changes.
        collected = _Collected(list(self._metrics.registry.collect()))
        body = await self._encoded(partial(encode, collected))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _status(self, request: web.Request) -> web.Response:
        status = {
            "version": __version__,
            "uptime_seconds": round(time.monotonic() - self._started, 1),
            **_fields(self._state()),
        }
        body = await self._encoded(partial(json.dumps, status, default=_fields))
        return web.json_response(text=body)

    async def _encoded(self, encode: Callable[[], T]) -> T:
        """In a thread: for as many policies as have labels of their own it takes a tenth of a
        second, in which no decision would be made."""
        return await asyncio.get_running_loop().run_in_executor(self._encoding, encode)


class _Collected(Collector):
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _fields(part: Any) -> dict[str, Any]:
    return {each.name: getattr(part, each.name) for each in fields(part)}
