"""A way to a server that can fall silent: both ends stay connected, as where a machine or network
is gone without a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Way:
    """`received`: what has come to it from either end; `silent`: nothing goes on any more."""

    address: str = ""
    silent: bool = False
    received: bytearray = field(default_factory=bytearray)


@asynccontextmanager
async def way_to(port: int) -> AsyncIterator[Way]:
    way = Way()
    writers: list[asyncio.StreamWriter] = []

    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while data := await reader.read(65_536):
            way.received.extend(data)
            if not way.silent:
                writer.write(data)

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(passed_on(reader, back), passed_on(there, writer))

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    way.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield way
    finally:
        for writer in writers:
            writer.close()
        server.close()
