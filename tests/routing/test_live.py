"""Changes of a store come into force without a request noticing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from sidecar.core.decision import PolicyName
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import CompiledPrompt
from sidecar.core.policy import ModelList, Policy, PolicyRecord, WeightedModel, etag_of
from sidecar.policies.stores import (
    Change,
    ChangeKind,
    FileStore,
    FixedStore,
    PolicyStore,
    Snapshot,
    UnreadableRevisionError,
)
from sidecar.routing import CompiledPolicy, PolicyRegistry
from sidecar.routing.live import LivePolicies
from tests.doubles import StubPrompt
from tests.policies.stores import parts
from tests.policies.stores.parts import CATALOG, FAST, LARGE, name_of, policy, write, write_catalog
from tests.waiting import until

SUPPORT = name_of("support")


def compile_prompt(compiled: Policy) -> CompiledPrompt:
    if compiled.description == "huge":
        raise SidecarError(ErrorCode.POLICY_TOO_LARGE, "the routes take 600 tokens of 512")
    return StubPrompt(compiled)


@dataclass
class World:
    store: PolicyStore
    registry: PolicyRegistry
    used: bool = True
    warm_gate: asyncio.Event = field(default_factory=asyncio.Event)
    warmed: list[str] = field(default_factory=list)
    live: LivePolicies = field(init=False)

    def __post_init__(self) -> None:
        self.warm_gate.set()
        self.live = LivePolicies(self.store, self.registry, self._warm, self._in_use, poll_s=0.02)

    def _in_use(self, compiled: CompiledPolicy) -> bool:
        return self.used and compiled.policy.name == "support"

    async def _warm(self, compiled: CompiledPolicy) -> None:
        await self.warm_gate.wait()
        self.warmed.append(compiled.policy.description)

    async def until_seen(self) -> None:
        """Everything that is in the store now is in force or refused."""
        number = await asyncio.to_thread(self.store.last_change)
        async with asyncio.timeout(60):
            await self.live.beyond(number - 1)
            await self.live.settled()

    def in_force(self, name: str = SUPPORT) -> str | None:
        compiled = self.registry.find(name)
        return None if compiled is None else compiled.policy.description


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async for made in running(parts.sqlite(tmp_path, policy(), policy("other"))):
        yield made


async def running(store: PolicyStore) -> AsyncGenerator[World, None]:
    registry = PolicyRegistry(
        (), {}, compile_prompt, default_policy=PolicyName("support"), max_prompt_tokens=512
    )
    made = World(store, registry)
    made.live.begin()
    following = asyncio.create_task(made.live.follow())
    yield made
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await made.live.close()
    store.close()


async def test_everything_is_in_force_from_the_start(world: World) -> None:
    assert world.in_force() == "first"
    assert world.registry.catalog == CATALOG
    assert not world.live.problem
    assert not world.warmed


async def test_change_is_warmed_before_it_takes_over(world: World) -> None:
    world.warm_gate.clear()
    begun = world.registry.get(PolicyName())
    write(world.store, ChangeKind.UPDATE, policy(description="second"))
    await world.live.beyond(3)
    await asyncio.sleep(0.1)

    assert world.in_force() == "first"
    world.warm_gate.set()
    await world.until_seen()

    assert world.in_force() == "second"
    assert world.warmed == ["second"]
    # Whoever began under the first revision still has it.
    assert (begun.policy.description, begun.ref.revision) == ("first", 1)


async def test_policy_that_nobody_uses_is_not_warmed(world: World) -> None:
    world.used = False
    write(world.store, ChangeKind.UPDATE, policy(description="second"))
    await world.until_seen()

    assert world.in_force() == "second"
    assert not world.warmed


async def test_slow_policy_does_not_hold_up_another(world: World) -> None:
    world.warm_gate.clear()
    write(world.store, ChangeKind.UPDATE, policy(description="second"))
    await world.live.beyond(3)
    write(world.store, ChangeKind.UPDATE, policy("other", description="quick"))
    async with asyncio.timeout(60):
        while world.in_force(name_of("other")) != "quick":
            await asyncio.sleep(0.01)

    assert world.in_force() == "first"
    world.warm_gate.set()


async def test_of_changes_in_a_row_the_last_one_ends_in_force(world: World) -> None:
    world.warm_gate.clear()
    for number in range(5):
        write(world.store, ChangeKind.UPDATE, policy(description=str(number)))
        await world.live.beyond(number + 3)
    world.warm_gate.set()
    await world.until_seen()

    assert world.in_force() == "4"


@pytest.mark.parametrize(
    ("kind", "content", "ends"),
    [
        (ChangeKind.UPDATE, policy("other", description="third"), "third"),
        (ChangeKind.DELETE, "other", None),
    ],
    ids=["changed again", "deleted"],
)
async def test_what_is_overtaken_while_it_is_warmed_never_comes_into_force(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    kind: ChangeKind,
    content: Policy | str,
    ends: str | None,
) -> None:
    warming = asyncio.Event()

    async def held(_: CompiledPolicy) -> None:
        warming.set()
        await world.warm_gate.wait()

    world.warm_gate.clear()
    monkeypatch.setattr(world.live, "_warm", held)
    monkeypatch.setattr(world.live, "_in_use", lambda _: not warming.is_set())
    write(world.store, ChangeKind.UPDATE, policy("other", description="second"))
    await warming.wait()
    write(world.store, kind, content)
    await until(lambda: world.in_force(name_of("other")) == ends)
    world.warm_gate.set()
    for _ in range(20):
        await asyncio.sleep(0)

    assert world.in_force(name_of("other")) == ends


async def test_revision_that_is_too_large_leaves_the_last_good_one(world: World) -> None:
    write(world.store, ChangeKind.UPDATE, policy(description="huge"))
    await world.until_seen()

    assert world.in_force() == "first"
    refusal = world.live.refusals[SUPPORT]
    assert (refusal.revision, refusal.in_force) == (2, 1)
    assert "600 tokens" in world.live.problem

    write(world.store, ChangeKind.UPDATE, policy(description="third"))
    await world.until_seen()

    assert world.in_force() == "third"
    assert not world.live.problem


async def test_policy_that_comes_too_large_is_refused_at_the_start(tmp_path: Path) -> None:
    async for made in running(parts.sqlite(tmp_path, policy(), policy("b", description="huge"))):
        assert made.in_force() == "first"
        assert made.in_force(name_of("b")) is None
        assert made.live.refusals[name_of("b")].in_force == 0


async def test_of_many_policies_those_that_surely_fit_are_compiled_when_they_are_needed(
    tmp_path: Path,
) -> None:
    compiled: list[str] = []

    def compile_counted(each: Policy) -> CompiledPrompt:
        compiled.append(each.name)
        return compile_prompt(each)

    many = [policy(f"p-{n:02}") for n in range(30)]
    unsure, broken = policy("z-unsure"), policy("z-huge", description="huge")
    store = parts.sqlite(tmp_path, policy(), *many, unsure, broken)
    registry = PolicyRegistry(
        (),
        {},
        compile_counted,
        default_policy=PolicyName("support"),
        max_prompt_tokens=512,
        surely_fits=lambda each: each.name.startswith("p-"),
    )
    world = World(store, registry)
    world.live.begin()

    assert compiled[0] == "support"
    assert compiled[1:] == [*(f"p-{n:02}" for n in range(15)), "z-huge", "z-unsure"]
    # All are in force, and what cannot be is known at once.
    assert len(registry.named()) == 32
    assert list(world.live.refusals) == [name_of("z-huge")]
    await world.live.close()
    store.close()


async def test_deleted_policy_goes_and_the_default_stays(world: World) -> None:
    write(world.store, ChangeKind.DELETE, "other")
    write(world.store, ChangeKind.DELETE, "support")
    await world.until_seen()

    assert world.in_force(name_of("other")) is None
    assert world.in_force() == "first"
    assert "default_policy" in world.live.refusals[SUPPORT].why

    write(world.store, ChangeKind.UNDELETE, "support")
    await world.until_seen()

    assert not world.live.problem


async def test_catalog_takes_over_for_what_begins_afterwards(world: World) -> None:
    begun = world.registry.get(PolicyName())
    dearer = replace(LARGE, input_price=99.0)
    write_catalog(world.store, FAST, dearer)
    await world.until_seen()

    assert begun.catalog[LARGE.id].input_price == 0.5
    assert world.registry.get(PolicyName()).catalog[LARGE.id].input_price == 99.0
    assert world.registry.catalog[LARGE.id] == dearer


async def test_catalog_that_changes_while_a_policy_is_warmed_holds_for_it_too(
    world: World,
) -> None:
    world.warm_gate.clear()
    write(world.store, ChangeKind.UPDATE, policy(description="second"))
    await world.live.beyond(3)
    write_catalog(world.store, FAST, replace(LARGE, input_price=99.0))
    await world.live.beyond(4)
    world.warm_gate.set()
    await world.until_seen()

    assert world.in_force() == "second"
    assert world.registry.get(PolicyName()).catalog[LARGE.id].input_price == 99.0


def unreadable_from_now_on(store: PolicyStore, name: str, patched: pytest.MonkeyPatch) -> None:
    """A newer version writes it: there is none yet that could."""
    whole = store.snapshot

    def newer() -> Snapshot:
        read = whole()
        others = {each: record for each, record in read.records.items() if each != name}
        return replace(read, records=others, unreadable={name: "it has a colour"})

    def unreadable(after: int, limit: int) -> Sequence[Change]:
        raise SidecarError(ErrorCode.STORE_UNAVAILABLE, "of a newer version")

    patched.setattr(store, "snapshot", newer)
    patched.setattr(store, "changes_after", unreadable)


async def test_policy_that_cannot_be_read_is_told_of_though_one_before_it_comes_into_force(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.warm_gate.clear()
    write(world.store, ChangeKind.UPDATE, policy(description="second"))
    await world.live.beyond(3)
    unreadable_from_now_on(world.store, SUPPORT, monkeypatch)
    write(world.store, ChangeKind.UPDATE, policy(description="coloured"))
    await world.live.beyond(4)
    world.warm_gate.set()
    await world.live.settled()

    assert world.in_force() == "second"
    assert world.live.refusals[SUPPORT].in_force == 2
    assert "it has a colour" in world.live.problem


async def test_policy_that_cannot_be_read_and_is_then_deleted_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = name_of("other")
    with monkeypatch.context() as patched:
        unreadable_from_now_on(world.store, name, patched)
        write(world.store, ChangeKind.UPDATE, policy("other", description="coloured"))
        await world.until_seen()
        kept, refused = world.in_force(name), name in world.live.refusals
    write(world.store, ChangeKind.DELETE, "other")
    await world.until_seen()

    assert (kept, refused) == ("first", True)
    assert world.in_force(name) is None
    assert not world.live.problem


NEWER = replace(FAST, id="acme/newer")


def catalog_damaged(folder: Path, revisions: str) -> PolicyStore:
    """A store whose catalog has three revisions."""
    store = parts.sqlite(folder, policy())
    write_catalog(store, FAST, LARGE, replace(FAST, id="acme/second"))
    write_catalog(store, FAST, LARGE, NEWER)
    write(store, ChangeKind.UPDATE, policy(description="second"))
    write(store, ChangeKind.CREATE, Policy("new", (), ModelList((WeightedModel(NEWER.id),))))
    parts.changed(
        f"sqlite:{folder / 'policies.db'}",
        f"UPDATE changes SET content = '17' WHERE name = 'modelCatalog' AND revision {revisions}",
    )
    return store


@pytest.mark.parametrize(("revisions", "readable"), [("= 3", 2), (">= 2", 1)])
async def test_start_takes_the_newest_catalog_that_can_be_read(
    tmp_path: Path, revisions: str, readable: int
) -> None:
    new, why = name_of("new"), "modelCatalog, revision 3, cannot be read: its content is no JSON"
    with capture_logs() as logged:
        async for world in running(catalog_damaged(tmp_path, revisions)):
            assert ("acme/second" in world.registry.catalog) is (readable == 2)
            assert (world.in_force(), world.in_force(new)) == ("second", None)
            assert world.live.problem.startswith(why)
            assert NEWER.id in world.live.refusals[new].why

            write_catalog(world.store, FAST, LARGE, NEWER)
            await world.until_seen()

            assert NEWER.id in world.registry.catalog
            assert (world.in_force(), world.in_force(new)) == ("second", "")
            async with asyncio.timeout(60):
                while world.live.problem:
                    await asyncio.sleep(0.01)

    warnings = [(each["event"], each.get("revision")) for each in logged]
    assert ("an earlier model catalog is in force", readable) in warnings


HUGE = policy(description="huge")


def with_revisions(
    folder: Path, *writes: tuple[ChangeKind, Policy | str], damaged: str = ""
) -> PolicyStore:
    """A store whose default policy had `writes` after its first revision. `damaged`: those of its
    revisions that cannot be read, as SQL."""
    store = parts.sqlite(folder, policy())
    for kind, content in writes:
        write(store, kind, content)
    if damaged:
        parts.changed(
            f"sqlite:{folder / 'policies.db'}",
            f"UPDATE changes SET content = '17' WHERE name = '{SUPPORT}' AND revision {damaged}",
        )
    return store


SECOND = (ChangeKind.UPDATE, policy(description="second"))
TOO_LARGE = (ChangeKind.UPDATE, HUGE)
DELETED, UNDELETED = (ChangeKind.DELETE, "support"), (ChangeKind.UNDELETE, "support")


@pytest.mark.parametrize(
    ("writes", "damaged", "revision", "in_force"),
    [
        ([SECOND, TOO_LARGE], "", 3, 2),
        ([SECOND, SECOND], "= 3", 0, 2),
        ([SECOND, SECOND], ">= 2", 0, 1),
        ([SECOND, SECOND, TOO_LARGE], "= 3", 4, 2),
        ([TOO_LARGE] * 10, "", 11, 1),
        ([TOO_LARGE] * 11, "", 12, 0),
        ([DELETED, UNDELETED, SECOND], "= 4", 0, 3),
        ([DELETED, UNDELETED], "= 3", 0, 0),
        ([DELETED, UNDELETED], ">= 2", 0, 0),
        ([], "= 1", 0, 0),
    ],
    ids=[
        "too large",
        "unreadable",
        "several unreadable",
        "one unreadable before one too large",
        "the tenth before",
        "the eleventh before",
        "undeleted before",
        "deleted before",
        "deleted before, unreadable",
        "no other",
    ],
)
async def test_start_has_the_newest_usable_revision_in_force_where_the_present_one_is_refused(
    tmp_path: Path,
    writes: list[tuple[ChangeKind, Policy | str]],
    damaged: str,
    revision: int,
    in_force: int,
) -> None:
    async for world in running(with_revisions(tmp_path, *writes, damaged=damaged)):
        found, refusal = world.registry.find(SUPPORT), world.live.refusals[SUPPORT]
        assert (found.ref.revision if found is not None else 0) == in_force
        assert (refusal.revision, refusal.in_force) == (revision, in_force)
        assert f"{SUPPORT}, revision {revision}, is not in force" in world.live.problem

        write(world.store, ChangeKind.UPDATE, policy(description="mended"))
        await world.until_seen()

        assert world.in_force() == "mended"
        assert not world.live.problem


async def test_start_tells_once_what_is_refused_and_what_is_in_force_instead(
    tmp_path: Path,
) -> None:
    with capture_logs() as logged:
        async for _ in running(with_revisions(tmp_path, TOO_LARGE)):
            pass

    told = [(each["event"], each["revision"], each["in_force"]) for each in logged]
    assert told == [("policy refused", 2, 1)]


async def test_start_under_an_earlier_catalog_has_the_revisions_that_fit_it(
    tmp_path: Path,
) -> None:
    store = catalog_damaged(tmp_path, "= 3")
    models = ModelList((WeightedModel(NEWER.id),))
    write(store, ChangeKind.UPDATE, Policy("support", (), models, description="newer"))
    async for world in running(store):
        assert world.in_force() == "second"
        assert NEWER.id in world.live.refusals[SUPPORT].why

        write_catalog(store, FAST, LARGE, NEWER)
        await world.until_seen()

        assert world.in_force() == "newer"
        assert not world.live.refusals


async def test_start_looks_for_earlier_revisions_of_so_many_policies_the_default_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.routing.live._EARLIER_IN_ALL", 2)
    names = ("a", "b", "support")
    store = parts.sqlite(tmp_path, *map(policy, names))
    for name in names:
        write(store, ChangeKind.UPDATE, policy(name, description="huge"))
    async for world in running(store):
        refused = {name: world.live.refusals[name_of(name)].in_force for name in names}
        assert refused == {"a": 1, "b": 0, "support": 1}
        assert [each.ref.name for each in world.registry.named()] == [SUPPORT, name_of("a")]


async def test_start_goes_on_where_earlier_revisions_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = parts.sqlite(tmp_path, policy(), policy("other"))
    write(store, ChangeKind.UPDATE, HUGE)

    def away(*_: object) -> Sequence[PolicyRecord]:
        raise SidecarError(ErrorCode.STORE_UNAVAILABLE, "the disk is on fire")

    monkeypatch.setattr(store, "revisions", away)
    with capture_logs() as logged:
        async for world in running(store):
            assert (world.in_force(), world.in_force(name_of("other"))) == (None, "first")
            assert world.live.refusals[SUPPORT].in_force == 0

    told = [each["why"] for each in logged if each["log_level"] == "warning"]
    assert told == ["the disk is on fire"]


@pytest.mark.parametrize("pruned", [False, True])
async def test_start_without_any_catalog_that_can_be_read_names_it(
    tmp_path: Path, pruned: bool
) -> None:
    store = catalog_damaged(tmp_path, "> 0")
    if pruned:
        old = "DELETE FROM changes WHERE name = 'modelCatalog' AND revision < 3"
        parts.changed(f"sqlite:{tmp_path / 'policies.db'}", old)

    with pytest.raises(UnreadableRevisionError, match="revision 3, cannot be read"):
        async for _ in running(store):
            pass
    store.close()


async def test_model_that_leaves_the_catalog_leaves_its_policies_working(world: World) -> None:
    """Editing refuses it; a database that is written by hand may have it all the same."""
    write_catalog(world.store, FAST)
    await world.until_seen()

    kept = world.registry.get(PolicyName())
    assert LARGE.id in kept.catalog
    assert LARGE.id not in world.registry.catalog
    assert LARGE.id in world.live.refusals[SUPPORT].why

    write_catalog(world.store, FAST, LARGE)
    await world.until_seen()

    assert not world.live.problem


async def test_store_that_has_gone_back_is_followed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a backup is restored."""
    backup = world.store.snapshot()
    write(world.store, ChangeKind.UPDATE, policy(description="second"))
    await world.until_seen()
    later = world.in_force()

    def lost(after: int, limit: int) -> Sequence[Change]:
        raise SidecarError(ErrorCode.CHANGES_LOST, "the store has gone back")

    monkeypatch.setattr(world.store, "snapshot", lambda: backup)
    monkeypatch.setattr(world.store, "changes_after", lost)
    monkeypatch.setattr(world.store, "last_change", lambda: backup.change)
    await until(lambda: world.in_force() == "first")

    assert later == "second"
    assert not world.live.problem


async def test_store_that_is_away_leaves_everything_in_force(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is made to fail; PostgreSQL really goes away in the integration tests."""
    there = world.store.last_change

    def away() -> int:
        raise SidecarError(ErrorCode.STORE_UNAVAILABLE, "the database is gone")

    monkeypatch.setattr(world.store, "last_change", away)
    async with asyncio.timeout(60):
        while not world.live.problem:
            await asyncio.sleep(0.01)
    assert world.live.problem == "the database is gone"
    assert world.in_force() == "first"

    write(world.store, ChangeKind.UPDATE, policy(description="second"))
    monkeypatch.setattr(world.store, "last_change", there)
    await world.until_seen()

    assert world.in_force() == "second"
    async with asyncio.timeout(60):
        while world.live.problem:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("noticed", [True, False])
async def test_changes_that_a_failover_has_lost_go_though_others_have_their_numbers(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noticed: bool
) -> None:
    (tmp_path / "standby").mkdir()
    standby = parts.sqlite(tmp_path / "standby", policy(), policy("other"))
    write(world.store, ChangeKind.UPDATE, policy(description="lost"))
    await world.until_seen()
    write(standby, ChangeKind.UPDATE, policy("other", description="kept"))

    if noticed:

        def away() -> int:
            raise SidecarError(ErrorCode.STORE_UNAVAILABLE, "the database is gone")

        monkeypatch.setattr(world.store, "last_change", away)
        async with asyncio.timeout(60):
            while not world.live.problem:
                await asyncio.sleep(0.01)
    else:
        write(standby, ChangeKind.CREATE, policy("third"))
    for name in ("snapshot", "changes_after", "last_change"):
        monkeypatch.setattr(world.store, name, getattr(standby, name))
    async with asyncio.timeout(60):
        while world.in_force() == "lost" or world.in_force(name_of("other")) != "kept":
            await asyncio.sleep(0.01)
    await world.live.settled()

    assert world.live.snapshot == standby.snapshot()
    standby.close()


async def test_what_follows_a_known_change_is_read_by_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole() -> Snapshot:
        raise AssertionError("everything is read")

    monkeypatch.setattr(world.store, "snapshot", whole)
    write(world.store, ChangeKind.DELETE, "other")
    await world.until_seen()
    write_catalog(world.store, FAST, LARGE, replace(FAST, id="new"))
    await world.until_seen()
    write(world.store, ChangeKind.UPDATE, policy(description="second"))
    await world.until_seen()

    assert world.in_force() == "second"
    assert not world.live.problem


async def test_many_changes_at_once_are_read_as_a_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.routing.live._CHANGES_AT_ONCE", 5)
    world.used = False
    for number in range(12):
        write(world.store, ChangeKind.UPDATE, policy(description=str(number)))
    await world.until_seen()

    assert world.in_force() == "11"
    assert world.live.snapshot == world.store.snapshot()


class Replaced(FixedStore):
    """As a database in whose place another comes."""

    def replace(self, *policies: Policy) -> None:
        records = [PolicyRecord(each, 1, etag_of(1, each.digest())) for each in policies]
        other = FixedStore.of(records, CATALOG).snapshot()
        self._snapshot = replace(other, change=self._snapshot.change + 1)


@pytest.mark.parametrize(("before", "after"), [(9, 0), (0, 9)], ids=["gone", "new"])
async def test_however_many_policies_come_and_go_decisions_get_their_turns(
    monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    monkeypatch.setattr("sidecar.routing.live._IN_A_TURN", 2)
    store = Replaced.of((), CATALOG)
    many = [policy(f"p{number}") for number in range(9)]
    store.replace(policy(), *many[:before])
    async for made in running(store):
        store.replace(policy(), *many[:after])
        # Of each turn: policies in force, and those that are on their way.
        turns: list[tuple[int, int]] = []
        while not turns or turns[-1][0] != 1 + after:
            await asyncio.sleep(0)
            taken = [each for each in asyncio.all_tasks() if each.get_name().startswith("names")]
            turns.append((len(made.registry.records()), len(taken)))

        for (held, taking), (held_next, taking_next) in pairwise(turns):
            assert held - held_next <= 2
            assert taking_next - taking <= 2


async def test_followed_snapshot_is_that_of_the_store(world: World) -> None:
    write(world.store, ChangeKind.CREATE, policy("a"))
    write(world.store, ChangeKind.DELETE, "other")
    write_catalog(world.store, FAST, LARGE, replace(FAST, id="new"))
    await world.until_seen()

    assert world.live.snapshot == world.store.snapshot()


async def test_files_with_errors_leave_the_last_good_ones(tmp_path: Path) -> None:
    async for made in running(parts.files(tmp_path, policy())):
        assert isinstance(made.store, FileStore)
        folder = tmp_path / "policies"
        (folder / "broken.yaml").write_text("kind: [")
        async with asyncio.timeout(60):
            while not made.live.problem:
                await asyncio.sleep(0.01)
        assert "broken.yaml" in made.live.problem
        assert made.in_force() == "first"

        (folder / "broken.yaml").unlink()
        parts.write_files(folder, policy(description="second"))
        async with asyncio.timeout(60):
            while made.in_force() != "second":
                await asyncio.sleep(0.01)
        assert not made.live.problem


async def test_files_with_errors_are_told_of_once_in_the_log(tmp_path: Path) -> None:
    async for made in running(parts.files(tmp_path, policy())):
        broken = tmp_path / "policies" / "broken.yaml"
        with capture_logs() as entries:
            broken.write_text("kind: [")
            await seen(entries, "policies cannot be used; those in force stay")
            assert made.in_force() == "first"
            broken.unlink()
            await seen(entries, "policies can be used again")

        told = [entry for entry in entries if "why" in entry]
        assert len(told) == 1
        assert "broken.yaml" in told[0]["why"]


async def seen(entries: list[MutableMapping[str, Any]], event: str) -> None:
    async with asyncio.timeout(60):
        while all(entry["event"] != event for entry in entries):
            await asyncio.sleep(0.01)


async def test_file_that_was_replaced_by_one_with_as_many_changes_is_followed(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "backup").mkdir()
    backup = parts.sqlite(tmp_path / "backup", policy(description="restored"), policy("other"))
    backup.close()
    for end in ("-wal", "-shm"):
        (tmp_path / f"policies.db{end}").unlink()
    (tmp_path / "backup" / "policies.db").replace(tmp_path / "policies.db")

    await until(lambda: world.in_force() == "restored")


async def test_what_changed_together_with_the_catalog_is_not_refused_on_the_way(
    tmp_path: Path,
) -> None:
    """A model goes, and the policies that named it were deleted or changed before."""
    store = parts.sqlite(tmp_path, policy(), policy("other"))
    following = running(store)
    world = await anext(following)
    seen = store.last_change
    # All three come with one look.
    store.last_change = lambda: 3  # type: ignore[method-assign]
    write(store, ChangeKind.DELETE, "other")
    models = ModelList((WeightedModel(FAST.id),))
    write(store, ChangeKind.UPDATE, Policy("support", (), models, description="fast"))
    write_catalog(store, FAST)

    with capture_logs() as logged:
        store.last_change = seen  # type: ignore[method-assign]
        await until(lambda: world.in_force() == "fast")
        await world.until_seen()
    await following.aclose()

    assert [each["event"] for each in logged] == ["policy removed", "policy in force"]
    assert not world.live.refusals
