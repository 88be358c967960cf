"""Envoy's external processing service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, aclosing
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import grpc
import structlog

from sidecar._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from sidecar._generated.envoy.service.ext_proc.v3.external_processor_pb2_grpc import (
    ExternalProcessorServicer,
    add_ExternalProcessorServicer_to_server,
)
from sidecar.core.correlation import correlation_ids
from sidecar.ext_proc import messages
from sidecar.ext_proc.asking import RouteSays, caller_of
from sidecar.ext_proc.deciding import Models, PassObserver, RequestDecider, Router
from sidecar.ext_proc.effect import Effect
from sidecar.ext_proc.issued import IssuedObserver, ResponseWatch
from sidecar.ext_proc.machine import Answers, Exchange, Rules
from sidecar.ext_proc.options import ExtProcOptions, OwnedHeader
from sidecar.ext_proc.request import Dialects, HttpHead, HttpRequest, Passed, PassReason
from sidecar.ext_proc.timing import LatencyObserver, ResponseTimer

_VALUE: dict[int, Any] = {}
_STRUCT = {1: {2: _VALUE}}
_VALUE |= {5: _STRUCT, 6: {1: _VALUE}}
_HEADERS: Mapping[int, Any] = {1: {1: {}}, 2: {2: _STRUCT}}
_FIELDS: Mapping[str, Mapping[int, Any]] = {
    # Headers and trailers of the request and of its response, metadata and attributes.
    "Process": dict.fromkeys((2, 3, 6, 7), _HEADERS) | {8: {1: {2: _STRUCT}}, 9: {2: _STRUCT}}
}
"""By method: numbers of the fields of its messages that hold others, and of theirs. There can be
many on the TCP address, where others than Envoy call as well."""

SERVICE = pb.DESCRIPTOR.services_by_name["ExternalProcessor"].full_name

if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext


class Drain(Protocol):
    """The end of taking new work, as the server that the service is part of announces it."""

    def work(self) -> AbstractContextManager[None]:
        """Within the block the server waits before it stops; never refused."""
        ...

    def calls(self, callback: Callable[[], object]) -> AbstractContextManager[None]:
        """Within the block, `callback` is called when the drain begins, or at once if it has."""
        ...


class HeadObserver(Protocol):
    """Sees the headers of requests."""

    def request_headers(self, header: Callable[[str], str]) -> None:
        """`header`: the value of one in lower case; empty if there is none. What is bound to the
        context ends with the request."""
        ...


class ExtProcService(ExternalProcessorServicer):
    """One stream for each HTTP request.

    CancelledError always passes through: Envoy resets the stream when the client has gone or the
    time is over, and a handler that swallows it leaks memory
    (https://github.com/grpc/grpc/issues/43360). The router records the decision all the same.

    New streams are taken while the server drains, until it stops: Envoy sends them until its health
    check has seen the drain, and each that is refused is a request that goes unrouted or fails.
    """

    def __init__(
        self,
        router: Router,
        models: Models,
        dialects: Dialects,
        options: ExtProcOptions,
        observer: PassObserver | None = None,
        latencies: LatencyObserver | None = None,
        issued: IssuedObserver | None = None,
        traces: HeadObserver | None = None,
    ) -> None:
        """
        Args:
            latencies: gets what `options.measure_latency` has measured.
            issued: gets what providers keep, where Envoy shows their responses.
            traces: gets the headers of every request.
        """
        self._waiting = options.waiting
        self._latencies = latencies if options.measure_latency else None
        self._asking = options.asking
        self._models = models
        self._dialects = dialects
        self._names = options.writing.names
        self._issued = issued
        self._max_watched = options.max_watched
        self._watched = 0
        self._traces = traces
        self._drain: Drain | None = None
        self._served = False
        self._decider = RequestDecider(router, models, dialects, options, observer)
        self._rules = Rules(
            max_body_bytes=options.max_body_bytes,
            owned=options.writing.owned,
            recognise=self._recognise,
            passing=self._decider.passing,
            stamp=options.stamp_response,
            bufferable_bytes=options.bufferable_bytes,
            timed_response=self._latencies is not None,
            decided=options.writing.names[OwnedHeader.SOURCE],
        )

    name = SERVICE
    fields = _FIELDS

    @property
    def notice_s(self) -> float:
        """Seconds that callers need to see a drain; none where there have been no callers."""
        return self._waiting.notice_s if self._served else 0.0

    def add_to(self, server: grpc.aio.Server, drain: Drain) -> None:
        """Offers the service on a server that is not started yet."""
        self._drain = drain
        add_ExternalProcessorServicer_to_server(self, server)

    async def Process(  # type: ignore[override]  # noqa: N802 -- the method's name in the API
        self, request_iterator: object, context: Context
    ) -> None:
        # Reads and writes by the context: the stubs only know the other form, a generator, which a
        # caller that goes away leaves to the garbage collector.
        assert self._drain is not None, "add_to was called"
        self._served = True
        route = RouteSays.of(context.invocation_metadata() or (), self._asking)
        exchange = Exchange(self._rules, no_trailers=route.no_trailers)
        timer = ResponseTimer(self._latencies)
        message: pb.ProcessingRequest | None = None
        with self._drain.work():
            while not exchange.settled:
                message = await self._step(exchange, timer, route, context)
                if message is None:
                    return
        if exchange.watched is not None and message is not None:
            await self._watch(exchange.watched, message, context, self._drain)
        elif not exchange.finished:
            await self._follow(exchange, timer, context, self._drain)

    def _recognise(self, head: HttpHead) -> Passed | None:
        # Before anything is logged of the request. What is bound ends with the stream's task.
        structlog.contextvars.bind_contextvars(**correlation_ids(head.header))
        if self._traces is not None:
            self._traces.request_headers(head.header)
        return self._decider.recognise(head)

    async def _step(
        self, exchange: Exchange, timer: ResponseTimer, route: RouteSays, context: Context
    ) -> pb.ProcessingRequest | None:
        """Takes a message, answers it and returns it; None at the end of the stream."""
        if exchange.collecting:
            message = await self._next(exchange, context)
        else:
            message = await _read(context)
        if message is None:
            return None
        arrived = time.perf_counter()
        step = exchange.feed(message)
        if not isinstance(step, HttpRequest):
            await _write(context, step)
            return message
        effect = await self._effect(exchange, step, route, context, arrived)
        answers = exchange.decided(effect)
        await _write(context, answers)
        if answers:
            # Where requests are only observed, they go elsewhere.
            timer.sent(effect)
        return message

    async def _follow(
        self, exchange: Exchange, timer: ResponseTimer, context: Context, drain: Drain
    ) -> None:
        """What comes after the request has been answered: its response, or just the end."""
        async with aclosing(_until_drained(context, drain)) as incoming:
            async for message in incoming:
                timer.heard(message)
                step = exchange.feed(message)
                assert not isinstance(step, HttpRequest), "the request has been answered"
                await _write(context, step)
                if exchange.finished:
                    return

    async def _watch(
        self, head: HttpHead, first: pb.ProcessingRequest, context: Context, drain: Drain
    ) -> None:
        """The response to a request that is not decided on here."""
        if self._issued is None or not self._dialects.keeps(head):
            return
        # A response can take minutes. Each takes the place of a request to decide on.
        if self._watched >= self._max_watched:
            return
        caller = caller_of(head, self._asking)
        watch = ResponseWatch(head, self._names, caller, self._models.catalog, self._issued)
        watch.heard(first)
        if watch.ended:
            return
        self._watched += 1
        try:
            async with aclosing(_until_drained(context, drain)) as incoming:
                async for message in incoming:
                    watch.heard(message)
                    if watch.ended:
                        return
        finally:
            self._watched -= 1

    async def _next(self, exchange: Exchange, context: Context) -> pb.ProcessingRequest | None:
        """The next message of a body that is held back; None at the end of the stream."""
        # Not wait_for: a read that is cancelled takes the message with it.
        reading = asyncio.ensure_future(_read(context))
        try:
            await asyncio.wait({reading}, timeout=self._waiting.body_s)
            if not reading.done():
                await _write(context, exchange.pass_on(PassReason.SLOW_BODY))
            return await reading
        finally:
            reading.cancel()

    async def _effect(
        self,
        exchange: Exchange,
        request: HttpRequest,
        route: RouteSays,
        context: Context,
        arrived: float,
    ) -> Effect:
        budget = self._waiting.budget_s if exchange.timed else None
        longest = self._rules.max_body_bytes if exchange.timed else None
        deciding = self._decider.decide(request, route, budget, arrived, longest)
        after = self._waiting.ask_for_more_after_s
        if after is None or not exchange.timed:
            return await deciding
        return await self._asking_for_more(deciding, after, context)

    async def _asking_for_more(
        self, deciding: Coroutine[None, None, Effect], after_s: float, context: Context
    ) -> Effect:
        task = asyncio.ensure_future(deciding)
        try:
            await asyncio.wait({task}, timeout=after_s)
            if not task.done():
                more = self._waiting.max_message_timeout_s
                await _write(context, (messages.more_time(more),))
            return await task
        finally:
            # The caller has gone: the decision is ended, and recorded as cancelled.
            task.cancel()


async def _until_drained(
    context: Context, drain: Drain
) -> AsyncGenerator[pb.ProcessingRequest, None]:
    """What Envoy still sends. It can take as long as a response does; a drain ends it."""
    draining = asyncio.Event()
    with drain.calls(draining.set):
        drained = asyncio.ensure_future(draining.wait())
        reading = None
        try:
            while True:
                reading = asyncio.ensure_future(_read(context))
                await asyncio.wait({reading, drained}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    return
                message = reading.result()
                if message is None:
                    return
                yield message
        finally:
            drained.cancel()
            if reading is not None:
                # The stream ends with the call, and with it the reading.
                reading.cancel()


async def _read(context: Context) -> pb.ProcessingRequest | None:
    message = await context.read()
    # The end of the stream is `grpc.aio.EOF`, which the stubs do not have here.
    return message if isinstance(message, pb.ProcessingRequest) else None


async def _write(context: Context, answers: Answers) -> None:
    for answer in answers:
        await context.write(answer)
