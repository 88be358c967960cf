"""A gRPC server that speaks KServe v2 and answers what the test tells it to.

It stands in for Triton only for faults that the real one does not produce on request: garbage,
wrong shapes, status codes, silence. Everything else is tested against the real server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc

Tensors = Mapping[str, npt.NDArray[Any]]

_TYPES = {"float32": "FP32", "int32": "INT32", "float16": "FP16", "bool": "BOOL", "object": "BYTES"}


@dataclass
class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """`answer`: tensors to send; `status`: fail with it instead; `silent`: never answer; `engine`:
    the build that its model's config names; None: it has no config to show."""

    answer: Tensors = field(default_factory=dict)
    status: tuple[grpc.StatusCode, str] | None = None
    silent: bool = False
    ready: bool = True
    raw: bytes | None = None
    engine: str | None = None
    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    address: str = ""

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=self.ready)

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.engine is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no config")
        response = service_pb2.ModelConfigResponse()
        if self.engine:
            response.config.parameters["routing_model"].string_value = self.engine
        return response

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.silent:
            try:
                await asyncio.sleep(60)
            finally:
                self.cancelled.set()
        if self.status is not None:
            await context.abort(*self.status)
        return _response(request, self.answer, self.raw)


def _response(request: Any, tensors: Tensors, raw: bytes | None) -> Any:
    response = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
    for name, values in tensors.items():
        output = response.outputs.add(
            name=name, datatype=_TYPES[values.dtype.name], shape=values.shape
        )
        assert output.name
        response.raw_output_contents.append(raw if raw is not None else values.tobytes())
    return response


_KINDS: Mapping[str, type[np.generic]] = {"INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_}


def sent(request: Any) -> dict[str, list[Any]]:
    """The tensors of a request by name, flat; bytes tensors without their length prefix."""
    values: dict[str, list[Any]] = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            values[tensor.name] = [raw[4:]]
        else:
            kind = _KINDS[tensor.datatype]
            values[tensor.name] = np.frombuffer(raw, dtype=kind).tolist()
    return values


@asynccontextmanager
async def serving(fake: FakeTriton) -> AsyncIterator[FakeTriton]:
    """Serve on an ephemeral port, kept in `fake.address`."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    fake.address = f"127.0.0.1:{port}"
    try:
        yield fake
    finally:
        await server.stop(None)


__all__ = ["FakeTriton", "sent", "serving"]
