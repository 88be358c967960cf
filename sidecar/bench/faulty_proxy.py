"""Stands between a sidecar and a real Triton and spoils what passes, on request.

The real server does not produce these faults by itself: late answers, answers that are no answers,
connections refused.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from enum import Enum
from typing import Any, TypeVar

import grpc
from tritonclient.grpc import service_pb2

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_TIMEOUT_S = 60.0
_SLOW_S = 3.0
"""Longer than any budget that a decision has by default."""

Result = TypeVar("Result")


class Spoil(Enum):
    """What is done to inferences. Readiness stays as it is: a server that looks well and is not is
    the harder case."""

    NOTHING = "nothing"
    SLOW = "slow"
    GARBAGE = "garbage"
    WRONG_SHAPE = "wrong shape"
    ERROR = "error"


class FaultyProxy:
    """A gRPC server in a thread of its own. `address` and `target` are `host:port`."""

    def __init__(self, address: str, target: str) -> None:
        self.address = address
        self.spoil = Spoil.NOTHING
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: grpc.aio.Server | None = None
        self._channel: grpc.aio.Channel | None = None

    def start(self) -> None:
        self._thread.start()
        self._run(self._open())

    def stop(self) -> None:
        self._run(self._close(and_channel=True))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def refuse(self) -> None:
        """No more connections; those there are end."""
        self._run(self._close())

    def accept(self) -> None:
        """Connections again, after `refuse`."""
        self._run(self._open())

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_TIMEOUT_S)

    async def _open(self) -> None:
        if self._channel is None:
            options = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.enable_http_proxy", 0)]
            self._channel = grpc.aio.insecure_channel(self._target, options)
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((_Everything(self),))
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def _close(self, and_channel: bool = False) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
        if and_channel and self._channel is not None:
            await self._channel.close()

    async def pass_on(self, method: str, request: bytes, context: Any) -> bytes:
        """The answer of the real server, spoiled."""
        spoil = self.spoil if method == _INFER else Spoil.NOTHING
        if spoil is Spoil.ERROR:
            await context.abort(grpc.StatusCode.INTERNAL, "spoiled")
        if spoil is Spoil.GARBAGE:
            return b"\xff\xfe" * 200
        if spoil is Spoil.SLOW:
            await asyncio.sleep(_SLOW_S)
        assert self._channel is not None, "started"
        call: Any = self._channel.unary_unary(method)
        try:
            answer: bytes = await call(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
        return _reshaped(answer) if spoil is Spoil.WRONG_SHAPE else answer


class _Everything(grpc.GenericRpcHandler):
    def __init__(self, proxy: FaultyProxy) -> None:
        self._proxy = proxy

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        async def behavior(request: bytes, context: Any) -> bytes:
            return await self._proxy.pass_on(details.method, request, context)

        return grpc.unary_unary_rpc_method_handler(behavior)


def _reshaped(answer: bytes) -> bytes:
    """Half of each tensor, in a shape that fits it: an answer of another model."""
    response = service_pb2.ModelInferResponse.FromString(answer)
    for number, output in enumerate(response.outputs):
        raw = response.raw_output_contents[number]
        half = raw[: len(raw) // 8 * 4]
        response.raw_output_contents[number] = half
        output.shape[:] = [len(half) // 4]
    data: bytes = response.SerializeToString()
    return data
