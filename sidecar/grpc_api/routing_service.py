"""`llmrouter.v1.RoutingService`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sidecar._generated.llmrouter.v1 import routing_pb2, routing_pb2_grpc
from sidecar.grpc_api.context import Context
from sidecar.grpc_api.convert.violations import invalid
from sidecar.grpc_api.deciding import Deciding
from sidecar.grpc_api.drain import Drain
from sidecar.grpc_api.request_reader import Call
from sidecar.grpc_api.route_stream import RouteStream

MAX_BATCH = 256


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How many decisions of one call run at once; what comes beyond waits."""

    batch: int = 32
    stream: int = 64


class RoutingService(routing_pb2_grpc.RoutingServiceServicer):
    """Makes routing decisions. Method comments are in routing.proto."""

    def __init__(self, deciding: Deciding, concurrency: Concurrency, drain: Drain) -> None:
        self._deciding = deciding
        self._concurrency = concurrency
        self._drain = drain

    async def Route(  # noqa: N802 -- the method's name in the API
        self,
        request: routing_pb2.RouteRequest,
        context: Context,
    ) -> routing_pb2.RouteResponse:
        response = routing_pb2.RouteResponse()
        await self._deciding.decide(request, Call.of(context), response.decision)
        return response

    async def BatchRoute(  # noqa: N802
        self,
        request: routing_pb2.BatchRouteRequest,
        context: Context,
    ) -> routing_pb2.BatchRouteResponse:
        count = len(request.requests)
        if not 1 <= count <= MAX_BATCH:
            raise invalid("requests", f"{count} requests; send 1 to {MAX_BATCH}")
        self._deciding.check_batch(request.requests)
        call = Call.of(context)
        slots = asyncio.Semaphore(self._concurrency.batch)
        response = routing_pb2.BatchRouteResponse()

        async def decide(
            each: routing_pb2.RouteRequest, result: routing_pb2.BatchRouteResult
        ) -> None:
            try:
                await self._deciding.decide_one_of_many(each, call, result)
            finally:
                slots.release()

        async with asyncio.TaskGroup() as group:
            for each in request.requests:
                await slots.acquire()
                group.create_task(decide(each, response.results.add()))
                # One request is read in a turn of the event loop: together they hold it too long.
                await asyncio.sleep(0)
        return response

    async def StreamRoute(  # type: ignore[override]  # noqa: N802
        self, request_iterator: object, context: Context
    ) -> None:
        # Reads and writes by the context: the stubs only know the other form, a generator, which
        # cannot answer while it waits for the next request.
        stream = RouteStream(self._deciding, context, self._concurrency.stream)
        await stream.run(self._drain)
