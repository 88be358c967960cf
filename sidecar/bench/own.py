"""Measurements of a running sidecar."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar.bench import traffic
from sidecar.bench.measuring import (
    Call,
    Measured,
    Sample,
    closed_loop,
    numbers,
    sample_of,
    without_model,
)
from sidecar.bench.rows import Row, percentile, row, rows_by_part
from sidecar.bench.scale import Scale

_SERVICE = "/llmrouter.v1.RoutingService"
_TIMEOUT_S = 30.0
"""Far beyond the sidecar's own budget, so that it is the sidecar that decides when to answer."""

_BATCH = 16
_LONG_WORDS = 100
_TRIES = 30
_IN_FLIGHT = 8

_WARM_TIMEOUT_S = 120
_SENDER_START_S = 2.0


class TooSlowError(Exception):
    """There is nothing to measure; the text says why."""


class Routes:
    """Calls of one channel's RoutingService, typed and timed."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._route: Any = channel.unary_unary(
            f"{_SERVICE}/Route",
            request_serializer=routing_pb2.RouteRequest.SerializeToString,
            response_deserializer=routing_pb2.RouteResponse.FromString,
        )
        self._batch: Any = channel.unary_unary(
            f"{_SERVICE}/BatchRoute",
            request_serializer=routing_pb2.BatchRouteRequest.SerializeToString,
            response_deserializer=routing_pb2.BatchRouteResponse.FromString,
        )
        self._stream: Any = channel.stream_stream(
            f"{_SERVICE}/StreamRoute",
            request_serializer=routing_pb2.StreamRouteRequest.SerializeToString,
            response_deserializer=routing_pb2.StreamRouteResponse.FromString,
        )

    async def route(self, request: routing_pb2.RouteRequest) -> Sample:
        started = time.perf_counter()
        try:
            answer = await self._route(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return Sample(time.perf_counter() - started, f"failed:{error.code().name}")
        return sample_of(answer.decision, time.perf_counter() - started)

    async def batch(self, requests: list[routing_pb2.RouteRequest]) -> list[Sample]:
        """A sample for each request; all took as long as the batch."""
        started = time.perf_counter()
        message = routing_pb2.BatchRouteRequest(requests=requests)
        try:
            answer = await self._batch(message, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            took = time.perf_counter() - started
            return [Sample(took, f"failed:{error.code().name}")] * len(requests)
        took = time.perf_counter() - started
        return [_sample_of_result(each, took) for each in answer.results]

    async def stream(
        self, requests: list[routing_pb2.RouteRequest], in_flight: int
    ) -> list[Sample]:
        """A sample for each request.

        Args:
            in_flight: requests sent before the first of them is answered.
        """
        call = self._stream(timeout=_TIMEOUT_S * len(requests))
        started = time.perf_counter()
        begun: dict[str, float] = {}
        samples: list[Sample] = []
        slots = asyncio.Semaphore(in_flight)

        async def send() -> None:
            for number, request in enumerate(requests):
                await slots.acquire()
                begun[str(number)] = time.perf_counter()
                await call.write(
                    routing_pb2.StreamRouteRequest(request_id=str(number), request=request)
                )
            await call.done_writing()

        sending = asyncio.create_task(send())
        try:
            async for answer in call:
                took = time.perf_counter() - begun[answer.request_id]
                samples.append(_sample_of_result(answer, took))
                slots.release()
        except grpc.aio.AioRpcError as error:
            lost = Sample(time.perf_counter() - started, f"failed:{error.code().name}")
            samples += [lost] * (len(requests) - len(samples))
        finally:
            # It may be waiting for answers that do not come any more.
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        return samples


def _sample_of_result(
    result: routing_pb2.BatchRouteResult | routing_pb2.StreamRouteResponse, seconds: float
) -> Sample:
    if result.HasField("error"):
        return Sample(seconds, f"failed:{result.error.reason}")
    return sample_of(result.decision, seconds)


@asynccontextmanager
async def calling(address: str) -> AsyncIterator[Routes]:
    """Calls over a channel of their own. `address`: `host:port` or `unix:path`."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        yield Routes(channel)


def asking(routes: Routes, policy: str, words: int) -> Call:
    """A call whose conversation nobody asked about before."""

    async def call(number: int) -> Sample:
        return await routes.route(traffic.request(number, words, policy))

    return call


async def warm(routes: Routes, policy: str) -> None:
    """Until the language model is asked under `policy`, or its encoder knows all of many requests
    by itself. Raises TooSlowError."""
    end = time.perf_counter() + _WARM_TIMEOUT_S
    by_encoder = 0
    while time.perf_counter() < end:
        sample = await routes.route(traffic.request(next(numbers), 15, policy))
        by_encoder += sample.by_encoder
        if by_encoder > _TRIES or (sample.by_model and not sample.by_encoder):
            return
        await asyncio.sleep(0.05)
    raise TooSlowError(
        f"under policy {policy} the routing model did not answer once within its budget in "
        f"{_WARM_TIMEOUT_S} s (last: {sample.source}): this machine is too slow or too busy; stop "
        "what else it computes, or give decisions a larger budget"
    )


@dataclass(frozen=True, slots=True)
class Subject:
    """The sidecar under measurement: calls over TCP, and over a Unix domain socket."""

    tcp: Routes
    uds: Routes
    scale: Scale

    def asking(self, routes: int, words: int) -> Call:
        return asking(self.tcp, f"routes-{routes}", words)

    async def known(self, routes: int, words: int) -> routing_pb2.RouteRequest:
        """A conversation that is answered from the cache. What no route fits, and what came too
        late, is not kept; if that is all there is, the rows say so."""
        for _ in range(_TRIES):
            request = traffic.fitting_request(next(numbers), words, routes)
            await self.tcp.route(request)
            if (await self.tcp.route(request)).source == "cache":
                break
        return request

    async def warm(self, policy: str) -> None:
        """As the function `warm`, over TCP."""
        await warm(self.tcp, policy)


def _bytes(request: routing_pb2.RouteRequest) -> int:
    return int(request.ByteSize())


def _title(routes: int, words: int) -> str:
    return f"{routes} routes, {words} words"


async def matrix(subject: Subject) -> AsyncIterator[Row]:
    """Routes by words, one caller."""
    standard_words = subject.scale.standard_words
    for routes in subject.scale.routes:
        await subject.warm(f"routes-{routes}")
        for words in subject.scale.words:
            call = subject.asking(routes, words)
            # Long ones take several times as long, and vary less.
            calls = subject.scale.samples if words < _LONG_WORDS else -(-subject.scale.samples // 2)
            measured = await closed_loop(call, 1, calls)
            size = _bytes(traffic.request(1, words, f"routes-{routes}"))
            standard = (routes, words) == (subject.scale.standard_routes, standard_words)
            rows = rows_by_part if standard else _one_row
            for each in rows(
                "One caller", _title(routes, words), measured, message_bytes=size, concurrency=1
            ):
                yield each


def _one_row(
    group: str, name: str, measured: Measured, *, message_bytes: int, concurrency: int
) -> Iterator[Row]:
    yield row(group, name, measured, message_bytes=message_bytes, concurrency=concurrency)


async def own_share(subject: Subject) -> AsyncIterator[Row]:
    """What the sidecar adds to the model server's time, and what it does without the model."""
    group, scale = "The sidecar's own share", subject.scale
    policy = f"routes-{scale.routes[-1]}"
    await subject.warm(policy)
    words = scale.standard_words
    for name, routes in (("", subject.tcp), (", UDS", subject.uds)):
        asked = await closed_loop(asking(routes, policy, words), 1, scale.samples)
        yield row(
            group,
            f"Route minus Triton{name}",
            Measured(without_model(asked.samples)),
            message_bytes=_bytes(traffic.request(1, words, policy)),
            concurrency=1,
            note=f"of {len(asked.samples)} calls those that the model decided",
        )
    known = await subject.known(scale.routes[-1], words)
    override = traffic.request(0, words, policy)
    override.model = traffic.MODEL
    for name, request in (("known conversation", known), ("model named by the caller", override)):
        for transport, routes in (("TCP", subject.tcp), ("UDS", subject.uds)):
            for concurrency in (1, 32):
                measured = await closed_loop(
                    lambda _, r=routes, q=request: r.route(q),  # type: ignore[misc]
                    concurrency,
                    scale.fast_calls,
                )
                title = f"{name}, {transport}"
                yield row(
                    group, title, measured, message_bytes=_bytes(request), concurrency=concurrency
                )


async def batch_and_stream(subject: Subject) -> AsyncIterator[Row]:
    """Decisions of one call."""
    routes, words = subject.scale.routes[0], subject.scale.words[0]
    policy = f"routes-{routes}"
    await subject.warm(policy)
    count = min(_BATCH, max(subject.scale.samples, 2))
    size = _bytes(traffic.request(1, words, policy))
    for transport, calls in (("TCP", subject.tcp), ("UDS", subject.uds)):
        for name, ask in (
            (f"BatchRoute of {count}", calls.batch),
            (f"StreamRoute, {_IN_FLIGHT} in flight", partial(calls.stream, in_flight=_IN_FLIGHT)),
        ):
            requests = [traffic.request(next(numbers), words, policy) for _ in range(count)]
            started = time.perf_counter()
            samples = await ask(requests)
            measured = Measured(samples, time.perf_counter() - started)
            title = f"{name}, {transport}"
            yield row("Batch and stream", title, measured, message_bytes=size, concurrency=1)


async def large_messages(subject: Subject, socket: str) -> AsyncIterator[Row]:
    """What others wait while somebody sends megabytes through `socket`."""
    routes = subject.scale.routes[0]
    await subject.warm(f"routes-{routes}")
    known = await subject.known(routes, 15)

    async def call(_: int) -> Sample:
        return await subject.tcp.route(known)

    before = 0.0
    for megabytes in (0, 4, 8):
        async with _sending(socket, megabytes * 2**20 - 4096 if megabytes else 0):
            measured = await closed_loop(call, 1, subject.scale.fast_calls)
        p99 = percentile(sorted(each.seconds * 1000 for each in measured.samples), 99)
        name = f"beside messages of {megabytes} MiB" if megabytes else "with nothing beside"
        note = f"p99 {p99 - before:+.1f} ms" if megabytes else ""
        before = before or p99
        yield row(
            "Known conversations while others send much",
            name,
            measured,
            message_bytes=_bytes(known),
            concurrency=1,
            note=note,
        )


@asynccontextmanager
async def _sending(address: str, size: int) -> AsyncIterator[None]:
    """Within the block another process sends requests of `size` bytes; none if it is 0. Raises
    TooSlowError if it did not do so to the end."""
    if not size:
        yield
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar.bench.large_sender", address, str(size)
    )
    try:
        # Until it sends.
        await asyncio.sleep(_SENDER_START_S)
        yield
        if process.returncode is not None:
            raise TooSlowError(
                f"what sends large messages ended with code {process.returncode} (see above), so "
                "nothing is known of the calls beside them"
            )
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
