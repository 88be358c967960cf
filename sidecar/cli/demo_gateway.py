"""The demo's second half: the same conversations as plain HTTP through Envoy.

In place of the providers stand servers of this process that say what they got.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from sidecar.cli.conversations import Case
from sidecar.cli.failures import Failure
from sidecar.cli.printing import plain
from sidecar.core.conversation import Role

CLUSTERS = ("openai", "anthropic", "google", "mistral", "deepseek")
"""Those of docker/envoy/envoy.yaml: none of the real ones must be called."""

_TIMEOUT_S = 30.0
_EXCERPT = 60


@dataclass(frozen=True, slots=True)
class Reached:
    """Where a request arrived: the API it used, and what the provider saw."""

    asked: str
    api: str
    provider: str
    model: str
    route: str
    source: str


class _Provider(BaseHTTPRequestHandler):
    """Answers with what it got."""

    protocol_version = "HTTP/1.1"
    name = ""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", "0"))))
        seen = {
            "provider": self.name,
            "model": body.get("model", ""),
            "route": self.headers.get("x-llm-route", ""),
            "source": self.headers.get("x-llm-source", ""),
        }
        answer = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the table tells."""


@contextmanager
def stub_providers() -> Iterator[Mapping[str, str]]:
    """Cluster -> URL of a server in its place."""
    servers: dict[str, ThreadingHTTPServer] = {}
    try:
        for name in CLUSTERS:
            handler = type("Provider", (_Provider,), {"name": name})
            servers[name] = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            threading.Thread(target=servers[name].serve_forever, daemon=True).start()
        yield {n: f"http://127.0.0.1:{server.server_port}" for n, server in servers.items()}
    finally:
        for server in servers.values():
            server.shutdown()
            server.server_close()


def send_all(gateway_url: str, cases: Sequence[Case]) -> list[Reached]:
    """Sends the conversations, in turn by the API of OpenAI and of Anthropic. Raises Failure if one
    is not answered."""
    return [_send(gateway_url, case, number % 2 == 0) for number, case in enumerate(cases)]


def _send(gateway_url: str, case: Case, openai: bool) -> Reached:
    messages = [
        {"role": message.role.value, "content": message.text}
        for message in case.conversation.messages
        if message.role in (Role.USER, Role.ASSISTANT)
    ]
    body: dict[str, Any] = {"model": "auto", "messages": messages}
    path = "/v1/chat/completions" if openai else "/v1/messages"
    if not openai:
        body["max_tokens"] = 1024
    headers = {"content-type": "application/json"}
    if case.policy:
        headers["x-llm-policy"] = case.policy
    status, answer = _post(gateway_url, path, json.dumps(body), headers)
    if status != 200:
        raise Failure(f"Envoy answered {status} to a conversation of the demo: {answer[:200]}")
    api = "OpenAI" if openai else "Anthropic"
    asked = messages[-1]["content"] if messages else ""
    return Reached(asked, api, **json.loads(answer))


def _post(url: str, path: str, body: str, headers: Mapping[str, str]) -> tuple[int, str]:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", path, body.encode(), dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, HTTPException) as error:
        raise Failure(f"no answer from Envoy at {url}: {error}") from None
    finally:
        connection.close()


def print_reached(reached: Sequence[Reached], console: Console) -> None:
    """What arrived where."""
    view = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", expand=True)
    view.add_column("request", ratio=1, no_wrap=True)
    for name in ("API", "route", "provider", "model it got", "source"):
        view.add_column(name, no_wrap=True)
    for each in reached:
        asked = " ".join(each.asked.split())[:_EXCERPT]
        cells = (asked, each.api, each.route, each.provider, each.model, each.source)
        # Not as markup, which brackets in somebody's text would be.
        view.add_row(*map(plain, cells))
    console.print()
    console.print(view)
    console.print(
        "\nPlain HTTP through Envoy, by clients that know nothing of the sidecar; models that do "
        "not speak the client's API are passed over. The providers are stand-ins.",
        highlight=False,
    )
