"""Requests that a person tries, written as JSON: for the console."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import structlog
from google.protobuf.json_format import Parse, ParseError

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar.core.decision import Decision
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.grpc_api.drain import Drain
from sidecar.grpc_api.errors import DEFECT
from sidecar.grpc_api.protocols import Router
from sidecar.grpc_api.request_reader import Call, RequestReader

_log = structlog.get_logger(__name__)

_CALL = Call(time_remaining=lambda: None)
"""A browser sets no deadline, so that the configured budget is the whole of it."""

_MAX_OBJECTS = 65_536
"""Each takes three microseconds to parse, in which the interpreter is held."""

# The parser's own text quotes what it could not read, but begins with the names of known fields.
_FIELDS = re.compile(r"(?:Failed to parse \w+ field: )*")
_UNKNOWN_FIELD = re.compile(r'Message type "[\w.]+" has no field')


class Trials:
    """Decides what `Route` would, within the same limits, and explains it."""

    def __init__(self, router: Router, reader: RequestReader, drain: Drain) -> None:
        self._router = router
        self._reader = reader
        self._drain = drain
        # Not asyncio's own threads: policies are compiled there, for which decisions wait.
        self._parsing = ThreadPoolExecutor(1, "parse-trial")

    async def decide(self, body: bytes) -> Decision:
        """The decision for a `RouteRequest` in protobuf's JSON form, which takes and leaves no pin.

        Raises SidecarError and nothing else."""
        try:
            with self._drain.call():
                loop = asyncio.get_running_loop()
                message = await loop.run_in_executor(self._parsing, _message, body)
                request = await self._reader.read(message, _CALL)
                return await self._router.decide(replace(request, explain=True, trial=True))
        except SidecarError:
            raise
        except Exception:
            _log.exception("trial failed")
            # One of its own: an exception that is raised again and again keeps each of its frames,
            # and with them what was said.
            raise SidecarError(DEFECT.code, DEFECT.message) from None


def _message(body: bytes) -> routing_pb2.RouteRequest:
    if body.count(b"{") > _MAX_OBJECTS:
        raise SidecarError(
            ErrorCode.REQUEST_TOO_LARGE,
            f"the body has more than {_MAX_OBJECTS} objects; leave out the oldest messages",
        )
    try:
        return Parse(body, routing_pb2.RouteRequest())
    except (ParseError, ValueError, RecursionError) as error:
        raise SidecarError(
            ErrorCode.INVALID_REQUEST,
            f"the body is not a RouteRequest in protobuf's JSON form{_wrong(error)}; see "
            "proto/llmrouter/v1",
        ) from None


def _wrong(error: Exception) -> str:
    """Which field, as far as that can be told without the body's content."""
    text = str(error) if isinstance(error, ParseError) else ""
    known = _FIELDS.match(text)
    end = known.end() if known else 0
    path = ".".join(re.findall(r"parse (\w+) field", text[:end]))
    if _UNKNOWN_FIELD.match(text, end):
        return f" ({path or 'it'} has a field that there is not)"
    return f" ({path} is wrong)" if path else ""
