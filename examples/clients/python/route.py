"""Asks a sidecar for a model, and has an answer without it too.

python route.py ADDRESS DEFAULT_MODEL TEXT
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import grpc

# In an application of your own: the code that you generate from proto/.
from sidecar._generated.llmrouter.v1 import routing_pb2

SERVICE_CONFIG = Path(__file__).parents[3] / "proto/llmrouter/v1/routing_grpc_service_config.json"


def service_config() -> tuple[str, float]:
    """The published service config without its timeout, and the timeout in seconds.

    gRPC's C++ core, and so gRPC for Python, takes one to two seconds off a timeout that it reads
    from a service config (https://github.com/grpc/grpc/issues/34547): in half of all processes
    nothing would be left of this one. A timeout that is given with the call is kept to.
    """
    config = json.loads(SERVICE_CONFIG.read_text())
    timeout = config["methodConfig"][0].pop("timeout")
    return json.dumps(config), float(timeout.removesuffix("s"))


class Models:
    """Keep one for the life of the process: it holds the connection."""

    def __init__(self, address: str, default: str) -> None:
        config, self._timeout_s = service_config()
        # A proxy that is meant for the internet knows nothing of a sidecar.
        options = [("grpc.service_config", config), ("grpc.enable_http_proxy", 0)]
        self._route = grpc.insecure_channel(address, options).unary_unary(
            "/llmrouter.v1.RoutingService/Route",
            request_serializer=routing_pb2.RouteRequest.SerializeToString,
            response_deserializer=routing_pb2.RouteResponse.FromString,
        )
        self._default = default

    def choose(self, text: str) -> str:
        """The model for a user's message; the default if the sidecar is away or late."""
        message = routing_pb2.Message(role=routing_pb2.ROLE_USER)
        message.parts.add(text=text)
        request = routing_pb2.RouteRequest(messages=[message])
        try:
            answer = self._route(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            logging.warning("no routing: %s", error.code().name)  # type: ignore[attr-defined]
            return self._default
        return str(answer.decision.model.upstream_model)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    address, default, text = sys.argv[1:]
    sys.stdout.write(Models(address, default).choose(text) + "\n")
