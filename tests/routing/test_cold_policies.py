"""Policies whose prefix the model server does not hold. The model is a stub."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from sidecar.core.decision import PolicyName, Reason, Source
from sidecar.core.model import (
    AnswerForm,
    CompiledPrompt,
    Enough,
    InferenceError,
    InferenceFailure,
    LabelLogits,
    ModelOutput,
    Prompt,
)
from sidecar.core.policy import Policy
from sidecar.inference.breaker import BreakerState
from sidecar.routing import DecisionCache
from tests.doubles import talk
from tests.routing.worlds import HELLO, POLICY, World, a_world, request
from tests.virtual_time import keep_virtual_time
from tests.waiting import until


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Without a cache, so that every decision asks the model."""
    async with a_world(DecisionCache(0, 60)) as made:
        yield made


async def test_a_policy_that_is_not_warm_answers_warming_until_it_is(world: World) -> None:
    forget_prefix(world)
    first = await world.router.decide(HELLO)
    async with asyncio.timeout(60):
        while (await world.router.decide(HELLO)).source.value != "model":
            await asyncio.sleep(0.001)

    assert (first.source.value, first.reason.value) == ("fallback", "warming")


async def test_an_inline_policy_that_takes_longer_to_compile_than_the_budget_is_answered(
    world: World,
) -> None:
    gate, policy = threading.Event(), replace(POLICY, name="inline")
    compiled = world.registry._compile_prompt

    def slow(policy: Policy) -> CompiledPrompt:
        assert gate.wait(60)
        return compiled(policy)

    world.registry._compile_prompt = slow
    late = await world.router.decide(request(policy=policy, budget_s=0.05))
    gate.set()
    after = await world.router.decide(request(policy=policy))

    assert (late.source, late.reason, late.model.id) == (Source.FALLBACK, Reason.WARMING, "mini")
    assert late.policy.digest == policy.digest()
    assert (after.source, after.route) == (Source.MODEL, "code")


def forget_prefix(world: World) -> None:
    for began in range(3):
        world.warmth.late(world.registry.get(PolicyName("main")), began, apart_s=1)


@pytest.fixture
async def with_encoder() -> AsyncIterator[World]:
    """With a cache, and an encoder that decides alone from nine tenths on."""
    cache = DecisionCache(100_000, 60)
    async with a_world(cache, enough=Enough(1.0, 0.0, 0.9)) as made:
        yield made


async def test_a_sure_encoder_decides_while_the_prefix_is_cold(with_encoder: World) -> None:
    with_encoder.model.opinion = (1.0, 19.0, 0.0)
    forget_prefix(with_encoder)
    decision = await with_encoder.router.decide(HELLO)
    again = await with_encoder.router.decide(HELLO)

    assert (decision.source, decision.route) == (Source.MODEL, "travel")
    assert decision.confidence == 0.95
    assert [step.step for step in decision.steps if step.step in ("model", "encoder")] == [
        "encoder"
    ]
    assert (again.source, again.route) == (Source.CACHE, "travel")


async def test_what_an_encoder_apart_decides_for_a_cold_policy_is_not_kept(
    with_encoder: World,
) -> None:
    """Beside an engine for GPUs it never decides alone once the language model can be asked."""
    with_encoder.model.encoder_apart = True
    with_encoder.model.opinion = (1.0, 19.0, 0.0)
    forget_prefix(with_encoder)
    cold = await with_encoder.router.decide(HELLO)
    await until(lambda: with_encoder.warmth.holds(POLICY.digest()))
    warm = await with_encoder.router.decide(HELLO)

    assert (cold.source, cold.route) == (Source.MODEL, "travel")
    assert (warm.source, warm.route) == (Source.MODEL, "code")


async def test_an_encoder_that_decides_says_nothing_of_the_prefix(with_encoder: World) -> None:
    with_encoder.model.opinion = (19.0, 1.0, 0.0)
    forget_prefix(with_encoder)
    with_encoder.warmth.request = lambda compiled, model: None  # type: ignore[method-assign]
    await with_encoder.router.decide(HELLO)

    assert not with_encoder.warmth.is_warm(with_encoder.registry.get(PolicyName("main")))


@pytest.mark.parametrize("opinion", [(16.0, 4.0, 0.0), (8.0, 2.0, 10.0)])
async def test_an_encoder_that_is_not_sure_leaves_a_cold_policy_warming(
    with_encoder: World, opinion: tuple[float, ...]
) -> None:
    with_encoder.model.opinion = opinion
    forget_prefix(with_encoder)
    decision = await with_encoder.router.decide(HELLO)

    assert (decision.source, decision.reason) == (Source.FALLBACK, Reason.WARMING)
    assert len(with_encoder.cache) == 0


async def test_an_encoder_that_gives_no_answer_leaves_a_cold_policy_warming(
    with_encoder: World,
) -> None:
    forget_prefix(with_encoder)
    with_encoder.model.break_with(InferenceFailure.ERROR)
    decision = await with_encoder.router.decide(HELLO)

    assert (decision.source, decision.reason) == (Source.FALLBACK, Reason.WARMING)


async def test_where_the_encoder_was_enough_the_step_says_so(with_encoder: World) -> None:
    alone, both = LabelLogits((), (19.0, 1.0, 0.0)), LabelLogits((19.0, 1.0, 0.0))
    steps = []
    for output, text in ((alone, "one"), (both, "another")):

        async def infer(*_: object, output: LabelLogits = output) -> ModelOutput:
            return output

        with_encoder.model.infer = infer  # type: ignore[method-assign, assignment]
        decision = await with_encoder.router.decide(request(conversation=talk(text)))
        steps += [each.step for each in decision.steps if each.step in ("model", "encoder")]

    assert steps == ["encoder", "model"]


@pytest.mark.parametrize("inline", [False, True])
async def test_the_encoder_decides_while_a_server_that_is_back_computes_prefixes(
    with_encoder: World, monkeypatch: pytest.MonkeyPatch, inline: bool
) -> None:
    """Once it is ready, and no sooner: a server that is away is not waited for."""
    model, computed = with_encoder.model, asyncio.Event()
    model.opinion = (1.0, 19.0, 0.0)
    asked = replace(HELLO, policy=replace(POLICY, name="inline")) if inline else HELLO

    by_stub = model.infer

    async def infer(prompt: Prompt, answer_form: AnswerForm, timeout_s: float) -> ModelOutput:
        if prompt.second_opinion is not None and not prompt.second_opinion.alone:
            await computed.wait()
        return await by_stub(prompt, answer_form, timeout_s)

    monkeypatch.setattr(model, "infer", infer)
    model.break_with(InferenceFailure.UNAVAILABLE)
    await until(lambda: with_encoder.guard.state is BreakerState.OPEN)
    away = await with_encoder.router.decide(asked)
    model.fault = None
    await until(lambda: with_encoder.guard.state is BreakerState.RECOVERING)
    back = await with_encoder.router.decide(asked)
    model.opinion = (16.0, 4.0, 0.0)
    unsure = await with_encoder.router.decide(replace(asked, conversation=talk("unsure")))
    computed.set()

    assert away.reason is Reason.BREAKER_OPEN
    assert (back.source, back.route) == (Source.MODEL, "travel")
    assert "By the encoder alone: the model server is computing the policies'" in back.detail
    assert (unsure.source, unsure.reason) == (Source.FALLBACK, Reason.WARMING)


async def test_a_server_that_is_ready_and_answers_nothing_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_virtual_time(monkeypatch)
    async with a_world(DecisionCache(0, 60), budget_s=0.2, enough=Enough(1.0, 0.0, 0.9)) as world:
        world.model.break_with(InferenceFailure.UNAVAILABLE)
        await until(lambda: world.guard.state is BreakerState.OPEN)
        world.model.fault, world.model.slow = None, True
        await until(lambda: world.guard.state is BreakerState.RECOVERING)
        late = await world.router.decide(HELLO)
        calls = world.model.calls
        next_one = await world.router.decide(request(conversation=talk("next")))

    assert late.reason is Reason.WARMING
    assert next_one.reason is Reason.BREAKER_OPEN
    assert world.model.calls == calls


@pytest.mark.parametrize(
    ("busy", "failure", "reason"),
    [
        (True, None, Reason.WARMING),
        (False, None, Reason.WARMING),
        (False, InferenceFailure.ERROR, Reason.MODEL_ERROR),
    ],
    ids=["too many are computed", "it takes too long", "the server refuses it"],
)
@pytest.mark.parametrize("sure", [True, False])
async def test_the_encoder_decides_by_a_long_inline_policy_that_is_not_computed_in_time(
    monkeypatch: pytest.MonkeyPatch,
    busy: bool,
    failure: InferenceFailure | None,
    reason: Reason,
    sure: bool,
) -> None:
    keep_virtual_time(monkeypatch)
    async with a_world(
        DecisionCache(0, 60),
        budget_s=0.5,
        enough=Enough(1.0, 0.0, 0.9),
        prefix_ids=tuple(range(600)),
    ) as world:
        world.model.opinion = (1.0, 19.0, 0.0) if sure else (16.0, 4.0, 0.0)

        async def warm(*_: object) -> None:
            if failure is not None:
                raise InferenceError(failure, "the prompt is too long")
            await asyncio.sleep(3600)

        monkeypatch.setattr(world.model, "warm", warm)
        for number in range(8 if busy else 0):
            policy = replace(POLICY, name=f"other-{number}")
            world.warmth.request(world.registry.compile(policy), world.guard)
        decision = await world.router.decide(request(policy=replace(POLICY, name="inline")))

    assert decision.route == ("travel" if sure else "")
    assert decision.asked == "encoder"
    assert (decision.reason is reason) is not sure
    assert ("By the encoder alone: The model server" in decision.detail) is sure


@pytest.mark.parametrize(
    ("enough", "opinion", "expected", "kept"),
    [
        (Enough(1.0, 0.0, 0.9, 0.5), (1.0, 19.0, 0.0), (Source.MODEL, "matched", "travel"), 2),
        (Enough(1.0, 0.0, 0.9, 0.5), (8.0, 12.0, 0.0), (Source.MODEL, "matched", "travel"), 0),
        (Enough(1.0, 0.0, 0.9, 0.5), (1.0, 2.0, 17.0), (Source.FALLBACK, "no_match", ""), 0),
        (Enough(1.0, 0.0, 0.9, 0.5), (6.0, 9.0, 5.0), (Source.FALLBACK, "overloaded", ""), 0),
        (Enough(1.0, 0.0, 0.9), (8.0, 12.0, 0.0), (Source.FALLBACK, "overloaded", ""), 0),
    ],
    ids=["sure", "good enough in its place", "none of the routes", "neither", "not in its place"],
)
async def test_what_the_language_model_has_no_time_for_the_encoder_decides_alone(
    enough: Enough, opinion: tuple[float, ...], expected: tuple[Source, str, str], kept: int
) -> None:
    async with a_world(DecisionCache(100_000, 60), enough=enough) as world:
        world.model.opinion = opinion
        load = world.target.load
        with load.working(1):
            await asyncio.sleep(0.05)
        with load.working(1_000_000):
            decision = await world.router.decide(HELLO)

    assert (decision.source, decision.reason.value, decision.route) == expected
    assert [each.step for each in decision.steps if each.step in ("model", "encoder")] == [
        "encoder"
    ]
    assert "1 call is before this one" in decision.detail
    assert len(world.cache) == kept


async def test_of_a_language_model_that_became_too_slow_the_encoder_takes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_virtual_time(monkeypatch)
    async with a_world(
        DecisionCache(0, 60), budget_s=0.1, enough=Enough(1.0, 0.0, 0.9, 0.5)
    ) as world:
        world.model.opinion = (8.0, 12.0, 0.0)
        await world.router.decide(HELLO)
        world.model.slow = True
        late = await world.router.decide(request(conversation=talk("one")))
        waiting = asyncio.create_task(world.router.decide(request(conversation=talk("two"))))
        await until(lambda: world.target.load.in_flight > 0)
        world.model.slow = False
        another = await world.router.decide(request(conversation=talk("three")))
        await waiting

    assert late.reason is Reason.DEADLINE_EXCEEDED
    assert (another.source, another.route) == (Source.MODEL, "travel")
    assert "By the encoder alone: 1 call is before this one" in another.detail


async def test_an_encoder_with_too_much_to_do_is_not_asked_alone(with_encoder: World) -> None:
    with_encoder.model.opinion = (1.0, 19.0, 0.0)
    forget_prefix(with_encoder)
    asked, load = with_encoder.model.calls, with_encoder.target.encoder_load
    with load.working(1):
        await asyncio.sleep(0.05)
    with load.working(1_000):
        decision = await with_encoder.router.decide(HELLO)

    assert (decision.source, decision.reason) == (Source.FALLBACK, Reason.WARMING)
    assert with_encoder.model.calls == asked


@pytest.mark.parametrize(
    ("apart", "warming", "given_up"),
    [(False, False, True), (True, False, False), (False, True, False)],
    ids=["nothing comes", "the encoder is apart", "prefixes are computed meanwhile"],
)
async def test_a_server_that_does_not_answer_under_cold_policies_is_given_up(
    monkeypatch: pytest.MonkeyPatch, apart: bool, warming: bool, given_up: bool
) -> None:
    keep_virtual_time(monkeypatch)
    async with a_world(DecisionCache(0, 60), budget_s=0.2, enough=Enough(1.0, 0.0, 0.9)) as world:
        forget_prefix(world)
        world.model.encoder_apart, world.model.slow = apart, True
        # Others' prefixes are, and this one's never.
        world.warmth.request = lambda compiled, model: None  # type: ignore[method-assign]
        for number in range(6):
            deciding = world.router.decide(request(conversation=talk(str(number))))
            late = asyncio.create_task(deciding)
            await asyncio.sleep(0.05)
            if warming:
                await world.guard.warm((9,), 1)
            await late

        assert bool(world.router.degraded) is given_up


async def test_a_question_that_is_asked_again_and_again_counts_as_every_other_late_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_virtual_time(monkeypatch)
    async with a_world(DecisionCache(0, 60), budget_s=0.2, enough=Enough(1.0, 0.0, 0.9)) as world:
        forget_prefix(world)
        world.model.slow = True
        world.warmth.request = lambda compiled, model: None  # type: ignore[method-assign]
        asking = []
        for _ in range(10):
            asking.append(asyncio.create_task(world.router.decide(HELLO)))
            await asyncio.sleep(0.075)
            await world.guard.warm((9,), 1)
        await asyncio.gather(*asking)

        assert not world.router.degraded


async def test_of_an_encoder_that_became_too_slow_one_at_a_time_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_virtual_time(monkeypatch)
    async with a_world(DecisionCache(0, 60), budget_s=0.2, enough=Enough(1.0, 0.0, 0.9)) as world:
        world.model.opinion = (1.0, 19.0, 0.0)
        forget_prefix(world)
        world.warmth.request = lambda compiled, model: None  # type: ignore[method-assign]
        in_time = await world.router.decide(HELLO)
        world.model.slow = True
        await world.router.decide(request(conversation=talk("late")))
        await until(lambda: world.target.encoder_load.in_flight == 0)
        waiting = asyncio.create_task(world.router.decide(request(conversation=talk("one"))))
        await until(lambda: world.target.encoder_load.in_flight > 0)
        calls = world.model.calls
        another = await world.router.decide(request(conversation=talk("another")))
        await waiting

    assert in_time.route == "travel"
    assert another.reason is Reason.WARMING
    assert world.model.calls == calls
