"""The walk: each way it can end, with its label. The model is a stub, for its faults."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import Needs, PolicyName, Reason, RoutingRequest, Source
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import (
    InferenceError,
    InferenceFailure,
    ModelOutput,
)
from sidecar.core.policy import ApiDialect, Capability, Model, PolicyRecord
from sidecar.inference.breaker import BreakerState
from sidecar.routing import DecisionCache, Pins
from tests.doubles import StubPrompt, talk
from tests.routing.worlds import CATALOG, HELLO, POLICY, World, a_world, models, request
from tests.virtual_time import keep_virtual_time
from tests.waiting import until


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Without a cache, so that every decision asks the model."""
    async with a_world(DecisionCache(0, 60)) as made:
        yield made


@pytest.fixture
async def hurried(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """As `world`, with a budget that is soon over, in virtual time."""
    keep_virtual_time(monkeypatch)
    async with a_world(DecisionCache(0, 60), budget_s=0.1) as made:
        yield made


async def test_policy_that_is_not_compiled_yet_is_compiled_by_its_first_request(
    world: World,
) -> None:
    late = replace(POLICY, name="late")
    record = PolicyRecord(late, 1, "e")
    world.registry.put([(record, world.registry.accept_record(record, CATALOG))])

    decision = await world.router.decide(request(policy=PolicyName("late")))

    # Its prefix is cold, as that of any policy that was not asked for before.
    assert (decision.reason, decision.policy.name) == (Reason.WARMING, late.resource_name)
    assert "compile" in [step.step for step in decision.steps]
    async with asyncio.timeout(60):
        while (
            await world.router.decide(request(policy=PolicyName("late")))
        ).reason is decision.reason:
            await asyncio.sleep(0.01)
    assert world.sink.decisions[-1].source is Source.MODEL


IMAGES = Needs(frozenset({Capability.IMAGES}))
TOOLS = Needs(frozenset({Capability.TOOLS}))

ENDS: dict[str, tuple[RoutingRequest, tuple[float, ...], tuple[str, str, str, str]]] = {
    # request, logits of code/travel/other -> source, reason, route, model
    "routed": (HELLO, (8, 1, 1), ("model", "matched", "code", "claude")),
    "named policy": (
        request(policy=PolicyName("main", "default")),
        (1, 8, 1),
        ("model", "matched", "travel", "gpt"),
    ),
    "inline policy": (
        request(policy=replace(POLICY, name="inline")),
        (1, 8, 1),
        ("model", "matched", "travel", "gpt"),
    ),
    "concrete model": (
        request(model="gpt"),
        (8, 1, 1),
        ("override", "model_requested", "", "gpt"),
    ),
    "no match": (HELLO, (1, 1, 8), ("fallback", "no_match", "", "mini")),
    "below the caller's minimum": (
        request(min_confidence=0.9),
        (8, 1, 1),
        ("fallback", "low_confidence", "", "mini"),
    ),
    "policy without routes": (
        request(policy=PolicyName("empty")),
        (8, 1, 1),
        ("fallback", "nothing_to_route", "", "mini"),
    ),
    "conversation without text": (
        request(conversation=Conversation((Message(Role.USER, "", images=1),))),
        (8, 1, 1),
        ("fallback", "nothing_to_route", "", "mini"),
    ),
    "capable model of the route": (
        request(needs=IMAGES),
        (8, 1, 1),
        ("model", "matched", "code", "claude"),
    ),
    "capable model of the default alone": (
        request(needs=IMAGES, policy=replace(POLICY, default=models("claude"))),
        (1, 8, 1),
        ("fallback", "no_capable_model", "", "claude"),
    ),
    "no capable model anywhere": (
        request(needs=TOOLS),
        (8, 1, 1),
        ("fallback", "no_capable_model", "", "mini"),
    ),
    "no time left": (
        request(budget_s=0.005),
        (8, 1, 1),
        ("fallback", "deadline_exceeded", "", "mini"),
    ),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
async def test_end_of_the_walk(
    world: World, end: tuple[RoutingRequest, tuple[float, ...], tuple[str, str, str, str]]
) -> None:
    given, logits, expected = end
    world.model.logits = logits

    decision = await world.router.decide(given)

    assert (
        decision.source.value,
        decision.reason.value,
        decision.route,
        decision.model.id,
    ) == expected
    assert world.sink.decisions == [decision]


async def test_decision_carries_its_whole_provenance(world: World) -> None:
    decision = await world.router.decide(HELLO)

    assert decision.policy.name == "namespaces/default/policies/main"
    assert (decision.policy.revision, decision.policy.digest) == (3, POLICY.digest())
    assert (decision.routing_model, decision.prompt_format) == ("stub@1", "stub-v1")
    assert [model.id for model in decision.fallbacks] == ["gpt"]
    assert [step.step for step in decision.steps] == [
        "prompt",
        "cache",
        "model",
        "answer",
        "selection",
        "total",
    ]
    assert decision.explanation is None


async def test_explanation_on_request(world: World) -> None:
    world.model.logits = (8, 1, 1)
    decision = await world.router.decide(request(explain=True, needs=IMAGES))

    assert decision.explanation is not None
    assert decision.explanation.prompt == "4 tokens"
    assert decision.explanation.answer == "code"
    assert [excluded.model for excluded in decision.explanation.excluded] == ["gpt"]


async def test_explanation_names_what_the_route_and_the_default_lack(world: World) -> None:
    policy = replace(POLICY, default=models("mini", "claude"))
    world.model.logits = (1, 8, 1)
    decision = await world.router.decide(request(explain=True, needs=IMAGES, policy=policy))

    assert decision.model.id == "claude"
    assert decision.explanation is not None
    assert [excluded.model for excluded in decision.explanation.excluded] == ["gpt", "mini"]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (request(policy=PolicyName("nowhere")), ErrorCode.POLICY_NOT_FOUND),
        (request(model="gpt-17"), ErrorCode.MODEL_NOT_FOUND),
    ],
)
async def test_wrong_input_is_an_error(
    world: World, given: RoutingRequest, code: ErrorCode
) -> None:
    with pytest.raises(SidecarError) as caught:
        await world.router.decide(given)

    assert caught.value.code is code


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (InferenceFailure.UNAVAILABLE, "model_unavailable"),
        (InferenceFailure.OVERLOADED, "overloaded"),
        (InferenceFailure.ERROR, "model_error"),
        (InferenceFailure.DEADLINE, "deadline_exceeded"),
    ],
)
async def test_failure_of_the_model_is_a_labelled_fallback(
    world: World, failure: InferenceFailure, reason: str
) -> None:
    world.model.break_with(failure)

    decision = await world.router.decide(HELLO)

    assert (decision.source.value, decision.reason.value) == ("fallback", reason)
    assert decision.model.id == "mini"


async def test_frozen_model_is_given_up_at_the_deadline_and_cancelled(hurried: World) -> None:
    hurried.model.frozen = True

    decision = await hurried.router.decide(HELLO)

    assert decision.reason.value == "deadline_exceeded"
    await asyncio.sleep(0)
    assert hurried.model.cancelled >= 1


async def test_a_caller_cannot_make_the_budget_longer(hurried: World) -> None:
    hurried.model.frozen = True

    decision = await hurried.router.decide(request(budget_s=600))

    assert decision.reason.value == "deadline_exceeded"
    await asyncio.sleep(0)
    # Given up on: left alone, the call itself would have failed, somewhat later.
    assert hurried.model.cancelled == 1


async def test_during_an_outage_the_model_is_not_asked(world: World) -> None:
    world.model.break_with(InferenceFailure.UNAVAILABLE)
    await world.router.decide(HELLO)
    asked = world.model.calls

    decision = await world.router.decide(HELLO)

    assert decision.reason.value == "breaker_open"
    assert world.model.calls == asked


async def test_prefixes_are_warmed_again_before_the_model_is_asked_again(world: World) -> None:
    world.model.break_with(InferenceFailure.UNAVAILABLE)
    await world.router.decide(HELLO)
    world.model.warmed.clear()
    world.model.fault = None
    await world.until_answering()

    assert world.model.warmed[0] == (1, 2, 3)
    assert (await world.router.decide(HELLO)).source.value == "model"


async def test_callers_in_a_hurry_do_not_take_the_model_away_from_others(world: World) -> None:
    world.model.slow = True
    for _ in range(5):
        await world.router.decide(request(budget_s=0.012))
    world.model.slow = False

    assert (await world.router.decide(HELLO)).source.value == "model"


async def test_a_server_that_answers_others_meanwhile_is_busy_not_broken(hurried: World) -> None:
    hurried.model.slow = True
    late = asyncio.create_task(hurried.router.decide(HELLO))
    await asyncio.sleep(0.01)
    hurried.model.slow = False
    await hurried.router.decide(request(conversation=talk("another question")))
    for _ in range(2):
        hurried.breaker.failed(InferenceFailure.DEADLINE, "late")

    assert (await late).reason.value == "deadline_exceeded"
    assert hurried.breaker.state is BreakerState.CLOSED


async def test_a_policy_that_is_late_while_others_are_answered_is_warmed_again(
    hurried: World,
) -> None:
    record = PolicyRecord(replace(POLICY, name="other"), 1, "e")
    hurried.registry.put([(record, hurried.registry.compile_record(record, CATALOG))])
    other = request(policy=PolicyName("other"))
    await hurried.router.decide(other)
    for number in range(3):
        hurried.model.slow = True
        late = asyncio.create_task(hurried.router.decide(request(conversation=talk(f"{number}"))))
        await asyncio.sleep(0.01)
        hurried.model.slow = False
        await hurried.router.decide(replace(other, conversation=talk(f"other {number}")))
        hurried.model.warmed.clear()
        assert (await late).reason is Reason.DEADLINE_EXCEEDED
    await until(lambda: hurried.warmth.is_warm(hurried.registry.get(PolicyName())))

    assert hurried.breaker.state is BreakerState.CLOSED
    assert hurried.model.warmed == [(1, 2, 3)]


async def test_the_time_that_reading_took_is_part_of_the_budget(world: World) -> None:
    asked, long_ago = world.model.calls, time.perf_counter() - 60

    late = await world.router.decide(request(arrived=long_ago))
    named = await world.router.decide(request(arrived=long_ago, model="gpt"))

    assert late.reason is Reason.DEADLINE_EXCEEDED
    assert late.steps[-1].ms > 60_000
    assert named.reason is Reason.MODEL_REQUESTED
    assert world.model.calls == asked


async def test_a_large_conversation_is_read_within_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decided = threading.Event()

    def subject_of(*_: object) -> None:
        decided.wait(30)

    monkeypatch.setattr("sidecar.routing.router.subject", subject_of)
    async with a_world(DecisionCache(0, 60), Pins(10, 100), budget_s=0.1) as world:
        large = request(conversation=talk("x" * 300_000), keep_task=True, conversation_key="key")
        try:
            decision = await world.router.decide(large)
        finally:
            decided.set()

    assert decision.reason is Reason.DEADLINE_EXCEEDED
    assert "not read in time" in decision.detail


async def test_what_is_late_because_of_reading_does_not_count_against_the_model(
    hurried: World,
) -> None:
    hurried.model.slow = True
    for _ in range(10):
        await hurried.router.decide(request(arrived=time.perf_counter() - 0.06))

    assert hurried.router.degraded == ""


async def test_callers_in_a_hurry_do_not_open_the_breaker(world: World) -> None:
    world.model.slow = True
    for _ in range(5):
        await world.router.decide(request(budget_s=0.012))

    assert world.router.degraded == ""


async def test_late_answers_count_against_the_model(hurried: World) -> None:
    hurried.model.slow = True
    for _ in range(2):
        hurried.breaker.failed(InferenceFailure.DEADLINE, "late")

    await hurried.router.decide(HELLO)

    assert hurried.breaker.state is BreakerState.OPEN


async def test_a_deadline_a_little_below_the_budget_says_as_much(hurried: World) -> None:
    hurried.model.slow = True
    for _ in range(2):
        hurried.breaker.failed(InferenceFailure.DEADLINE, "late")

    await hurried.router.decide(request(budget_s=0.095))

    assert hurried.breaker.state is BreakerState.OPEN


@pytest.mark.parametrize("texts", [["same"] * 4, [f"q{n}" for n in range(4)]], ids=["one", "each"])
async def test_what_began_together_and_is_late_together_counts_once(
    hurried: World, texts: list[str]
) -> None:
    hurried.model.slow = True
    hurried.breaker.failed(InferenceFailure.DEADLINE, "late")

    together = [request(conversation=talk(text)) for text in texts]
    decisions = await asyncio.gather(*(hurried.router.decide(each) for each in together))

    assert {each.reason for each in decisions} == {Reason.DEADLINE_EXCEEDED}
    assert hurried.breaker.state is BreakerState.CLOSED
    assert hurried.warmth.is_warm(hurried.registry.get(PolicyName()))


async def test_more_decisions_than_may_wait_are_shed(hurried: World) -> None:
    hurried.model.frozen = True
    texts = [request(conversation=talk(f"question {n}")) for n in range(6)]

    decisions = await asyncio.gather(*(hurried.router.decide(given) for given in texts))

    reasons = [decision.reason.value for decision in decisions]
    assert reasons.count("overloaded") == 2
    assert hurried.router.waiting == 0


async def test_equal_requests_at_once_ask_the_model_once(world: World) -> None:
    before = world.model.calls
    decisions = await asyncio.gather(*(world.router.decide(HELLO) for _ in range(4)))

    assert world.model.calls == before + 1
    assert len({decision.id for decision in decisions}) == 4


async def test_what_cannot_be_answered_in_time_is_refused_at_once(hurried: World) -> None:
    with hurried.target.load.working(1000):
        await asyncio.sleep(0.05)
    hurried.model.frozen = True
    first = asyncio.create_task(hurried.router.decide(HELLO))
    await asyncio.sleep(0.005)
    # A call before this one that takes far longer than the budget, by what was measured.
    with hurried.target.load.working(100_000):
        refused = await hurried.router.decide(request(conversation=talk("another question")))

    assert (refused.source.value, refused.reason.value) == ("fallback", "overloaded")
    assert "2 calls are before this one" in refused.detail
    assert (await first).reason.value == "deadline_exceeded"


async def test_an_idle_server_is_asked_whatever_was_measured(world: World) -> None:
    with world.target.load.working(1):
        await asyncio.sleep(0.02)

    assert (await world.router.decide(HELLO)).source.value == "model"


async def test_a_question_in_flight_is_joined_even_where_a_new_one_would_be_refused(
    world: World,
) -> None:
    with world.target.load.working(1000):
        await asyncio.sleep(0.05)
    asked = world.model.calls
    first = asyncio.create_task(world.router.decide(HELLO))
    await asyncio.sleep(0)
    with world.target.load.working(100_000):
        joined = asyncio.create_task(world.router.decide(HELLO))
        decisions = await asyncio.gather(first, joined)

    assert [each.source.value for each in decisions] == ["model", "model"]
    assert world.model.calls == asked + 1


async def test_a_cancelled_decision_is_recorded_and_cancels_the_model(world: World) -> None:
    world.model.frozen = True
    task = asyncio.create_task(world.router.decide(HELLO))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)

    assert [d.reason.value for d in world.sink.decisions] == ["cancelled"]
    assert world.model.cancelled >= 1


async def test_a_defect_is_a_labelled_fallback(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: StubPrompt, conversation: Conversation) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(StubPrompt, "render", broken)

    decision = await world.router.decide(HELLO)

    assert decision.reason.value == "internal_error"
    assert decision.model.id == "mini"


async def test_watch_notices_an_outage_while_nobody_asks(world: World) -> None:
    world.model.break_with(InferenceFailure.UNAVAILABLE)
    await until(lambda: world.router.degraded != "")

    assert world.router.degraded == "stub: UNAVAILABLE"


async def test_failed_recovery_keeps_the_model_out(world: World) -> None:
    tries = 0

    async def failing(prompt: object, answer_form: object, timeout_s: float) -> ModelOutput:
        nonlocal tries
        tries += 1
        raise InferenceError(InferenceFailure.ERROR, "no memory")

    world.model.break_with(InferenceFailure.UNAVAILABLE)
    await world.router.decide(HELLO)
    world.model.infer = failing  # type: ignore[method-assign]
    world.model.fault = None
    await until(lambda: tries >= 3)

    assert world.router.degraded


@pytest.mark.parametrize(
    ("dialect", "model"),
    [(None, "mini"), (ApiDialect.OPENAI_CHAT, "mini"), (ApiDialect.ANTHROPIC_MESSAGES, "claude")],
)
async def test_the_last_resort_speaks_the_callers_api(
    world: World, dialect: ApiDialect | None, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has tools here; of the default's models the first that can be talked to is taken."""
    openai = frozenset({ApiDialect.OPENAI_CHAT})
    monkeypatch.setitem(CATALOG, "mini", Model("mini", "mini-1", dialects=openai))
    policy = replace(POLICY, default=models("mini", "claude"))

    decision = await world.router.decide(request(policy=policy, needs=TOOLS, dialect=dialect))

    assert (decision.reason.value, decision.model.id) == ("no_capable_model", model)
