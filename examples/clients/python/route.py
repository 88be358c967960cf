"""Asks a sidecar for a model, and has an answer without it too.

python route.py ADDRESS DEFAULT_MODEL TEXT
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import grpc

# In an application of your own: the code that you generate from proto/.
from sidecar._generated.llmrouter.v1 import routing_pb2

SERVICE_CONFIG = Path(__file__).parents[3] / "proto/llmrouter/v1/routing_grpc_service_config.json"


class Models:
    """Keep one for the life of the process: it holds the connection."""

    def __init__(self, address: str, default: str) -> None:
        options = [("grpc.service_config", SERVICE_CONFIG.read_text())]
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
        try:
            answer = self._route(routing_pb2.RouteRequest(messages=[message]))
        except grpc.RpcError as error:
            logging.warning("no routing: %s", error.code().name)  # type: ignore[attr-defined]
            return self._default
        return str(answer.decision.model.upstream_model)


if __name__ == "__main__":
    address, default, text = sys.argv[1:]
    sys.stdout.write(Models(address, default).choose(text) + "\n")
