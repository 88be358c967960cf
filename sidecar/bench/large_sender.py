"""Sends large requests one after another: in a process of its own, so that what it costs to write
them is not taken for what it costs others to be served beside them.

python -m sidecar.bench.large_sender ADDRESS BYTES
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any

import grpc

from sidecar.bench import traffic

_PAUSE_S = 0.1


def send(address: str, size: int) -> None:
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, options) as channel:
        route: Any = channel.unary_unary("/llmrouter.v1.RoutingService/Route")
        message = traffic.large_request(size).SerializeToString()
        while True:
            # What is too large is refused, which is an answer too.
            with suppress(grpc.RpcError):
                route(message, timeout=30)
            time.sleep(_PAUSE_S)


if __name__ == "__main__":
    send(sys.argv[1], int(sys.argv[2]))
