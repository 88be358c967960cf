"""An external processor that parses nothing, to compare with: `python -m … SOCKET`.

It answers the headers and then the body with constant bytes, in the same process model as the
sidecar: one event loop, uvloop where it is there. What it costs any Python behind Envoy costs.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc

# ProcessingResponse with an empty HeadersResponse, and with an empty BodyResponse.
_HEADERS = b"\x0a\x02\x0a\x00"
_BODY = b"\x1a\x02\x0a\x00"
_METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"


async def _process(_: object, context: Any) -> None:
    for answer in (_HEADERS, _BODY):
        if await context.read() is grpc.aio.EOF:
            return
        await context.write(answer)


class _Handlers(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method != _METHOD:
            return None
        return grpc.stream_stream_rpc_method_handler(_process)


async def _serve(socket: str) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 16 * 1024 * 1024)])
    server.add_generic_rpc_handlers((_Handlers(),))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    try:
        import uvloop

        factory: Any = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(sys.argv[1]))


if __name__ == "__main__":
    main()
