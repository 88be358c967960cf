"""What happens around every call, whatever the service.

The layers are put around a method's handler once, when it is added to the server, and not as an
interceptor of gRPC's: what `grpc.aio` does at every call for an interceptor that does nothing takes
longer than all the layers. Handlers that are async generators (those of the reflection service) are
turned into coroutines that write: a generator whose caller cancels is otherwise closed only by the
garbage collector (https://github.com/grpc/grpc/issues/43360).

CancelledError always passes through: a handler that swallows it keeps the call, and everything it
holds, alive for ever (same issue).
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, Protocol

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from sidecar.core.correlation import correlation_ids
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.grpc_api.context import Context, Handler
from sidecar.grpc_api.drain import Drain
from sidecar.grpc_api.errors import DEFECT, status_of

_log = structlog.get_logger(__name__)

Behavior = Callable[[Any, Context], Awaitable[Any]]
"""What serves a call: gets the request (of a stream: an iterator) and the context."""


class Layer(Protocol):
    """Something that happens around every call."""

    def put_around(self, behavior: Behavior, method: str) -> Behavior:
        """`behavior` with the layer around it; `method` is `package.Service/Method`."""
        ...


Refuse = Callable[[bytes], SidecarError | None]
"""Why a request is not decoded, from its bytes; None if it is. Decoding holds the interpreter, in a
thread too, for a millisecond or more per MB."""

_LARGE_BYTES = 1024 * 1024
"""Of a single request that is decoded in a thread, which gives way to the event loop while fields
are counted: those of a batch with another policy in each request take a sixth of a second."""


class LayeredServer(grpc.aio.Server):
    """A server whose handlers all have layers around them.

    Args:
        server: takes the handlers; not started yet.
        layers: the first is the outermost.
        refusals: by method; the requests of others are bounded by the server's largest message
            alone.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        layers: Sequence[Layer],
        refusals: Mapping[str, Refuse] | None = None,
    ) -> None:
        self._server = server
        self._layers = tuple(layers)
        self._refusals = refusals or {}
        # One: every thread that computes makes the event loop wait for the interpreter's lock.
        self._decoding = ThreadPoolExecutor(1, "decode-request")

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]
    ) -> None:
        wrapped = [_LayeredHandlers(each, self._wrap) for each in generic_rpc_handlers]
        self._server.add_generic_rpc_handlers(wrapped)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, Handler]
    ) -> None:
        self._server.add_registered_method_handlers(
            service_name,
            {
                name: self._wrap(handler, f"{service_name}/{name}")
                for name, handler in method_handlers.items()
            },
        )

    def add_insecure_port(self, address: str) -> int:
        return self._server.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        return self._server.add_secure_port(address, server_credentials)

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, grace: float | None) -> None:
        await self._server.stop(grace)

    async def wait_for_termination(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 -- as gRPC has it
    ) -> bool:
        return await self._server.wait_for_termination(timeout)

    def _wrap(self, handler: Handler, method: str) -> Handler:
        kind = (
            f"{'stream' if handler.request_streaming else 'unary'}_"
            f"{'stream' if handler.response_streaming else 'unary'}"
        )
        behavior = _writing(getattr(handler, kind))
        deserialize = _checked_deserializer(handler, self._refusals.get(method))
        if not handler.request_streaming:
            behavior = self._decoded(behavior, deserialize)
            deserialize = _unless_large(deserialize)
        for layer in reversed(self._layers):
            behavior = layer.put_around(behavior, method)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        wrapped: Handler = make(
            behavior,
            request_deserializer=deserialize,
            response_serializer=handler.response_serializer,
        )
        return wrapped

    def _decoded(self, behavior: Behavior, deserialize: Callable[[bytes], Any]) -> Behavior:
        """Decodes what is large, and raises the error that stands in place of a request that could
        not be decoded."""

        async def decoded(request: Any, context: Context) -> Any:
            if isinstance(request, bytes):
                loop = asyncio.get_running_loop()
                request = await loop.run_in_executor(self._decoding, deserialize, request)
            if isinstance(request, SidecarError):
                raise SidecarError(request.code, request.message)
            return await behavior(request, context)

        return decoded


class _LayeredHandlers(grpc.GenericRpcHandler):
    """Those of `inner`, each wrapped once."""

    def __init__(
        self,
        inner: grpc.GenericRpcHandler,
        wrap: Callable[[Handler, str], Handler],
    ) -> None:
        self._inner = inner
        self._wrap = wrap
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        handler = self._inner.service(handler_call_details)
        if handler is None:
            # It has no such method; gRPC answers UNIMPLEMENTED where nobody has.
            return None
        path = handler_call_details.method
        known = self._wrapped.get(path)
        if known is None or known[0] is not handler:
            # Bounded: only methods that there are get here.
            known = self._wrapped[path] = (handler, self._wrap(handler, path.removeprefix("/")))
        return known[1]


def _writing(behavior: Any) -> Behavior:
    """A generator as a coroutine that writes what it yields; others as they are."""
    if not inspect.isasyncgenfunction(behavior):
        made: Behavior = behavior
        return made

    async def write(request: Any, context: Context) -> None:
        async with aclosing(behavior(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return write


def _unless_large(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    return lambda data: data if len(data) > _LARGE_BYTES else deserialize(data)


_UNDECODABLE = SidecarError(
    ErrorCode.INVALID_REQUEST,
    "the request is not a message of the method's type; "
    "generate the client from the .proto files of this API",
)


def _checked_deserializer(handler: Handler, refuse: Refuse | None) -> Callable[[bytes], Any]:
    """Makes an error like any other of bytes that cannot be decoded; left alone, gRPC answers
    UNKNOWN with the text of the exception.

    A single request is decoded before the handler runs, so the error takes its place; the requests
    of a stream are decoded where the handler reads them.
    """
    deserializer = handler.request_deserializer
    assert deserializer is not None, "every generated handler has one"

    def deserialize(data: bytes) -> Any:
        error = refuse(data) if refuse is not None else None
        if error is None:
            try:
                return deserializer(data)
            except DecodeError:
                error = SidecarError(_UNDECODABLE.code, _UNDECODABLE.message)
        if handler.request_streaming:
            raise error
        return error

    return deserialize


class Errors:
    """Makes a status of every exception."""

    def put_around(self, behavior: Behavior, method: str) -> Behavior:
        async def with_status(request: Any, context: Context) -> Any:
            try:
                return await behavior(request, context)
            except SidecarError as error:
                await context.abort_with_status(rpc_status.to_status(status_of(error)))
            except grpc.aio.BaseError:
                # The call has ended already: aborted by the handler, or its caller has gone.
                raise
            except Exception:
                _log.exception("call failed", method=method)
                await context.abort_with_status(rpc_status.to_status(status_of(DEFECT)))

        return with_status


class CallObserver(Protocol):
    """Counts calls."""

    def call_started(self, method: str) -> None: ...

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """`code`: `ok`, the label of an `ErrorCode`, or a gRPC status name in lower case."""
        ...


class CallMetrics:
    """Tells an observer of every call and how it ended."""

    def __init__(self, observer: CallObserver) -> None:
        self._observer = observer

    def put_around(self, behavior: Behavior, method: str) -> Behavior:
        observer = self._observer

        async def counted(request: Any, context: Context) -> Any:
            observer.call_started(method)
            started = time.perf_counter()
            code = "ok"
            try:
                answer = await behavior(request, context)
                code = _status_label(context)
                return answer
            except BaseException as error:
                code = _error_label(error, context)
                raise
            finally:
                # The answer is sent at the end of this turn of the event loop and need not wait.
                took = time.perf_counter() - started
                asyncio.get_running_loop().call_soon(observer.call_ended, method, code, took)

        return counted


def _status_label(context: Context) -> str:
    """For handlers that set or abort with a status themselves, as those of gRPC's own services."""
    # The stubs do not say so, but there is none until a handler sets it.
    status: grpc.StatusCode | None = context.code()
    return status.name.lower() if status is not None else "ok"


def _error_label(error: BaseException, context: Context) -> str:
    if isinstance(error, SidecarError):
        return error.code.label
    if isinstance(error, asyncio.CancelledError):
        return ErrorCode.CANCELLED.label
    if isinstance(error, grpc.aio.AbortError):
        return _status_label(context)
    if isinstance(error, grpc.aio.BaseError):
        return ErrorCode.CANCELLED.label
    return ErrorCode.INTERNAL.label


class CallLog:
    """Binds what every log line of the call carries, and logs calls that were refused."""

    def put_around(self, behavior: Behavior, method: str) -> Behavior:
        bind = structlog.contextvars.bind_contextvars

        async def logged(request: Any, context: Context) -> Any:
            # Never unbound: every call runs in a task of its own, and what is bound there ends with
            # it.
            bind(method=method, **_ids(context))
            try:
                return await behavior(request, context)
            except SidecarError as error:
                _log.info("call refused", code=error.code.label, why=error.message)
                raise

        return logged


class DrainRefusal:
    """Counts the calls of the API in flight, and refuses new ones once the drain has begun.

    Health stays available: it is how callers learn of the drain.
    """

    def __init__(self, drain: Drain) -> None:
        self._drain = drain

    def put_around(self, behavior: Behavior, method: str) -> Behavior:
        if not method.startswith(_API):
            return behavior
        drain = self._drain

        async def counted(request: Any, context: Context) -> Any:
            with drain.call():
                return await behavior(request, context)

        return counted


_API = "llmrouter."


class CallLimit:
    """Refuses calls beyond so many at once, on all connections.

    Health is neither counted nor refused: a caller whose checks fail takes the whole sidecar for
    dead, where it has just as much to do as it can.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._running = 0

    def put_around(self, behavior: Behavior, method: str) -> Behavior:
        if method.startswith(_HEALTH):
            return behavior

        async def limited(request: Any, context: Context) -> Any:
            if self._running >= self._most:
                await context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"server.max_concurrent_calls ({self._most}) are being served; try again later",
                )
            self._running += 1
            try:
                return await behavior(request, context)
            finally:
                self._running -= 1

        return limited


_HEALTH = "grpc.health."


def _ids(context: Context) -> dict[str, str]:
    sent: dict[str, str] = {}
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            sent.setdefault(key, value)
    return correlation_ids(lambda key: sent.get(key, ""))
