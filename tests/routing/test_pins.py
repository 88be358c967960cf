"""What keeps its route: keys, bounds, and each way a pin takes part in the walk. The model is a
stub, for its answers and faults."""

from __future__ import annotations

import hashlib
import threading
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from sidecar.core.conversation import Conversation, Message, Role, ToolCall
from sidecar.core.decision import Decision, Needs, PolicyRef, Reason, RoutingRequest
from sidecar.core.model import InferenceFailure
from sidecar.core.policy import Capability, Model, PinMode, Policy
from sidecar.routing import CompiledPolicy, DecisionCache, Pins
from sidecar.routing import router as router_module
from sidecar.routing.pins import Pin, Pinning, Subject, pin_mode, subject
from sidecar.routing.walk import fallback
from tests.doubles import StubPrompt, talk
from tests.routing.worlds import CATALOG, POLICY, World, a_world, models

USER, ASSISTANT, SYSTEM, TOOL = Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.TOOL
CODE, TRAVEL, OTHER = (8, 1, 1), (1, 8, 1), (1, 1, 8)
UNSURE_TRAVEL = (3, 4, 3)

# Inline, since each policy of the table is another one.
BY_TASK = replace(POLICY, pin=PinMode.TASK)
BY_CONVERSATION = replace(POLICY, pin=PinMode.CONVERSATION)
NEVER = replace(POLICY, pin=PinMode.OFF)


@pytest.fixture
def pins() -> Pins:
    return Pins(100, 60)


@pytest.fixture
async def world(pins: Pins) -> AsyncIterator[World]:
    async with a_world(DecisionCache(0, 60), pins) as made:
        yield made


def ask(*texts: str, policy: Policy = BY_TASK, **changes: object) -> RoutingRequest:
    return replace(RoutingRequest(talk(*texts), policy), **changes)  # type: ignore[arg-type]


def loop(request: RoutingRequest) -> RoutingRequest:
    """The next request of its tool loop."""
    messages = (
        *request.conversation.messages,
        Message(ASSISTANT, "I book a trip", tool_calls=(ToolCall("1", "f"),)),
        Message(TOOL, "done", tool_call_id="1"),
    )
    return replace(request, conversation=Conversation(messages))


def said(decision: Decision) -> tuple[str, str, str]:
    return decision.source.value, decision.reason.value, decision.route


FIRST = ask("review my code")
SECOND = ask("review my code", "Done.", "book a flight")

# First request, answer to it, second request, answer to it -> how the second ended.
SECONDS: dict[
    str,
    tuple[RoutingRequest, tuple[int, ...], RoutingRequest, tuple[int, ...], tuple[str, str, str]],
] = {
    "a tool loop keeps its route": (
        FIRST,
        CODE,
        loop(FIRST),
        TRAVEL,
        ("pin", "pinned_task", "code"),
    ),
    "the same request again": (FIRST, CODE, FIRST, TRAVEL, ("pin", "pinned_task", "code")),
    "a new turn is decided anew": (FIRST, CODE, SECOND, TRAVEL, ("model", "matched", "travel")),
    "a new turn of the same route": (FIRST, CODE, SECOND, CODE, ("model", "matched", "code")),
    "a new turn, unsure": (FIRST, CODE, SECOND, UNSURE_TRAVEL, ("pin", "kept_unsure", "code")),
    "a new turn, just sure enough": (
        FIRST,
        CODE,
        SECOND,
        (1, 2, 1),
        ("model", "matched", "travel"),
    ),
    "a new turn that fits no route": (FIRST, CODE, SECOND, OTHER, ("fallback", "no_match", "")),
    "a new turn, below the caller's minimum": (
        FIRST,
        CODE,
        replace(SECOND, min_confidence=0.9),
        TRAVEL,
        ("pin", "kept_unsure", "code"),
    ),
    "another conversation": (
        FIRST,
        CODE,
        ask("book a flight"),
        TRAVEL,
        ("model", "matched", "travel"),
    ),
    "off": (
        replace(FIRST, policy=NEVER),
        CODE,
        replace(FIRST, policy=NEVER),
        TRAVEL,
        ("model", "matched", "travel"),
    ),
    "a conversation keeps its route": (
        replace(FIRST, policy=BY_CONVERSATION),
        CODE,
        replace(SECOND, policy=BY_CONVERSATION),
        TRAVEL,
        ("pin", "pinned_conversation", "code"),
    ),
    "a conversation known by its key": (
        ask("review my code", policy=BY_CONVERSATION, conversation_key="c1"),
        CODE,
        ask("something else", policy=BY_CONVERSATION, conversation_key="c1"),
        TRAVEL,
        ("pin", "pinned_conversation", "code"),
    ),
    "another key": (
        ask("review my code", policy=BY_CONVERSATION, conversation_key="c1"),
        CODE,
        ask("review my code", policy=BY_CONVERSATION, conversation_key="c2"),
        TRAVEL,
        ("model", "matched", "travel"),
    ),
    "the same key of another caller": (
        ask("review my code", policy=BY_CONVERSATION, conversation_key="c", caller="a"),
        CODE,
        ask("review my code", policy=BY_CONVERSATION, conversation_key="c", caller="b"),
        TRAVEL,
        ("model", "matched", "travel"),
    ),
    "another policy": (
        FIRST,
        CODE,
        replace(FIRST, policy=replace(BY_TASK, description="another")),
        TRAVEL,
        ("model", "matched", "travel"),
    ),
    "a key where the policy says nothing": (
        ask("review my code", policy=POLICY, conversation_key="c"),
        CODE,
        loop(ask("review my code", policy=POLICY, conversation_key="c")),
        TRAVEL,
        ("pin", "pinned_task", "code"),
    ),
    "no key where the policy says nothing": (
        replace(FIRST, policy=POLICY),
        CODE,
        replace(FIRST, policy=POLICY),
        TRAVEL,
        ("model", "matched", "travel"),
    ),
    "a fallback is not kept": (FIRST, OTHER, FIRST, CODE, ("model", "matched", "code")),
    "what the caller chose is not kept": (
        replace(FIRST, model="gpt"),
        CODE,
        FIRST,
        TRAVEL,
        ("model", "matched", "travel"),
    ),
    "what the caller chose goes before a pin": (
        FIRST,
        CODE,
        replace(FIRST, model="gpt"),
        TRAVEL,
        ("override", "model_requested", ""),
    ),
    "an image alone": (
        FIRST,
        CODE,
        replace(
            FIRST,
            conversation=Conversation(
                (*FIRST.conversation.messages, Message(ASSISTANT, "Ok"), Message(USER, "", 1))
            ),
        ),
        CODE,
        ("model", "matched", "code"),
    ),
}


@pytest.mark.parametrize("case", SECONDS.values(), ids=SECONDS.keys())
async def test_second_request(
    world: World,
    case: tuple[
        RoutingRequest, tuple[int, ...], RoutingRequest, tuple[int, ...], tuple[str, str, str]
    ],
) -> None:
    first, first_answer, second, second_answer, expected = case
    world.model.logits = first_answer
    await world.router.decide(first)
    world.model.logits = second_answer

    assert said(await world.router.decide(second)) == expected


@pytest.mark.parametrize("policy", [BY_TASK, BY_CONVERSATION], ids=["task", "conversation"])
async def test_a_trial_takes_no_pin_and_leaves_none(
    world: World, pins: Pins, policy: Policy
) -> None:
    request = ask("please review my code", policy=policy, conversation_key="c")
    world.model.logits = TRAVEL
    tried = await world.router.decide(replace(request, trial=True))
    left = len(pins)
    world.model.logits = CODE
    first = await world.router.decide(request)
    world.model.logits = TRAVEL
    again = await world.router.decide(replace(request, trial=True))

    assert left == 0
    assert said(first) == ("model", "matched", "code")
    assert said(tried) == said(again) == ("model", "matched", "travel")


async def test_a_pin_does_not_ask_the_model_and_says_why(world: World) -> None:
    world.model.logits = CODE
    await world.router.decide(FIRST)
    asked = world.model.calls

    decision = await world.router.decide(loop(FIRST))

    assert world.model.calls == asked
    assert decision.detail == "This task keeps route code: the user has said nothing new."
    assert [step.step for step in decision.steps] == ["pin", "selection", "total"]
    assert (decision.confidence, decision.candidates) == (None, ())
    assert world.sink.decisions[-1] == decision


async def test_a_kept_route_shows_what_the_model_thought(world: World) -> None:
    world.model.logits = CODE
    await world.router.decide(FIRST)
    world.model.logits = UNSURE_TRAVEL

    decision = await world.router.decide(SECOND)

    assert decision.candidates[0].name == "travel"
    assert decision.confidence == pytest.approx(0.3)
    assert "another needs 50% to take over" in decision.detail


async def test_the_policy_says_how_sure_a_switch_must_be(world: World) -> None:
    policy = replace(BY_TASK, switch_confidence=0.9)
    world.model.logits = CODE
    await world.router.decide(replace(FIRST, policy=policy))
    world.model.logits = TRAVEL

    decision = await world.router.decide(replace(SECOND, policy=policy))

    assert said(decision) == ("pin", "kept_unsure", "code")


@pytest.mark.parametrize(
    "failure",
    [
        InferenceFailure.UNAVAILABLE,
        InferenceFailure.ERROR,
        InferenceFailure.DEADLINE,
        InferenceFailure.OVERLOADED,
    ],
)
async def test_without_an_answer_a_conversation_keeps_its_route(
    world: World, failure: InferenceFailure
) -> None:
    world.model.logits = CODE
    await world.router.decide(FIRST)
    world.model.break_with(failure)

    decision = await world.router.decide(SECOND)

    assert said(decision) == ("pin", "kept_without_answer", "code")
    assert f"stub: {failure.name}" in decision.detail


async def test_a_defect_keeps_the_route_of_the_conversation(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: StubPrompt, conversation: Conversation) -> None:
        raise ZeroDivisionError

    world.model.logits = CODE
    await world.router.decide(FIRST)
    monkeypatch.setattr(StubPrompt, "render", broken)

    assert said(await world.router.decide(SECOND)) == ("pin", "kept_without_answer", "code")


@pytest.mark.parametrize(
    ("given", "answer", "failure", "source"),
    [
        (FIRST, OTHER, None, "fallback"),
        (FIRST, CODE, InferenceFailure.ERROR, "fallback"),
        (replace(FIRST, needs=Needs(frozenset({Capability.TOOLS}))), CODE, None, "fallback"),
        (replace(FIRST, model="gpt"), CODE, None, "override"),
    ],
    ids=["no match", "failed", "no capable model", "the caller's model"],
)
async def test_what_the_routing_model_did_not_choose_is_not_pinned(
    world: World,
    pins: Pins,
    given: RoutingRequest,
    answer: tuple[int, ...],
    failure: InferenceFailure | None,
    source: str,
) -> None:
    world.model.logits = answer
    if failure is not None:
        world.model.break_with(failure)

    decision = await world.router.decide(given)

    assert decision.source.value == source
    assert len(pins) == 0


async def test_what_the_cache_decided_is_pinned(pins: Pins) -> None:
    async with a_world(DecisionCache(100_000, 60), pins) as world:
        world.model.logits = CODE
        await world.router.decide(replace(FIRST, caller="a"))
        cached = await world.router.decide(replace(FIRST, caller="b"))
        then = await world.router.decide(loop(replace(FIRST, caller="b")))

    assert said(cached) == ("cache", "matched", "code")
    assert said(then) == ("pin", "pinned_task", "code")


async def test_a_switched_task_is_kept_in_turn(world: World) -> None:
    for request, answer in ((FIRST, CODE), (SECOND, TRAVEL)):
        world.model.logits = answer
        await world.router.decide(request)
    world.model.logits = CODE

    assert said(await world.router.decide(loop(SECOND))) == ("pin", "pinned_task", "travel")
    assert said(await world.router.decide(loop(FIRST))) == ("pin", "pinned_task", "code")


async def test_without_a_pin_a_tool_loop_is_asked_about_the_same(world: World) -> None:
    """A fallback is not kept; the model's words in the loop still must not switch the model."""
    world.model.logits = OTHER
    await world.router.decide(replace(FIRST, explain=True))

    again = await world.router.decide(replace(loop(FIRST), explain=True))

    assert again.explanation is not None
    # Of the prompt's tokens three are the prefix: one message, not the two that are shown.
    assert again.explanation.prompt_tokens == 4


@pytest.mark.parametrize(
    ("reason", "ends"),
    [
        (Reason.DEADLINE_EXCEEDED, Reason.KEPT_WITHOUT_ANSWER),
        (Reason.MODEL_UNAVAILABLE, Reason.KEPT_WITHOUT_ANSWER),
        (Reason.MODEL_ERROR, Reason.KEPT_WITHOUT_ANSWER),
        (Reason.BREAKER_OPEN, Reason.KEPT_WITHOUT_ANSWER),
        (Reason.OVERLOADED, Reason.KEPT_WITHOUT_ANSWER),
        (Reason.WARMING, Reason.KEPT_WITHOUT_ANSWER),
        (Reason.UNPARSABLE_ANSWER, Reason.KEPT_WITHOUT_ANSWER),
        (Reason.UNKNOWN_ROUTE, Reason.KEPT_WITHOUT_ANSWER),
        (Reason.NOTHING_TO_ROUTE, Reason.KEPT_WITHOUT_ANSWER),
        (Reason.INTERNAL_ERROR, Reason.KEPT_WITHOUT_ANSWER),
        (Reason.LOW_CONFIDENCE, Reason.KEPT_UNSURE),
        (Reason.NO_MATCH, Reason.NO_MATCH),
        (Reason.UNKNOWN_ISSUER, Reason.UNKNOWN_ISSUER),
    ],
)
async def test_a_fallback_that_says_nothing_of_the_request_keeps_the_route(
    world: World, pins: Pins, reason: Reason, ends: Reason
) -> None:
    of = subject(SECOND, world.registry.compile(BY_TASK), PinMode.TASK)
    pins.put(
        subject(FIRST, world.registry.compile(BY_TASK), PinMode.TASK).task, Pin("code", "claude")
    )
    pinning = Pinning(pins, BY_TASK, of)

    assert pinning.kept() is None
    assert pinning.settled(fallback(reason, "")).reason is ends


async def test_a_new_turn_of_the_same_route_keeps_the_model(world: World, pins: Pins) -> None:
    of = subject(FIRST, world.registry.compile(BY_TASK), PinMode.TASK)
    pins.put(of.task, Pin("code", "gpt"))
    world.model.logits = CODE

    decision = await world.router.decide(SECOND)

    assert said(decision) == ("model", "matched", "code")
    assert [decision.model.id, *(m.id for m in decision.fallbacks)] == ["gpt", "claude"]


async def test_the_model_of_a_pin_is_first_wherever_it_can_take_the_request(
    world: World, pins: Pins
) -> None:
    of = subject(FIRST, world.registry.compile(BY_TASK), PinMode.TASK)
    pins.put(of.task, Pin("code", "gpt"))
    images = Needs(frozenset({Capability.IMAGES}))

    decisions = [
        await world.router.decide(replace(FIRST, needs=needs))
        for needs in (Needs(), images, Needs())
    ]

    assert [[decision.model.id, *(m.id for m in decision.fallbacks)] for decision in decisions] == [
        ["gpt", "claude"],
        ["claude"],
        ["gpt", "claude"],
    ]


async def test_what_a_provider_keeps_stays_with_its_cluster(pins: Pins) -> None:
    """Also where another model of the route could do more, and among the fallbacks."""
    catalog = {
        "claude": Model("claude", "claude-1", "one", capabilities=frozenset(Capability)),
        "gpt": Model("gpt", "gpt-1", "two"),
        "mini": Model("mini", "mini-1", "two"),
    }
    route = replace(BY_TASK.routes[0], models=models("gpt", "claude", "mini"))
    policy = replace(BY_TASK, routes=(route,))
    images = Needs(frozenset({Capability.IMAGES}))
    first = ask("review my code", policy=policy, conversation_key="c")
    then = ask("look at this", policy=policy, conversation_key="c", continues="resp_1")

    async with a_world(DecisionCache(0, 60), pins, catalog) as world:
        world.model.logits = (9, 1)
        await world.router.decide(first)
        world.model.logits = (1, 9)
        decisions = [
            await world.router.decide(replace(then, needs=needs)) for needs in (Needs(), images)
        ]

    assert [said(decision) for decision in decisions] == [
        ("pin", "pinned_conversation", "code"),
        ("pin", "pinned_conversation", "code"),
    ]
    assert [[d.model.id, *(model.id for model in d.fallbacks)] for d in decisions] == [
        ["gpt", "mini"],
        ["gpt"],
    ]


async def test_a_pinned_route_without_a_capable_model_is_a_fallback(world: World) -> None:
    world.model.logits = TRAVEL
    await world.router.decide(FIRST)
    images = Needs(frozenset({Capability.IMAGES}))

    decision = await world.router.decide(replace(FIRST, needs=images))

    assert said(decision) == ("fallback", "no_capable_model", "")


@pytest.mark.parametrize(
    ("new", "stands"),
    [
        (BY_TASK, True),
        (replace(BY_TASK, description="another"), True),
        (replace(BY_TASK, routes=BY_TASK.routes[1:]), False),
        (replace(BY_TASK, routes=(replace(BY_TASK.routes[0], models=models("gpt")),)), False),
        (
            replace(BY_TASK, routes=(replace(BY_TASK.routes[0], models=models("gpt", "claude")),)),
            True,
        ),
    ],
    ids=["same", "changed elsewhere", "route gone", "model gone", "models reordered"],
)
def test_a_pin_that_the_new_revision_lacks_is_dropped(new: Policy, stands: bool) -> None:
    pins = Pins(10, 60)
    pins.put(b"k", Pin("code", "claude"))

    assert (pins.get(b"k", new) is not None) is stands
    assert len(pins) == int(stands)


def test_the_longest_unused_goes_first() -> None:
    pins = Pins(2, 60)
    for key in (b"1", b"2"):
        pins.put(key, Pin("code", "gpt"))
    pins.get(b"1", POLICY)
    pins.put(b"3", Pin("code", "gpt"))

    assert [pins.get(key, POLICY) is not None for key in (b"1", b"2", b"3")] == [True, False, True]


def test_a_pin_takes_as_much_memory_as_the_settings_say() -> None:
    pins = Pins(5_000, 60)
    tracemalloc.start()
    try:
        for number in range(10_000):
            # As after a decision: the names are those of the policy, the key is a new one.
            pins.put(hashlib.sha256(str(number).encode()).digest(), Pin("code", "gpt"))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(pins) == 5_000
    assert used / len(pins) < 400


def test_a_pin_is_kept_for_a_time_after_its_last_use() -> None:
    now = 0.0
    pins = Pins(2, 10, clock=lambda: now)
    pins.put(b"1", Pin("code", "gpt"))
    now = 9.0
    assert pins.get(b"1", POLICY) is not None
    now = 18.0
    assert pins.get(b"1", POLICY) is not None
    now = 28.1
    assert pins.get(b"1", POLICY) is None
    assert len(pins) == 0


def named(policy: Policy, revision: int = 1) -> CompiledPolicy:
    return CompiledPolicy(
        policy, PolicyRef(policy.resource_name, revision, policy.digest()), None, CATALOG
    )


def keys(request: RoutingRequest, compiled: CompiledPolicy | None = None) -> Subject:
    return subject(request, compiled or named(POLICY), PinMode.TASK)


HELLO = Message(USER, "review my code")
EQUAL_TASKS: dict[str, tuple[Message, ...]] = {
    "instructions before": (Message(SYSTEM, "Be brief."), HELLO),
    "tool results after": (HELLO, Message(ASSISTANT, "I look"), Message(TOOL, "a")),
    "an empty turn after": (HELLO, Message(USER, "")),
}
OTHER_TASKS: dict[str, tuple[Message, ...]] = {
    "another text": (Message(USER, "review my coat"),),
    "an image": (Message(USER, "review my code", 1),),
    "a turn after": (HELLO, Message(USER, "and now?")),
    "an image after": (HELLO, Message(USER, "", 1)),
    "two messages that read the same": (Message(USER, "review"), Message(USER, "my code")),
    "another role": (Message(ASSISTANT, "review my code"),),
}


@pytest.mark.parametrize("messages", EQUAL_TASKS.values(), ids=EQUAL_TASKS.keys())
def test_what_does_not_make_another_task(messages: tuple[Message, ...]) -> None:
    given = replace(FIRST, conversation=Conversation(messages))

    assert keys(given).task == keys(FIRST).task


@pytest.mark.parametrize("messages", OTHER_TASKS.values(), ids=OTHER_TASKS.keys())
def test_what_makes_another_task(messages: tuple[Message, ...]) -> None:
    given = replace(FIRST, conversation=Conversation(messages))

    assert keys(given).task != keys(FIRST).task


def test_a_task_is_the_one_before_of_the_next() -> None:
    assert keys(FIRST).before is None
    assert keys(SECOND).before == keys(FIRST).task


def test_keys_are_of_one_namespace_policy_and_caller() -> None:
    tasks = {
        keys(FIRST).task,
        keys(replace(FIRST, caller="a")).task,
        keys(replace(FIRST, conversation_key="a")).task,
        keys(replace(FIRST, caller="a", conversation_key="a")).task,
        keys(replace(FIRST, continues="resp_1")).task,
        keys(FIRST, named(replace(POLICY, namespace="team"))).task,
        keys(FIRST, named(replace(POLICY, name="second"))).task,
    }

    assert len(tasks) == 7


def test_a_new_revision_has_the_pins_of_the_one_before() -> None:
    changed = named(replace(POLICY, description="changed"), revision=2)

    assert keys(FIRST, changed).task == keys(FIRST).task


MODES: dict[str, tuple[RoutingRequest, PinMode | None, PinMode]] = {
    "nothing says anything": (FIRST, None, PinMode.OFF),
    "a key": (replace(FIRST, conversation_key="c"), None, PinMode.TASK),
    "an edge that asks for it": (replace(FIRST, keep_task=True), None, PinMode.TASK),
    "the policy against it": (
        replace(FIRST, keep_task=True, conversation_key="c"),
        PinMode.OFF,
        PinMode.OFF,
    ),
    "a provider that keeps a part": (
        replace(FIRST, continues="resp_1"),
        PinMode.TASK,
        PinMode.CONVERSATION,
    ),
    "a provider that keeps a part, the policy against it": (
        replace(FIRST, continues="resp_1"),
        PinMode.OFF,
        PinMode.OFF,
    ),
    "the policy for it": (FIRST, PinMode.CONVERSATION, PinMode.CONVERSATION),
}


@pytest.mark.parametrize(("given", "said", "mode"), MODES.values(), ids=MODES.keys())
def test_mode(given: RoutingRequest, said: PinMode | None, mode: PinMode) -> None:
    assert pin_mode(given, replace(POLICY, pin=said)) is mode


async def test_long_conversations_are_hashed_in_a_thread(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def noting(request: RoutingRequest, compiled: CompiledPolicy, mode: PinMode) -> Subject:
        threads.append(threading.get_ident())
        return subject(request, compiled, mode)

    monkeypatch.setattr(router_module, "subject", noting)
    await world.router.decide(ask("x" * 300_000))
    await world.router.decide(ask("x"))
    told = Conversation((Message(SYSTEM, "x" * 300_000), *ask("x").conversation.messages))
    await world.router.decide(replace(ask("x"), conversation=told))

    # What is no part of a key is not hashed.
    assert [thread == threading.get_ident() for thread in threads] == [False, True, True]


def test_policies_that_say_nothing_of_pins_keep_their_digest() -> None:
    assert BY_TASK.digest() != POLICY.digest()
    assert replace(POLICY, switch_confidence=0.7).digest() != POLICY.digest()
    assert POLICY.digest() == (
        "sha256:44941972ba73ddc55a40c704008a3292799e68b9c0bfe530c9e26f28ffbc2fb0"
    )


async def test_a_trial_asks_what_the_request_would(world: World) -> None:
    world.model.logits = CODE
    asked = replace(loop(ask("please review my code")), explain=True)
    tried = await world.router.decide(replace(asked, trial=True))
    decision = await world.router.decide(asked)

    assert tried.explanation == decision.explanation
