"""An HTTP/1.1 client that sends exactly the bytes, chunks and pauses that a test wants."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HOST = "api.anthropic.com"
"""Name in the certificate of the tests."""


@dataclass(frozen=True)
class Answer:
    """What the client saw. Status 0: the connection was closed without an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def post(
    port: int,
    body: bytes,
    *,
    path: str = "/v1/chat/completions",
    headers: Mapping[str, str] | None = None,
    chunks: Sequence[bytes] | None = None,
    pause_s: float = 0.0,
    trailers: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """POSTs `body`.

    Args:
        tls: to speak https.
        chunks: sent in these pieces with `transfer-encoding: chunked` instead of `body`.
        pause_s: between the pieces.
        trailers: behind the last piece.
    """
    given = {"host": "gateway", "content-type": "application/json", "connection": "close"}
    given |= headers or {}
    if chunks is None:
        given.setdefault("content-length", str(len(body)))
        pieces = [body]
    else:
        given["transfer-encoding"] = "chunked"
        pieces = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]
        ending = "".join(f"{name}: {value}\r\n" for name, value in (trailers or {}).items())
        pieces.append(b"0\r\n" + ending.encode() + b"\r\n")
    return await exchange(port, "POST", path, given, pieces, pause_s, timeout_s, tls)


async def exchange(
    port: int,
    method: str,
    path: str,
    headers: Mapping[str, str],
    pieces: Sequence[bytes] = (),
    pause_s: float = 0.0,
    timeout_s: float = 60.0,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """One request on a connection of its own."""
    name = HOST if tls is not None else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    try:
        async with asyncio.timeout(timeout_s):
            # Read while sending: an answer may come before the whole request was taken.
            answer = asyncio.ensure_future(_read(reader, method))
            try:
                writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode())
                for piece in pieces:
                    await writer.drain()
                    if pause_s:
                        await asyncio.sleep(pause_s)
                    writer.write(piece)
                await writer.drain()
            except ConnectionError:
                pass
            return await answer
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, method: str) -> Answer:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(0, {}, b"")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
    try:
        body = b"" if method == "HEAD" else await _body(reader, headers)
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(0, headers, b"")
    return Answer(int(status.split()[1]), headers, body)


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    if headers.get("transfer-encoding") != "chunked":
        return await reader.read()
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body
