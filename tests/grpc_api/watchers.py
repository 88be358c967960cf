"""Who follows the changes of a policy store through WatchPolicies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sidecar._generated.llmrouter.v1 import policy_pb2
from tests.grpc_api.stored import Stored

Received = policy_pb2.WatchPoliciesResponse


class Watcher:
    """One call of WatchPolicies and what it has sent."""

    def __init__(self, api: Stored, after: int, parent: str) -> None:
        request = policy_pb2.WatchPoliciesRequest(parent=parent, after_change=after)
        self._call = api.policies.WatchPolicies(request)
        self.received: list[Received] = []

    async def started(self) -> None:
        await self._call.initial_metadata()

    async def until(self, number: int) -> list[Received]:
        """Everything up to the change of that number."""
        async with asyncio.timeout(60):
            while not self.received or self.received[-1].change_number < number:
                message = await self._call.read()
                assert isinstance(message, Received)
                self.received.append(message)
        return self.received

    async def end(self) -> object:
        async with asyncio.timeout(60):
            return await self._call.read()

    def cancel(self) -> None:
        self._call.cancel()


@asynccontextmanager
async def watching(
    api: Stored, after: int = 0, parent: str = "namespaces/-"
) -> AsyncIterator[Watcher]:
    watcher = Watcher(api, after, parent)
    await watcher.started()
    try:
        yield watcher
    finally:
        watcher.cancel()


def numbers(received: list[Received]) -> list[int]:
    return [each.change_number for each in received]
