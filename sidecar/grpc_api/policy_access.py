"""The policy store as the API reaches it: beside the event loop, with what holds while it is away,
and with the rule about who may write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import CatalogRecord, PolicyRecord
from sidecar.grpc_api.context import Context
from sidecar.grpc_api.protocols import ChangeFeed, PolicyRegistry
from sidecar.policies.editing import PolicyEditing, WritableStore
from sidecar.policies.stores import (
    FixedStore,
    PolicyFiles,
    PolicyHistory,
    PolicyStore,
    PolicyWriting,
    UnreadableRevisionError,
    read_only,
    refusals,
)

_THREADS = 4
_LONGEST_S = 10.0
"""For one read or write; a database that works takes milliseconds."""

T = TypeVar("T")


class StillFeed:
    """The feed of a store that never changes."""

    def __init__(self, store: PolicyStore) -> None:
        self.snapshot = store.snapshot()
        self.away = ""
        self.problem = ""

    async def beyond(self, number: int) -> None:
        """Never returns."""
        await asyncio.Event().wait()


@dataclass(frozen=True, slots=True)
class Policies:
    """The store of a sidecar, and what is known of its changes.

    Args:
        writes_refused: why no writes are taken; empty if they are.
        sockets_write: take them from Unix domain sockets in any case.
    """

    store: PolicyStore
    feed: ChangeFeed
    writes_refused: str = ""
    sockets_write: bool = True


def fixed_policies(registry: PolicyRegistry) -> Policies:
    """The policies of a registry that does not change."""
    store = FixedStore.of(registry.records(), registry.catalog)
    return Policies(store, StillFeed(store))


class PolicyAccess:
    """Runs reads and writes in threads of its own."""

    def __init__(self, policies: Policies, registry: PolicyRegistry) -> None:
        self._policies = policies
        self._registry = registry
        self._threads = ThreadPoolExecutor(_THREADS, "policies")
        # Those above may all wait for a store that hangs, and decisions for asyncio's own.
        self._known = ThreadPoolExecutor(1, "known-policies")

    @property
    def feed(self) -> ChangeFeed:
        return self._policies.feed

    async def read(self, question: Callable[[PolicyStore], T]) -> T:
        """What the store says, or while it is away what it said last. Raises SidecarError
        STORE_UNAVAILABLE about a policy that it did not have then, and for what cannot be read: an
        earlier revision is not the present one."""
        why = self._policies.feed.away
        try:
            # A store that is known to be away is not asked: the answer would be late, and the same.
            if not why:
                return await self._run(lambda: question(self._policies.store))
        except UnreadableRevisionError:
            raise
        except SidecarError as error:
            if error.code is not ErrorCode.STORE_UNAVAILABLE:
                raise
            why = error.message
        kept = FixedStore(self._policies.feed.snapshot)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._known, question, kept)
        except SidecarError as error:
            if error.code is not ErrorCode.POLICY_NOT_FOUND:
                raise
            # It may be there since then, or be a deleted one.
            raise SidecarError(ErrorCode.STORE_UNAVAILABLE, why) from None

    async def ask(self, question: Callable[[PolicyStore], T]) -> T:
        """What the store itself says. Raises SidecarError STORE_UNAVAILABLE."""
        return await self._run(lambda: question(self._policies.store))

    async def history(self, name: str, question: Callable[[PolicyHistory], T]) -> T:
        """Raises SidecarError REVISION_NOT_FOUND where there is no history."""
        store = self._policies.store
        if not isinstance(store, PolicyHistory):
            return await self._run(lambda: question(_OnlyPresent(store)))
        return await self._run(lambda: question(store))

    async def write(self, name: str, context: Context, change: Callable[[PolicyEditing], T]) -> T:
        """Raises SidecarError WRITES_REFUSED or POLICY_READ_ONLY, or what the change raises."""
        self._check_caller(context)
        store = self._policies.store
        if not isinstance(store, PolicyWriting):
            file = store.file_of(name) if isinstance(store, PolicyFiles) else ""
            raise read_only(name, file)
        editing = PolicyEditing(
            _writable(store), self._registry.prompt_of, self._registry.default_name
        )
        return await self._run(lambda: change(editing))

    def _check_caller(self, context: Context) -> None:
        refused = self._policies.writes_refused
        by_socket = self._policies.sockets_write and context.peer().startswith("unix:")
        if refused and not by_socket:
            raise SidecarError(ErrorCode.WRITES_REFUSED, refused)

    async def _run(self, work: Callable[[], T]) -> T:
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            async with asyncio.timeout(_LONGEST_S):
                return await running
        except TimeoutError:
            # A server that hangs holds its connection's thread, and no timeout of its own helps.
            raise SidecarError(
                ErrorCode.STORE_UNAVAILABLE,
                f"the policy store did not answer within {_LONGEST_S:g} s; a write may have been "
                "made or not: send it again with the same request_id",
            ) from None


def _writable(store: PolicyStore) -> WritableStore:
    assert isinstance(store, PolicyHistory)
    assert isinstance(store, PolicyWriting)
    return store


class _OnlyPresent:
    """The history of a store that has none: the present revision."""

    def __init__(self, store: PolicyStore) -> None:
        self._store = store

    def revision(self, name: str, revision: int) -> PolicyRecord:
        present = self._store.policy(name)
        if revision != present.revision:
            raise refusals.no_history(name)
        return present

    def revisions(self, name: str, before: int | None, limit: int) -> Sequence[PolicyRecord]:
        return [self._store.policy(name)][:limit] if before is None else []

    def catalog_revision(self, revision: int) -> CatalogRecord:
        present = self._store.catalog()
        if revision != present.revision:
            raise refusals.no_history("the model catalog")
        return present
