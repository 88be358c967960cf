"""The demo's plain HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sidecar.cli.conversations import read_cases
from sidecar.cli.demo_gateway import send_all
from sidecar.cli.failures import Failure

CUT = {
    "before the answer": b"",
    "in the status": b"HT",
    "in the answer": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
    "in a chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\n{",
}


@pytest.fixture
def gateway_that_sends() -> Iterator[Callable[[bytes], str]]:
    """Starts one that answers with these bytes and closes the connection; its URL."""
    servers: list[HTTPServer] = []

    def start(answer: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.wfile.write(answer)

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("answer", CUT.values(), ids=CUT.keys())
def test_answer_that_is_cut_off_is_a_failure_that_names_the_gateway(
    gateway_that_sends: Callable[[bytes], str], answer: bytes
) -> None:
    url = gateway_that_sends(answer)

    with pytest.raises(Failure, match=f"no answer from Envoy at {url}: "):
        send_all(url, read_cases('[{"role": "user", "content": "hello"}]', "a file"))
