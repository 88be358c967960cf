"""From a route request on the wire to a decision on the wire; shared by all routing methods."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from sidecar._generated.llmrouter.v1 import decision_pb2, routing_pb2
from sidecar.core.errors import SidecarError
from sidecar.grpc_api.convert.decisions import put_decision
from sidecar.grpc_api.errors import DEFECT, route_error_of
from sidecar.grpc_api.protocols import Router
from sidecar.grpc_api.request_reader import Call, RequestReader

_log = structlog.get_logger(__name__)


Result = routing_pb2.BatchRouteResult | routing_pb2.StreamRouteResponse


class Deciding:
    """Reads, decides, writes."""

    def __init__(self, router: Router, reader: RequestReader) -> None:
        self._router = router
        self._reader = reader

    def check_batch(self, messages: Sequence[routing_pb2.RouteRequest]) -> None:
        """Raises SidecarError REQUEST_TOO_LARGE if the requests are too much together."""
        self._reader.check_batch(messages)

    async def decide(
        self, message: routing_pb2.RouteRequest, call: Call, answer: decision_pb2.Decision
    ) -> None:
        """Fills `answer`, which is empty. Raises SidecarError for wrong input."""
        request = await self._reader.read(message, call)
        put_decision(await self._router.decide(request), answer)

    async def decide_one_of_many(
        self, message: routing_pb2.RouteRequest, call: Call, result: Result
    ) -> None:
        """Fills `result` with the decision or with what is wrong; raises nothing but
        CancelledError, since a bad request must not fail the rest of its batch or stream."""
        try:
            await self.decide(message, call, result.decision)
        except SidecarError as error:
            result.error.CopyFrom(route_error_of(error))
        except Exception:
            _log.exception("decision failed")
            result.error.CopyFrom(route_error_of(DEFECT))
