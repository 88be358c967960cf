"""Which policies' prefixes the model server holds, as far as we know."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence

import structlog

from sidecar.core.model import InferenceError, RoutingModel
from sidecar.routing.registry import CompiledPolicy

_log = structlog.get_logger(__name__)

WARMED_AT_RECOVERY = 16
"""Prefixes computed again after an outage: those of the most recently used policies and of the
default. The rest are computed when they are first asked for."""

_REMEMBERED = 4096
"""Policies whose last use is remembered; far more than a model server keeps prefixes of."""

_AFTER_RECOVERY = "after recovery"


class Warmth:
    """Warms prefixes, each at most once at a time.

    Args:
        policies: the named policies, the default first.
        timeout_s: how long one prefix may take.
    """

    def __init__(self, policies: Callable[[], Sequence[CompiledPolicy]], timeout_s: float) -> None:
        self._policies = policies
        self._timeout_s = timeout_s
        # Digest -> believed warm; the most recently used last.
        self._used: dict[str, bool] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def is_warm(self, compiled: CompiledPolicy) -> bool:
        """True if the prefix was computed since the last outage; counts as a use of it."""
        warm = self._used.get(compiled.ref.digest, False)
        self._note(compiled, warm)
        return warm

    def doubt(self, compiled: CompiledPolicy) -> None:
        """A decision was late: the prefix may have been evicted."""
        self._note(compiled, warm=False)

    def request(self, compiled: CompiledPolicy, model: RoutingModel) -> None:
        """Warm the policy in the background unless that is under way."""
        if compiled.prompt is not None and compiled.ref.digest not in self._tasks:
            self._start(compiled.ref.digest, self._warm_in_turn([compiled], model))

    async def recover(self, model: RoutingModel) -> None:
        """After an outage: forget everything and warm the policy used last, then others in the
        background; until its turn each of them answers `warming`. Raises InferenceError."""
        for task in self._tasks.values():
            task.cancel()
        self._used = dict.fromkeys(self._used, False)
        first, *rest = self._most_used()
        await self._warm_one(first, model)
        if rest:
            self._start(_AFTER_RECOVERY, self._warm_in_turn(rest, model))

    async def close(self) -> None:
        """Stop what is under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _most_used(self) -> list[CompiledPolicy]:
        named = {compiled.ref.digest: compiled for compiled in self._policies()}
        recent = [named[digest] for digest in reversed(self._used) if digest in named]
        others = [named[digest] for digest in named if digest not in self._used]
        return (recent + others)[:WARMED_AT_RECOVERY]

    def _start(self, key: str, warming: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(warming, name="warm-prefix")
        self._tasks[key] = task

        def forget(_: asyncio.Task[None]) -> None:
            if self._tasks.get(key) is task:
                del self._tasks[key]

        task.add_done_callback(forget)

    async def _warm_in_turn(self, policies: Sequence[CompiledPolicy], model: RoutingModel) -> None:
        for compiled in policies:
            if self._used.get(compiled.ref.digest):
                continue
            try:
                await self._warm_one(compiled, model)
            except InferenceError as error:
                _log.warning("policy not warmed", policy=compiled.ref.name, why=str(error))

    async def _warm_one(self, compiled: CompiledPolicy, model: RoutingModel) -> None:
        if compiled.prompt is not None:
            await model.warm(compiled.prompt.prefix_ids, self._timeout_s)
            self._used[compiled.ref.digest] = True

    def _note(self, compiled: CompiledPolicy, warm: bool) -> None:
        digest = compiled.ref.digest
        self._used.pop(digest, None)
        self._used[digest] = warm
        if len(self._used) > _REMEMBERED:
            del self._used[next(iter(self._used))]
