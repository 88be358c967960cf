"""Which of several model servers is asked, and what happens when one fails. Servers are stubs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import pytest

from sidecar.core.decision import PolicyName, PolicyRef, Reason, RoutingRequest
from sidecar.core.model import Enough, InferenceError, InferenceFailure, encoder_alone
from sidecar.core.policy import Model, ModelList, Policy, PolicyRecord, Route, WeightedModel
from sidecar.inference.breaker import BreakerState, CircuitBreaker
from sidecar.inference.guarded import GuardedModel, WatchTimes
from sidecar.inference.load import Load
from sidecar.routing import (
    CompiledPolicy,
    PolicyRegistry,
    Router,
    RouterLimits,
    RoutingModelRef,
    Target,
    Targets,
    Warmth,
)
from sidecar.routing.targets import Refusal, _rendezvous
from tests.doubles import ListSink, StubModel, StubPrompt, talk
from tests.virtual_time import keep_virtual_time
from tests.waiting import until

MODELS = ModelList((WeightedModel("m"),))
CATALOG = {"m": Model("m", "m")}
POLICY = Policy("main", (Route("code", "writing code", MODELS),), MODELS)
HELLO = RoutingRequest(talk("please review my code"))


@dataclass
class World:
    models: Sequence[StubModel]
    targets: Targets
    router: Router
    registry: PolicyRegistry

    @property
    def main(self) -> object:
        return self.registry.get(PolicyName())

    def place(self, within_s: float = 1.0, digest: str = "") -> str:
        compiled = self.registry.get(PolicyName())
        if digest:
            compiled = replace(compiled, ref=PolicyRef("", 0, digest))
        found = self.targets.place(compiled, 10, within_s)
        return found.reason.value if isinstance(found, Refusal) else found.name

    async def until(self, *states: BreakerState) -> None:
        await until(lambda: tuple(each.model.state for each in self.targets) == states)


@asynccontextmanager
async def two_servers(
    *,
    affinity: bool = False,
    budget_s: float = 10,
    prompt: Callable[[Policy], StubPrompt] = StubPrompt,
    names: str = "ab",
) -> AsyncIterator[World]:
    models = [StubModel((3.0, 0.0)) for _ in names]
    registry = PolicyRegistry(
        [PolicyRecord(POLICY, 1, "e")],
        CATALOG,
        prompt,
        default_policy=PolicyName("main"),
        max_prompt_tokens=100,
    )
    made = [target(name, model, registry) for name, model in zip(names, models, strict=True)]
    targets = Targets(made, affinity)
    limits = RouterLimits(budget_s, reserve_s=0.01, max_waiting=64)
    ref = RoutingModelRef("stub@1", "stub-v1")
    router = Router(registry, targets, ListSink(), limits, ref, lambda ids: "")
    for each in made:
        each.model.start()
    world = World(models, targets, router, registry)
    await world.until(*(BreakerState.CLOSED for _ in names))
    yield world
    await targets.close()


def target(name: str, model: StubModel, registry: PolicyRegistry) -> Target:
    load = Load()
    warmth = Warmth(registry.named, timeout_s=1, busy=lambda: False, load=load)
    times = WatchTimes(closed_s=0.005, open_s=0.005, check_s=0.02)
    guard = GuardedModel(model, CircuitBreaker(failures=3), times, warmth.recover)
    return Target(name, guard, warmth, load)


async def test_the_less_loaded_server_is_asked() -> None:
    async with two_servers() as world:
        first, _ = world.targets
        idle = world.place()
        with first.load.working(100):
            while_first_works = world.place()

        assert (idle, while_first_works) == ("a", "b")


async def test_the_faster_server_is_asked_though_it_has_more_to_do() -> None:
    async with two_servers() as world:
        slow, fast = world.targets
        with slow.load.working(10):
            await asyncio.sleep(0.05)
        with fast.load.working(1000):
            await asyncio.sleep(0.01)
        with slow.load.working(10), fast.load.working(10), fast.load.working(10):
            assert world.place() == "b"


@pytest.mark.parametrize("by_encoder", [True, False])
async def test_what_the_encoder_decides_does_not_count_as_work_of_the_language_model(
    by_encoder: bool,
) -> None:
    async with two_servers() as world:
        first, _ = world.targets
        prompt = StubPrompt(POLICY, enough=Enough(1.0, 0.0, 0.9))
        rendered = prompt.render(HELLO.conversation)
        alone = encoder_alone(rendered)
        assert alone is not None
        first.load.forget()
        await first.infer(alone if by_encoder else rendered, prompt.answer_form, 10, 1)

        assert (first.load.wait_s(10) is None) is by_encoder


@pytest.mark.parametrize("digest", ["", "cold"])
async def test_the_encoder_is_asked_where_it_has_time(digest: str) -> None:
    async with two_servers() as world:
        compiled = world.registry.get(PolicyName())
        if digest:
            compiled = replace(compiled, ref=PolicyRef("", 0, digest))
        first, second = world.targets
        asked = []
        with ExitStack() as calls:
            for each, tokens in ((first, 10_000), (second, 1_000_000)):
                with each.load.working(10), each.encoder_load.working(1):
                    await asyncio.sleep(0.02)
                calls.enter_context(each.load.working(tokens))
            for busy in (None, first, second):
                if busy is not None:
                    calls.enter_context(busy.encoder_load.working(1_000))
                refusal = world.targets.place(compiled, 10, 1)
                assert isinstance(refusal, Refusal)
                asked.append(refusal.encoder)

        assert asked == [first, second, None]


async def test_no_server_that_can_make_it_is_overload() -> None:
    async with two_servers() as world:
        for each in world.targets:
            with each.load.working(10):
                await asyncio.sleep(0.02)
        first, second = world.targets
        with first.load.working(100), second.load.working(100):
            assert world.place(within_s=0.05) == "overloaded"
            assert world.place(within_s=60) in ("a", "b")


async def test_callers_do_not_notice_that_one_of_two_servers_is_lost() -> None:
    async with two_servers() as world:
        world.models[0].break_with(InferenceFailure.UNAVAILABLE)
        requests = (replace(HELLO, conversation=talk(f"question {n}")) for n in range(20))
        decisions = await asyncio.gather(*(world.router.decide(each) for each in requests))

        assert {each.source.value for each in decisions} == {"model"}
        assert world.router.degraded == ""
        await world.until(BreakerState.OPEN, BreakerState.CLOSED)
        assert world.place() == "b"


@pytest.mark.parametrize(
    ("failure", "ended"),
    [
        (InferenceFailure.UNAVAILABLE, ("model", "matched")),
        (InferenceFailure.ERROR, ("model", "matched")),
        # The time is used up, or there is too much work for all.
        (InferenceFailure.DEADLINE, ("fallback", "deadline_exceeded")),
        (InferenceFailure.OVERLOADED, ("fallback", "overloaded")),
    ],
)
async def test_another_server_is_asked_where_that_can_help(
    failure: InferenceFailure, ended: tuple[str, str]
) -> None:
    async with two_servers() as world:
        asked = world.models[1].calls
        world.models[0].break_with(failure)
        decision = await world.router.decide(HELLO)

        assert (decision.source.value, decision.reason.value) == ended
        assert world.models[1].calls == asked + (ended[0] == "model")


async def test_the_server_that_answered_holds_the_prefix_and_not_the_one_that_failed() -> None:
    async with two_servers() as world:
        inline = replace(POLICY, name="inline")
        world.models[0].break_with(InferenceFailure.ERROR)
        await world.router.decide(replace(HELLO, policy=inline))

        holds = [each.warmth.holds(inline.digest()) for each in world.targets]
        assert holds == [False, True]


async def test_a_policy_that_the_server_refuses_is_answered_so_and_harms_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_virtual_time(monkeypatch)  # it is tried again after a second
    async with two_servers() as world:
        for model in world.models:
            monkeypatch.setattr(model, "warm", _refusing)
        record = PolicyRecord(replace(POLICY, name="refused"), 1, "e")
        world.registry.put([(record, world.registry.accept_record(record, CATALOG))])
        asked = RoutingRequest(HELLO.conversation, policy=PolicyName("refused"))
        reasons = []
        for _ in range(10):
            reasons.append((await world.router.decide(asked)).reason)
            await asyncio.sleep(0.01)
        other = await world.router.decide(HELLO)

        assert reasons[-1] is Reason.MODEL_ERROR
        assert other.reason is Reason.MATCHED
        assert world.router.degraded == ""


@pytest.mark.parametrize("failure", [InferenceFailure.ERROR, InferenceFailure.UNAVAILABLE])
async def test_a_long_inline_policy_is_decided_by_a_server_that_can(
    failure: InferenceFailure,
) -> None:
    async with two_servers(prompt=partial(StubPrompt, prefix_ids=tuple(range(600)))) as world:
        world.models[0].break_with(failure)
        inline = RoutingRequest(HELLO.conversation, policy=replace(POLICY, name="inline"))

        decision = await world.router.decide(inline)

        assert decision.reason is Reason.MATCHED


async def _refusing(ids: object, timeout_s: float, routes: object = ()) -> None:
    raise InferenceError(InferenceFailure.ERROR, "the prompt is too long")


async def test_a_late_answer_is_held_against_the_server_that_was_asked_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_virtual_time(monkeypatch)
    async with two_servers(budget_s=0.2) as world:
        late = []
        for each in world.targets:
            monkeypatch.setattr(each.warmth, "late", lambda *_, name=each.name: late.append(name))
        world.models[0].break_with(InferenceFailure.UNAVAILABLE)
        world.models[1].slow = True
        decision = await world.router.decide(HELLO)

        assert (decision.reason.value, late) == ("deadline_exceeded", ["b"])


async def test_a_server_that_is_back_is_warmed_before_it_is_asked() -> None:
    async with two_servers() as world:
        back = world.models[0]
        back.break_with(InferenceFailure.UNAVAILABLE)
        await world.until(BreakerState.OPEN, BreakerState.CLOSED)
        back.warmed.clear()
        back.fault = None
        await world.until(BreakerState.CLOSED, BreakerState.CLOSED)

        assert back.warmed == [(1, 2, 3)]
        assert world.place() == "a"


async def test_all_servers_lost_is_one_outage_that_names_them() -> None:
    async with two_servers() as world:
        for model in world.models:
            model.break_with(InferenceFailure.UNAVAILABLE)
        await world.until(BreakerState.OPEN, BreakerState.OPEN)

        assert world.place() == "breaker_open"
        assert world.router.degraded == "a: stub: UNAVAILABLE; b: stub: UNAVAILABLE"


async def test_a_policy_that_one_server_holds_is_warmed_at_the_other_meanwhile() -> None:
    async with two_servers() as world:
        first, second = world.targets
        compiled = world.registry.get(PolicyName())
        for began in range(3):
            first.warmth.late(compiled, began, apart_s=1)
        world.models[0].warmed.clear()
        placed = world.place()
        await until(lambda: bool(world.models[0].warmed))

        assert placed == second.name
        assert world.models[0].warmed == [(1, 2, 3)]


def cold(world: World, name: str = "cold") -> CompiledPolicy:
    """A policy that no server holds; without a name an inline one."""
    ref = PolicyRef(name, 1 if name else 0, "sha256:cold")
    return replace(world.registry.get(PolicyName()), ref=ref)


async def test_an_inline_policy_is_decided_where_it_is_warm() -> None:
    async with two_servers() as world:
        _, second = world.targets
        inline = cold(world, "")
        second.warmth.in_time(inline)

        assert world.targets.place(inline, 10, 1) is second


@pytest.mark.parametrize(("computed", "reason"), [(True, "warming"), (False, "overloaded")])
async def test_an_inline_policy_whose_prefix_is_computed_is_warming_and_no_overload(
    computed: bool, reason: str
) -> None:
    async with two_servers(names="a") as world:
        (only,) = world.targets
        with only.load.working(10):
            await asyncio.sleep(0.02)
        if computed:
            only.warmth.request(cold(world, ""), only.model)
        with only.load.working(100):
            assert world.place(within_s=0.05, digest="sha256:cold") == reason


async def test_with_affinity_a_policy_is_warmed_at_its_own_server_alone() -> None:
    async with two_servers(affinity=True) as world:
        refusal = world.targets.place(cold(world), 10, 1)

        assert isinstance(refusal, Refusal)
        assert refusal.reason is Reason.WARMING
        assert sorted(each.warmth.under_way for each in world.targets) == [0, 1]


async def test_a_policy_that_one_server_refuses_and_the_other_computes_is_warming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two_servers() as world:
        first, _ = world.targets
        monkeypatch.setattr(first.warmth, "refused", lambda compiled: "too long")
        refusal = world.targets.place(cold(world), 10, 1)

        assert isinstance(refusal, Refusal)
        assert refusal.reason is Reason.WARMING


async def test_servers_that_are_back_and_are_being_warmed_are_no_outage() -> None:
    async with two_servers() as world:
        for each in world.targets:
            each.model._breaker.recovering()

        assert world.place() == "warming"


async def test_who_takes_over_holds_the_policy_or_was_sent_it() -> None:
    async with two_servers() as world:
        first, second = world.targets
        named, inline = cold(world), cold(world, "")
        before = [world.targets.other(first, each) for each in (named, inline)]
        second.warmth.in_time(named)

        assert before == [None, second]
        assert world.targets.other(first, named) is second


async def test_the_less_busy_server_takes_over() -> None:
    async with two_servers(names="abc") as world:
        first, second, third = world.targets
        main = world.registry.get(PolicyName())
        with second.load.working(1):
            assert world.targets.other(first, main) is third


async def test_affinity_keeps_each_policy_at_one_server_and_uses_both() -> None:
    async with two_servers(affinity=True) as world:
        digests = [f"sha256:{n}" for n in range(40)]
        placed = [world.place(digest=digest) for digest in digests]
        first, second = world.targets
        with first.load.working(1), second.load.working(2):
            again = [world.place(digest=digest) for digest in digests]

        assert placed == again
        assert 10 < placed.count("a") < 30


async def test_affinity_gives_way_where_the_server_could_not_answer_in_time() -> None:
    async with two_servers(affinity=True) as world:
        at_first = next(d for d in map(str, range(99)) if world.place(digest=d) == "a")
        first, _ = world.targets
        with first.load.working(10):
            await asyncio.sleep(0.02)
        with first.load.working(1000):
            assert world.place(within_s=0.05, digest=at_first) == "b"


async def test_affinity_turns_to_another_server_where_one_refuses_the_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two_servers(affinity=True) as world:
        asked = added(world, "refused", at="a")
        monkeypatch.setattr(world.models[0], "warm", _refusing)

        await until_placed(world, asked, "b")


async def test_with_affinity_a_policy_that_is_too_much_for_one_server_is_held_by_another_too() -> (
    None
):
    async with two_servers(affinity=True) as world:
        asked = added(world, "popular", at="a")
        await until_placed(world, asked, "a")
        first, second = world.targets
        for each in world.targets:
            with each.load.working(10):
                await asyncio.sleep(0.02)
        with first.load.working(1000):
            with second.load.working(1000):
                none_has_time = world.targets.place(asked, 10, 0.05)
                await asyncio.sleep(0.02)
                assert not second.warmth.holds(asked.ref.digest)
            await until_placed(world, asked, "b", within_s=0.05)

        assert isinstance(none_has_time, Refusal)
        assert none_has_time.reason is Reason.OVERLOADED


async def test_with_affinity_the_next_revision_of_a_policy_stays_where_it_is() -> None:
    async with two_servers(affinity=True) as world:
        for at, other in ("ab", "ba"):
            asked = added(world, "changing", at)
            revised = replace(asked, ref=replace(asked.ref, revision=2, digest=f"sha256:{other}"))
            assert _rendezvous(revised.ref.digest, other) < _rendezvous(revised.ref.digest, at)
            await until_placed(world, revised, at)

            holding = [each.name for each in world.targets if each.warmth.holds(revised.ref.digest)]
            assert holding == [at]


def added(world: World, name: str, at: str) -> CompiledPolicy:
    """A new policy that no server holds, of which affinity takes the server `at` first."""
    for number in range(99):
        record = PolicyRecord(replace(POLICY, name=f"{name}{number}"), 1, "e")
        compiled = world.registry.compile_record(record, CATALOG)
        ranks = {each: _rendezvous(compiled.ref.name, each) for each in "ab"}
        if min(ranks, key=ranks.__getitem__) == at:
            return compiled
    raise AssertionError("no such policy")


async def until_placed(
    world: World, compiled: CompiledPolicy, at: str, within_s: float = 1.0
) -> None:
    def placed() -> bool:
        found = world.targets.place(compiled, 10, within_s)
        return isinstance(found, Target) and found.name == at

    await until(placed)
