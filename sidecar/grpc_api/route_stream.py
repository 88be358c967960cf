"""One StreamRoute call: decides requests as they come and answers each as soon as it is ready."""

from __future__ import annotations

import asyncio

import grpc

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar.core.errors import SidecarError
from sidecar.grpc_api.context import Context
from sidecar.grpc_api.convert.violations import invalid, shown
from sidecar.grpc_api.deciding import Deciding
from sidecar.grpc_api.drain import Drain
from sidecar.grpc_api.errors import route_error_of
from sidecar.grpc_api.request_reader import Call

MAX_REQUEST_ID_BYTES = 128


class RouteStream:
    """The state of one stream.

    A request is read only when one of `max_in_flight` slots is free, and its slot is free again
    when its answer has been written: a caller that sends faster than it reads is slowed down by
    HTTP/2 flow control instead of filling memory.
    """

    def __init__(self, deciding: Deciding, context: Context, max_in_flight: int) -> None:
        self._deciding = deciding
        self._context = context
        self._call = Call.of(context)
        self._slots = asyncio.Semaphore(max_in_flight)
        self._ids: set[str] = set()
        # gRPC allows one write at a time on a call.
        self._writing = asyncio.Lock()
        self._unreadable: SidecarError | None = None

    async def run(self, drain: Drain) -> None:
        """Answers until the caller half-closes or the drain begins; what was read is answered.

        Raises:
            SidecarError: DRAINING, when the caller may have more to send; INVALID_REQUEST for bytes
                that are no request, after which nothing is read.
        """
        # The group cancels every decision when the call is cancelled, and leaves none behind.
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read_all(group))
            with drain.calls(reading.cancel):
                await asyncio.wait({reading})
        if self._unreadable is not None:
            raise self._unreadable
        if reading.cancelled():
            drain.raise_if_begun()

    async def _read_all(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._slots.acquire()
            try:
                message = await self._context.read()
            except SidecarError as error:
                self._unreadable = error
                return
            if not isinstance(message, routing_pb2.StreamRouteRequest):
                # The end of the requests, `grpc.aio.EOF`; the stubs do not have it here.
                return
            group.create_task(self._answer(message))

    async def _answer(self, message: routing_pb2.StreamRouteRequest) -> None:
        try:
            await self._write(await self._response(message))
        finally:
            self._slots.release()

    async def _response(
        self, message: routing_pb2.StreamRouteRequest
    ) -> routing_pb2.StreamRouteResponse:
        response = routing_pb2.StreamRouteResponse(request_id=message.request_id)
        wrong = self._wrong_envelope(message)
        if wrong is not None:
            response.error.CopyFrom(route_error_of(wrong))
            return response
        self._ids.add(message.request_id)
        try:
            await self._deciding.decide_one_of_many(message.request, self._call, response)
        finally:
            self._ids.discard(message.request_id)
        return response

    def _wrong_envelope(self, message: routing_pb2.StreamRouteRequest) -> SidecarError | None:
        request_id = message.request_id
        if not request_id:
            return invalid("request_id", "is empty; choose one for each request on the stream")
        if len(request_id.encode()) > MAX_REQUEST_ID_BYTES:
            return invalid("request_id", f"is longer than {MAX_REQUEST_ID_BYTES} bytes; shorten it")
        if request_id in self._ids:
            return invalid(
                "request_id", f"{shown(request_id)} is in flight on this stream; choose another"
            )
        if not message.HasField("request"):
            return invalid("request", "is unset; send the request")
        return None

    async def _write(self, response: routing_pb2.StreamRouteResponse) -> None:
        try:
            async with self._writing:
                await self._context.write(response)
        except grpc.aio.BaseError:
            # The caller has gone and nobody reads the answer; the call itself is cancelled next.
            return
