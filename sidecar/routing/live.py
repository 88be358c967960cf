"""Brings what a store holds into force, while requests go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import structlog

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import CatalogRecord, PolicyRecord
from sidecar.policies.rules import policy_errors
from sidecar.policies.stores.contract import (
    Change,
    Listed,
    PolicyHistory,
    PolicyStore,
    Snapshot,
    UnreadableRevisionError,
    name_of,
    present_policies,
    with_changes,
)
from sidecar.routing.registry import CompiledPolicy, PolicyRegistry, missing_models
from sidecar.routing.warmth import WARMED_AT_RECOVERY

_log = structlog.get_logger(__name__)

_CHANGES_AT_ONCE = 200
"""More than these are read as a whole."""

_IN_A_TURN = 100
"""Policies that are taken, or taken away, in a turn of the event loop, however many there are."""

_AGAIN_S = 0.5
"""How long after a failure the store is asked again."""

_COMPILED_AT_START = WARMED_AT_RECOVERY
"""Policies compiled before the start is over: those whose prefixes are then computed. Others that
surely can be are compiled when they are needed, or thousands would hold up the start for minutes
and fill the memory."""

_EARLIER = 10
"""Revisions of a policy that are looked at for one that can be used: people seldom write more of
them that cannot be, one after the other. A policy of which none can be leaves most reads to the
others."""

_EARLIER_IN_ALL = 1000
"""Such reads in a start. Each takes milliseconds: what thousands of policies may need, as where the
model catalog cannot be read, holds it up for seconds and no longer. Mostly one is enough; two are
where the present revision cannot be read, which is the first then."""

T = TypeVar("T")

_Accepted = tuple[PolicyRecord, CompiledPolicy]

Warm = Callable[[CompiledPolicy], Awaitable[None]]
"""Has the model server compute the prefix; returns when it is there or cannot be. Never raises."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A revision that is not in force, and why. `in_force`: the revision that is; 0 if none is."""

    name: str
    revision: int
    why: str
    in_force: int


class LivePolicies:
    """Follows a store: each change is checked, compiled, its prefix warmed, then swapped in.

    What cannot be used is refused: the last good revision stays, and `refusals` says why. While the
    store is away, what is in force stays in force.

    Args:
        warm: called for a new revision of a policy that is in use, before it takes over.
        in_use: True if requests have used the policy lately.
        poll_s: how often the store is asked even though it did not say that anything happened.
        longest_s: how long it may take to answer before it counts as away.
    """

    def __init__(
        self,
        store: PolicyStore,
        registry: PolicyRegistry,
        warm: Warm,
        in_use: Callable[[CompiledPolicy], bool],
        poll_s: float = 0.5,
        longest_s: float = 10.0,
    ) -> None:
        self._store = store
        self._registry = registry
        self._warm = warm
        self._in_use = in_use
        self._poll_s = poll_s
        self._longest_s = longest_s
        self._snapshot = Snapshot(0, CatalogRecord({}), {})
        self._refusals: dict[str, Refusal] = {}
        self._away = ""
        self._held_up = ""
        self._wrong = ""
        self._taking: dict[str, asyncio.Task[None]] = {}
        self._moved = asyncio.Event()
        # One: every thread that computes makes the event loop wait for the interpreter's lock.
        self._compiling = ThreadPoolExecutor(1, "compile-policy")
        self._asking = ThreadPoolExecutor(1, "follow-policies")

    @property
    def snapshot(self) -> Snapshot:
        """What the store held when it was last read."""
        return self._snapshot

    @property
    def refusals(self) -> Mapping[str, Refusal]:
        """By resource name."""
        return self._refusals

    @property
    def away(self) -> str:
        """Why the store cannot be reached; empty if it can."""
        return self._away

    @property
    def problem(self) -> str:
        """Why what is in force may be out of date; empty if nothing is known to be wrong."""
        if wrong := self._away or self._held_up or self._store.problem:
            return wrong
        refused = next(iter(self._refusals.values()), None)
        if refused is None:
            return ""
        return f"{refused.name}, revision {refused.revision}, is not in force: {refused.why}"

    def begin(self) -> None:
        """Bring everything into force at the start, cold: nothing is served yet. Of a policy whose
        present revision is refused an earlier one, as where it was in force when that came.

        Raises:
            SidecarError: STORE_UNAVAILABLE.
        """
        self._snapshot = snapshot = self._first()
        self._registry.put_catalog(snapshot.catalog.models)
        refused: dict[str, SidecarError] = {}
        accepted = list(self._accepted(snapshot, refused))
        earlier = self._earlier([*refused, *snapshot.unreadable], snapshot)
        self._registry.put([*accepted, *earlier])
        for name, error in refused.items():
            self._refuse(name, snapshot.records[name].revision, error.message)
        self._note_unreadable()

    def _first(self) -> Snapshot:
        """What the store holds; with the newest model catalog that can be read where the present
        one cannot be, or no sidecar could be started until somebody has mended it."""
        try:
            return self._store.snapshot()
        except UnreadableRevisionError as error:
            catalog = self._catalog_before(error)
            self._hold_up(error.message)
            _log.warning("an earlier model catalog is in force", revision=catalog.revision)
        records: dict[str, PolicyRecord] = {}
        unreadable: dict[str, str] = {}
        for listed in present_policies(self._store):
            if isinstance(listed, PolicyRecord):
                records[name_of(listed)] = listed
            else:
                unreadable[listed.name] = listed.message
        # Of no change: whatever the last one is, everything is read as soon as it can be.
        return Snapshot(0, catalog, records, unreadable)

    def _catalog_before(self, unreadable: UnreadableRevisionError) -> CatalogRecord:
        """The newest that can be read. Raises `unreadable` where there is none."""
        assert isinstance(self._store, PolicyHistory)
        for revision in range(unreadable.revision - 1, 0, -1):
            try:
                return self._store.catalog_revision(revision)
            except UnreadableRevisionError:
                continue
            except SidecarError as error:
                if error.code is not ErrorCode.REVISION_NOT_FOUND:
                    raise
                break  # It was pruned, as all before it.
        raise unreadable

    def _accepted(
        self, snapshot: Snapshot, refused: dict[str, SidecarError]
    ) -> Iterator[_Accepted]:
        """Puts what cannot be used into `refused`."""
        for place, name in enumerate(self._default_first(snapshot.records)):
            record = snapshot.records[name]
            try:
                if not snapshot.checked:
                    _check(record, snapshot.catalog)
                yield self._accept(record, snapshot.catalog, place < _COMPILED_AT_START)
            except SidecarError as error:
                refused[name] = error

    def _earlier(self, names: Sequence[str], snapshot: Snapshot) -> Iterator[_Accepted]:
        """Of each policy the newest revision before the present one that can be used."""
        reads = iter(range(_EARLIER_IN_ALL))
        for name in self._default_first(names):
            try:
                for _, listed in zip(reads, self._before(name, snapshot), strict=False):
                    if isinstance(listed, UnreadableRevisionError):
                        continue
                    with contextlib.suppress(SidecarError):
                        _check(listed, snapshot.catalog)
                        is_default = name == self._registry.default_name
                        yield self._accept(listed, snapshot.catalog, is_default)
                        break
            except SidecarError as error:
                # The others can be used; a sidecar that does not start serves none.
                _log.warning("earlier revisions cannot be read", why=error.message)
                return

    def _before(self, name: str, snapshot: Snapshot) -> Iterator[Listed]:
        """The last revisions of a policy before the one that is refused, the latest first. None
        before a deletion: what was deleted never comes back by itself."""
        if not isinstance(self._store, PolicyHistory):
            return
        present = snapshot.records.get(name)
        before = None if present is None else present.revision
        for _ in range(_EARLIER):
            found = self._store.revisions(name, before, 1)
            if not found or found[0].deleted:
                return
            yield found[0]
            before = found[0].revision

    def _default_first(self, names: Iterable[str]) -> Sequence[str]:
        return sorted(names, key=lambda name: name != self._registry.default_name)

    def _accept(self, record: PolicyRecord, catalog: CatalogRecord, at_once: bool) -> _Accepted:
        """Raises SidecarError POLICY_TOO_LARGE. `at_once`: compiled in any case."""
        if at_once or not self._registry.surely_fits(record.policy):
            return record, self._registry.compile_record(record, catalog.models)
        return record, self._registry.accept_record(record, catalog.models)

    async def follow(self) -> None:
        """Runs until cancelled."""
        while True:
            try:
                number = await self._ask(self._store.last_change)
                if number != self._snapshot.change or await self._ask(self._is_another):
                    await self._catch_up()
                self._reached()
                self._note_problem()
            except UnreadableRevisionError as error:
                self._hold_up(error.message)
                self._wake()
            except SidecarError as error:
                self._failed(error.message)
            except TimeoutError:
                self._failed(f"the policy store did not answer within {self._longest_s:g} s")
            except Exception:
                _log.exception("following the policy store failed")
                self._failed("a defect; see the log")
            if self._away or self._held_up:
                await asyncio.sleep(_AGAIN_S)
            else:
                await self._wait()

    async def beyond(self, number: int) -> None:
        """Returns when a change with a greater number has been seen, and when the store has another
        last one without, as where a backup is restored: whoever waited until numbers that they know
        come again would miss the changes that have them now. Also at each look that finds changes
        held up: they are in the store, and only nothing is brought into force."""
        while (before := self._snapshot.change) <= number:
            await self._moved.wait()
            if self._snapshot.change <= before:
                return

    async def settled(self) -> None:
        """Returns when everything that has been seen is in force or refused."""
        while self._taking:
            await asyncio.wait(list(self._taking.values()))

    async def close(self) -> None:
        """Stop what is under way; `follow` is its caller's to cancel first."""
        tasks = list(self._taking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._compiling.shutdown(wait=False, cancel_futures=True)
        self._asking.shutdown(wait=False, cancel_futures=True)

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            await self._ask(lambda: self._store.wait(self._poll_s))

    async def _ask(self, question: Callable[[], T]) -> T:
        """Raises TimeoutError: a server that hangs holds the thread until it answers."""
        async with asyncio.timeout(self._longest_s + self._poll_s):
            return await asyncio.get_running_loop().run_in_executor(self._asking, question)

    def _reached(self) -> None:
        if self._away or self._held_up:
            _log.info("policy store is back")
            self._away = self._held_up = ""

    def _note_problem(self) -> None:
        """Tells whoever edits files what they got wrong, once."""
        wrong = self._store.problem
        if wrong and wrong != self._wrong:
            _log.error("policies cannot be used; those in force stay", why=wrong)
        elif self._wrong and not wrong:
            _log.info("policies can be used again")
        self._wrong = wrong

    def _failed(self, why: str) -> None:
        if not self._away:
            _log.warning("policy store is away; the policies in force stay", why=why)
        self._away = why

    def _hold_up(self, why: str) -> None:
        """A model catalog that cannot be read: no change is taken, but the store is there to be
        asked, and to be given another one."""
        if self._held_up != why:
            _log.error("policy changes are held up; the policies in force stay", why=why)
        self._away, self._held_up = "", why

    async def _catch_up(self) -> None:
        before = self._snapshot
        after = await self._ask(lambda: self._read(before))
        self._snapshot = after
        outdated: set[str] = set()
        if after.catalog.etag != before.catalog.etag:
            # What is on its way was checked against the catalog before, and would bring that along.
            outdated.update(self._taking)
            self._take_catalog(after)
        changed = []
        for name, record in after.records.items():
            known = before.records.get(name)
            anew = name in self._refusals or name in outdated
            if known is None or known.etag != record.etag or anew:
                changed.append(name)
        async for some in _in_turns(changed):
            for name in some:
                self._begin_taking(name, after.records[name])
        held = before.records.keys() | before.unreadable.keys()
        async for some in _in_turns(sorted(held - after.records.keys() - after.unreadable.keys())):
            self._take_away({name: before.records.get(name) for name in some})
        self._note_unreadable()
        self._wake()

    def _wake(self) -> None:
        # Replaced at every change: whoever waits for the old one has something to look at.
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def _is_another(self) -> bool:
        """True where another change has the number of the last one: a database that was replaced,
        or has failed over, need not have been seen to be away."""
        try:
            last = self._store.changes_after(self._snapshot.change - 1, 1)
        except SidecarError:
            return False  # It cannot be read, or is not kept.
        return any(not _is_in(each, self._snapshot) for each in last)

    def _read(self, before: Snapshot) -> Snapshot:
        """The present snapshot, from what has changed if that is little."""
        try:
            # With the last that is known: after a failover or a restore another has its number.
            changes = self._store.changes_after(before.change - 1, _CHANGES_AT_ONCE)
        except SidecarError as error:
            if error.code is ErrorCode.STORE_UNAVAILABLE:
                # Perhaps only one of the changes cannot be read; if not, this fails as well.
                return self._store.snapshot()
            if error.code is ErrorCode.CHANGES_LOST:
                return self._store.snapshot()
            raise
        if not changes or not _is_in(changes[0], before) or len(changes) == _CHANGES_AT_ONCE:
            return self._store.snapshot()
        return with_changes(before, changes[1:])

    def _take_catalog(self, after: Snapshot) -> None:
        models = after.catalog.models
        lacking = self._registry.lacking(models)
        self._registry.put_catalog(models, kept=lacking)
        for name, missing in lacking.items():
            # Until it is looked at again, below, and perhaps for longer. Of one that was deleted or
            # changed as well there is nothing to tell.
            present = after.records.get(name)
            if present is not None and missing_models(present.policy, models):
                why = f"the model {missing[0]!r} has left the catalog"
                self._refuse(name, present.revision, why)

    def _take_away(self, gone: Mapping[str, PolicyRecord | None]) -> None:
        """`gone`: names, and what was there; None for what could not be read."""
        for name, record in gone.items():
            self._stop_taking(name)
            if name == self._registry.default_name:
                why = (
                    "it was deleted, but it is the policy of requests that name none here; set "
                    "policies.default_policy to another one"
                )
                self._refuse(name, record.revision + 1 if record is not None else 0, why)
            else:
                self._refusals.pop(name, None)
                _log.info("policy removed", policy=name)
        self._registry.remove(gone.keys() - {self._registry.default_name})

    def _note_unreadable(self) -> None:
        for name, why in self._snapshot.unreadable.items():
            self._refuse(name, 0, f"this version cannot read it: {why}")

    def _begin_taking(self, name: str, record: PolicyRecord) -> None:
        self._stop_taking(name)
        task = asyncio.create_task(self._take(name, record, self._snapshot.catalog), name=name)
        self._taking[name] = task

        def forget(_: asyncio.Task[None]) -> None:
            if self._taking.get(name) is task:
                del self._taking[name]

        task.add_done_callback(forget)

    def _stop_taking(self, name: str) -> None:
        if (task := self._taking.pop(name, None)) is not None:
            task.cancel()

    async def _take(self, name: str, record: PolicyRecord, catalog: CatalogRecord) -> None:
        loop = asyncio.get_running_loop()
        try:
            compiled = await loop.run_in_executor(self._compiling, self._compiled, record, catalog)
        except SidecarError as error:
            self._refuse(name, record.revision, error.message)
            return
        except Exception:
            _log.exception("compiling a policy failed", policy=name, revision=record.revision)
            self._refuse(name, record.revision, "a defect; see the log")
            return
        present = self._registry.find(name)
        if present is not None and self._in_use(present):
            await self._warm(compiled)
        self._registry.put([(record, compiled)])
        self._refusals.pop(name, None)
        _log.info("policy in force", policy=name, revision=record.revision)
        # A later revision may have come meanwhile that cannot be read.
        self._note_unreadable()

    def _compiled(self, record: PolicyRecord, catalog: CatalogRecord) -> CompiledPolicy:
        """Raises SidecarError for what cannot be used."""
        _check(record, catalog)
        return self._registry.compile_record(record, catalog.models)

    def _refuse(self, name: str, revision: int, why: str) -> None:
        present = self._registry.find(name)
        in_force = present.ref.revision if present is not None else 0
        refusal = Refusal(name, revision, why, in_force)
        if self._refusals.get(name) != refusal:
            _log.error("policy refused", policy=name, revision=revision, in_force=in_force, why=why)
        self._refusals[name] = refusal


async def _in_turns(names: Sequence[str]) -> AsyncIterator[Sequence[str]]:
    """`names`, some in each turn of the event loop."""
    for start in range(0, len(names), _IN_A_TURN):
        if start:
            await asyncio.sleep(0)
        yield names[start : start + _IN_A_TURN]


def _is_in(change: Change, snapshot: Snapshot) -> bool:
    """True if the change is the last one of the snapshot, which holds what that has made."""
    if change.number != snapshot.change:
        return False
    if isinstance(change.record, CatalogRecord):
        return change.record == snapshot.catalog
    known = snapshot.records.get(change.record.policy.resource_name)
    if change.record.deleted:
        return known is None
    return known == change.record


def _check(record: PolicyRecord, catalog: CatalogRecord) -> None:
    """Raises SidecarError INVALID_POLICY with the first error."""
    for finding in policy_errors(record.policy, catalog.models):
        raise SidecarError(ErrorCode.INVALID_POLICY, f"{finding.path}: {finding.message}")
