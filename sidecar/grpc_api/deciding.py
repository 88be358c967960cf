"""From a route request on the wire to a decision on the wire; shared by all routing methods."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from sidecar._generated.llmrouter.v1 import decision_pb2, routing_pb2
from sidecar.core.errors import SidecarError
from sidecar.grpc_api.convert.decisions import decision_to_proto
from sidecar.grpc_api.errors import DEFECT, route_error_of
from sidecar.grpc_api.protocols import Router
from sidecar.grpc_api.request_reader import Call, RequestReader

_log = structlog.get_logger(__name__)


class Deciding:
    """Reads, decides, writes."""

    def __init__(self, router: Router, reader: RequestReader) -> None:
        self._router = router
        self._reader = reader

    def check_batch(self, messages: Sequence[routing_pb2.RouteRequest]) -> None:
        """Raises SidecarError REQUEST_TOO_LARGE if the requests are too much together."""
        self._reader.check_batch(messages)

    async def decide(self, message: routing_pb2.RouteRequest, call: Call) -> decision_pb2.Decision:
        """The decision. Raises SidecarError for wrong input."""
        request = await self._reader.read(message, call)
        return decision_to_proto(await self._router.decide(request))

    async def decide_one_of_many(
        self, message: routing_pb2.RouteRequest, call: Call
    ) -> decision_pb2.Decision | routing_pb2.RouteError:
        """The decision, or what is wrong; raises nothing but CancelledError, since a bad request
        must not fail the rest of its batch or stream."""
        try:
            return await self.decide(message, call)
        except SidecarError as error:
            return route_error_of(error)
        except Exception:
            _log.exception("decision failed")
            return route_error_of(DEFECT)
