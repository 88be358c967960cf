"""llama.cpp's server, from the wheel `xllamacpp`; prints the address of its HTTP API and stays.

python -m sidecar.bench.llama_server WEIGHTS.gguf
"""

from __future__ import annotations

import os
import sys
import time

CONTEXT_TOKENS = 4096


def serve(weights: str) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = weights
    parameters.n_ctx = CONTEXT_TOKENS
    # One slot: the same as one instance of the model in Triton.
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = os.cpu_count()
    server = xllamacpp.Server(parameters)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    while True:
        time.sleep(60)


if __name__ == "__main__":
    serve(sys.argv[1])
