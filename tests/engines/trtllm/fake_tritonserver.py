"""In the place of tritonserver with TensorRT-LLM's backend: answers every request with logits that
grow with the token's id, or with `FAKE_TRITON=broken` ends as one that cannot load the engine."""

from __future__ import annotations

import asyncio
import os
import sys

import grpc
import numpy as np
from tritonclient.grpc import service_pb2_grpc

from tests.fake_triton import FakeTriton

VOCABULARY = 151_936


async def serve(port: str) -> None:
    logits = np.arange(VOCABULARY, dtype=np.float32) / 1000
    fake = FakeTriton(
        answer={
            "output_ids": np.zeros((1, 1, 1), np.int32),
            "sequence_length": np.ones((1, 1), np.int32),
            "generation_logits": logits.reshape(1, 1, 1, -1),
        }
    )
    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    if os.environ.get("FAKE_TRITON") == "broken":
        sys.exit("the engine cannot be read")
    options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    assert (options["--model-control-mode"], options["--exit-on-error"]) == ("none", "true")
    asyncio.run(serve(options["--grpc-port"]))
