"""Stand-ins for LLM providers: they record the bytes they get and answer as providers do."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

DIALECTS = {
    "/v1/chat/completions": "openai-chat",
    "/v1/completions": "openai-completions",
    "/v1/responses": "openai-responses",
    "/v1/messages": "anthropic-messages",
}


@dataclass(frozen=True)
class Recorded:
    """One request as an upstream got it: header names in lower case, the body without chunking."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    trailers: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return str(json.loads(self.body).get("model", ""))


class Upstream:
    """A provider on a port of its own. Use with `async with`.

    Args:
        name: what it answers in `served_by`.
        models: those it knows; any other is answered 404. None: it knows all, and reads no body.
        dialects: the APIs it speaks; requests of others are answered 400.
        tls: to serve https.
        prefix: of the paths, in place of nothing.
    """

    def __init__(
        self,
        name: str,
        models: set[str] | None = None,
        dialects: set[str] | None = None,
        tls: ssl.SSLContext | None = None,
        prefix: str = "",
    ) -> None:
        self.name = name
        self.models = models
        self.dialects = dialects or set(DIALECTS.values())
        self.requests: list[Recorded] = []
        self.begun = 0
        """Requests whose head has come."""
        self.cut_off = 0
        """Requests whose connection ended before their body did."""
        self.reset = False
        """Close connections instead of answering."""
        self.status = 200
        """Answer with this where it would be 200."""
        self.headers: dict[str, str] = {}
        """Further headers of answers."""
        self.delay_s = 0.0
        """Before each answer."""
        self.port = 0
        self._tls = tls
        self._prefix = prefix
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._connection, "127.0.0.1", 0, ssl=self._tls, limit=64 * 1024
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (head := await _head(reader)) is not None:
                self.begun += 1
                try:
                    body, trailers = await _body(reader, head[2])
                except asyncio.IncompleteReadError:
                    self.cut_off += 1
                    return
                recorded = Recorded(*head, body, trailers)
                self.requests.append(recorded)
                if self.reset:
                    return
                await asyncio.sleep(self.delay_s)
                status, answer = self._answer(recorded)
                writer.write(_response(status, answer, self.headers))
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _answer(self, recorded: Recorded) -> tuple[int, object]:
        if self.status != 200:
            return self.status, _error(f"{self.name} is set to fail")
        if self.models is None:
            return 200, {"served_by": self.name, "bytes": len(recorded.body)}
        path = recorded.path.partition("?")[0]
        if self._prefix:
            path = path.replace(self._prefix, "/v1", 1)
        id = f"{self.name}_{len(self.requests)}"
        if path == "/v1/files":
            return 200, {"id": id, "object": "file"}
        dialect = DIALECTS.get(path)
        if dialect not in self.dialects:
            return 400, _error(f"{self.name} does not speak {dialect}")
        try:
            model = recorded.model
        except ValueError:
            return 400, _error("not JSON")
        if model not in self.models:
            return 404, _error(f"{self.name} has no model {model}")
        return 200, {"id": id, "served_by": self.name, "model": model}


async def _head(
    reader: asyncio.StreamReader,
) -> tuple[str, str, dict[str, str]] | None:
    """Method, path and headers; None at the end of the connection."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    return method, path, _fields(lines)


async def _body(
    reader: asyncio.StreamReader, headers: Mapping[str, str]
) -> tuple[bytes, dict[str, str]]:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0"))), {}
    chunks = []
    while size := int((await _line(reader)), 16):
        chunks.append(await reader.readexactly(size))
        await reader.readexactly(2)
    lines = []
    while line := await _line(reader):
        lines.append(line)
    return b"".join(chunks), _fields(lines)


async def _line(reader: asyncio.StreamReader) -> str:
    return (await reader.readuntil(b"\r\n")).decode("latin-1").rstrip("\r\n")


def _fields(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines)
    return {name.lower(): value.strip() for name, _, value in pairs}


def _error(message: str) -> dict[str, object]:
    return {"error": {"message": message}}


def _response(status: int, answer: object, headers: Mapping[str, str]) -> bytes:
    body = json.dumps(answer).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
