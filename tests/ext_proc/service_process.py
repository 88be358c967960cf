"""The service with a stand-in router in a process of its own, to be killed and frozen:

python -m tests.ext_proc.service_process SOCKET

A conversation that says `hold` is never decided; the file SOCKET.held has a byte for each.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sidecar.core.decision import Decision, RoutingRequest
from sidecar.ext_proc.dialects import LlmDialects
from tests.ext_proc.standins import StubRouter, service_on


class HoldingRouter(StubRouter):
    def __init__(self, held: Path) -> None:
        super().__init__()
        self._held = held

    async def decide(self, request: RoutingRequest) -> Decision:
        if "hold" in request.conversation.messages[-1].text:
            with self._held.open("ab") as file:
                file.write(b".")
            await asyncio.sleep(60)
        return await super().decide(request)


async def main(socket: Path) -> None:
    router = HoldingRouter(socket.with_suffix(".held"))
    async with service_on(socket, router=router, dialects=LlmDialects()):
        await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
