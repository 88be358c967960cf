"""Which policies' prefixes the model server holds, as far as we know."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from sidecar.core.model import InferenceError, RoutingModel
from sidecar.routing.registry import CompiledPolicy

_log = structlog.get_logger(__name__)

WARMED_AT_RECOVERY = 16
"""Prefixes computed before a recovered model server is used again: those of the default and of the
most recently used policies. The rest are computed when they are first asked for."""

_REMEMBERED = 4096
"""Prefixes believed to be warm; far more than a model server keeps."""


class Warmth:
    """Warms prefixes, each at most once at a time.

    Args:
        policies: the named policies, the default first.
        timeout_s: how long one prefix may take.
    """

    def __init__(self, policies: Callable[[], Sequence[CompiledPolicy]], timeout_s: float) -> None:
        self._policies = policies
        self._timeout_s = timeout_s
        self._warm: dict[str, None] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def is_warm(self, compiled: CompiledPolicy) -> bool:
        """True if the prefix was computed since the last outage; counts as a use of it."""
        digest = compiled.ref.digest
        if digest not in self._warm:
            return False
        self._touch(digest)
        return True

    def doubt(self, compiled: CompiledPolicy) -> None:
        """A decision was late: the prefix may have been evicted."""
        self._warm.pop(compiled.ref.digest, None)

    def request(self, compiled: CompiledPolicy, model: RoutingModel) -> None:
        """Warm the policy in the background unless that is under way."""
        digest = compiled.ref.digest
        if compiled.prompt is None or digest in self._tasks:
            return
        task = asyncio.create_task(self._warm_quietly(compiled, model), name="warm-prefix")
        self._tasks[digest] = task
        task.add_done_callback(lambda _: self._tasks.pop(digest, None))

    async def recover(self, model: RoutingModel) -> None:
        """After an outage: forget everything, warm what is used most. Raises InferenceError."""
        recent = list(reversed(self._warm))
        self._warm.clear()
        policies = {compiled.ref.digest: compiled for compiled in self._policies()}
        order = [digest for digest in recent if digest in policies]
        order += [digest for digest in policies if digest not in order]
        for digest in order[:WARMED_AT_RECOVERY]:
            await self._warm_one(policies[digest], model)

    async def close(self) -> None:
        """Stop what is under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _warm_quietly(self, compiled: CompiledPolicy, model: RoutingModel) -> None:
        try:
            await self._warm_one(compiled, model)
        except InferenceError as error:
            _log.warning("policy not warmed", policy=compiled.ref.name, why=str(error))

    async def _warm_one(self, compiled: CompiledPolicy, model: RoutingModel) -> None:
        if compiled.prompt is None:
            return
        await model.warm(compiled.prompt.prefix_ids, self._timeout_s)
        self._touch(compiled.ref.digest)

    def _touch(self, digest: str) -> None:
        self._warm.pop(digest, None)
        self._warm[digest] = None
        if len(self._warm) > _REMEMBERED:
            del self._warm[next(iter(self._warm))]
