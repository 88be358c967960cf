"""Messages to core types and back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from enum import Enum
from typing import Any

import pytest

from sidecar._generated.llmrouter.v1 import decision_pb2, policy_pb2, routing_pb2
from sidecar.core.conversation import Conversation, Message, Role, ToolCall
from sidecar.core.decision import (
    Candidate,
    Decision,
    Excluded,
    Explanation,
    Needs,
    PolicyName,
    PolicyRef,
    Reason,
    RoutingRequest,
    Source,
    StepTime,
)
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import (
    ApiDialect,
    Capability,
    CatalogRecord,
    Model,
    ModelList,
    PinMode,
    Policy,
    Preference,
    Route,
    WeightedModel,
)
from sidecar.grpc_api.convert import enums
from sidecar.grpc_api.convert.catalogs import (
    catalog_record_to_core,
    catalog_to_proto,
    models_to_proto,
)
from sidecar.grpc_api.convert.decisions import decision_to_core, put_decision
from sidecar.grpc_api.convert.outgoing_requests import request_to_proto
from sidecar.grpc_api.convert.policies import policy_to_core, policy_to_proto, proto_path
from sidecar.grpc_api.convert.requests import RequestLimits
from sidecar.grpc_api.convert.violations import Violations
from sidecar.grpc_api.request_reader import Call, RequestReader
from sidecar.policies import MAX_BYTES
from tests.grpc_api.standins import FAST, LARGE, policy_message, registry, route_request, user

SMALL = RequestLimits(max_messages=3, max_parts=5, max_content_bytes=200)

FULL_POLICY = Policy(
    name="eu-support",
    namespace="acme",
    description="for people",
    routes=(
        Route(
            "billing",
            "invoices",
            ModelList(
                (WeightedModel(FAST.id, 0.25), WeightedModel(LARGE.id, 0.75)), Preference.WEIGHTED
            ),
        ),
        Route(
            "refunds",
            "money back",
            ModelList((WeightedModel(LARGE.id),), Preference.CHEAPEST),
            domain="billing",
            min_confidence=0.5,
            examples=("I want my money back",),
        ),
    ),
    default=ModelList((WeightedModel(FAST.id),)),
)

FULL_REQUEST = RoutingRequest(
    conversation=Conversation(
        (
            Message(Role.SYSTEM, "be kind"),
            Message(Role.USER, "look at this", images=2),
            Message(Role.ASSISTANT, tool_calls=(ToolCall("c1", "lookup", '{"id": 1}'),)),
            Message(Role.TOOL, "found", tool_call_id="c1"),
        )
    ),
    policy=PolicyName("support", "acme"),
    model=FAST.id,
    conversation_key="c-17",
    needs=Needs(frozenset({Capability.IMAGES, Capability.TOOLS}), 9000),
    dialect=ApiDialect.ANTHROPIC_MESSAGES,
    min_confidence=0.5,
    budget_s=2.5,
    explain=True,
)


async def read(message: routing_pb2.RouteRequest, limits: RequestLimits | None = None) -> Any:
    reader = RequestReader(registry(), limits or RequestLimits())
    return await reader.read(message, Call(lambda: 2.5))


@pytest.mark.parametrize(
    "request_",
    [
        FULL_REQUEST,
        RoutingRequest(Conversation((Message(Role.USER, "hi"),)), budget_s=2.5),
        RoutingRequest(Conversation((Message(Role.USER, "hi"),)), policy=FULL_POLICY, budget_s=2.5),
    ],
    ids=["everything set", "nothing set", "inline policy"],
)
async def test_request_is_read_as_it_was_sent(request_: RoutingRequest) -> None:
    assert await read(request_to_proto(request_)) == request_


async def test_half_an_emoji_is_sent_as_a_question_mark() -> None:
    asked = RoutingRequest(Conversation((Message(Role.USER, "half \ud83d"),)))
    assert (await read(request_to_proto(asked))).conversation.messages[0].text == "half ?"


async def test_text_parts_are_joined_by_a_newline_and_images_counted() -> None:
    message = routing_pb2.Message(
        role=routing_pb2.ROLE_USER,
        parts=[
            routing_pb2.Part(text="one"),
            routing_pb2.Part(image=routing_pb2.ImageMarker()),
            routing_pb2.Part(text="two"),
        ],
    )

    read_ = await read(routing_pb2.RouteRequest(messages=[message]))

    assert read_.conversation.messages == (Message(Role.USER, "one\ntwo", images=1),)


@pytest.mark.parametrize(
    ("message", "implied"),
    [
        (Message(Role.USER, "text"), set()),
        (Message(Role.USER, images=1), {Capability.IMAGES}),
        (Message(Role.ASSISTANT, tool_calls=(ToolCall("", "f"),)), {Capability.TOOLS}),
        (Message(Role.TOOL, "result"), {Capability.TOOLS}),
    ],
    ids=["text", "image", "tool call", "tool result"],
)
async def test_conversation_implies_needs(message: Message, implied: set[Capability]) -> None:
    request = await read(request_to_proto(RoutingRequest(Conversation((message,)))))

    assert request.needs.capabilities == implied


def edited(edit: Callable[[routing_pb2.RouteRequest], object]) -> routing_pb2.RouteRequest:
    message = route_request("canary-text")
    edit(message)
    return message


def inline(edit: Callable[[policy_pb2.Policy], object]) -> routing_pb2.RouteRequest:
    sent = policy_message()
    edit(sent)
    return edited(lambda m: m.inline_policy.CopyFrom(sent))


Edit = Callable[[Any], object]

WRONG_REQUESTS: list[tuple[Edit, str]] = [
    (lambda m: m.ClearField("messages"), "messages"),
    (lambda m: m.messages.add(), "messages[1].role"),
    (lambda m: m.messages.add(role=17), "messages[1].role"),
    (lambda m: m.messages[0].parts.add(), "messages[0].parts[1]"),
    (lambda m: m.messages[0].tool_calls.add(name="f"), "messages[0].tool_calls"),
    (lambda m: m.messages.add(role=4).tool_calls.add(id="1"), "messages[1].tool_calls[0].name"),
    (lambda m: setattr(m.messages[0], "tool_call_id", "1"), "messages[0].tool_call_id"),
    (lambda m: setattr(m, "policy", "Not A Name"), "policy"),
    (lambda m: setattr(m, "policy", "namespaces/x/policies/"), "policy"),
    (lambda m: setattr(m, "policy", "a" * 64), "policy"),
    (lambda m: setattr(m, "model", "m" * 257), "model"),
    (lambda m: setattr(m, "conversation_key", "k" * 257), "conversation_key"),
    (lambda m: m.needs.capabilities.append(0), "needs.capabilities[0]"),
    (lambda m: m.needs.capabilities.extend([1, 9]), "needs.capabilities[1]"),
    (lambda m: m.needs.capabilities.extend([1] * 17), "needs.capabilities"),
    (lambda m: setattr(m.needs, "context_tokens", -1), "needs.context_tokens"),
    (lambda m: setattr(m, "dialect", 9), "dialect"),
    (lambda m: setattr(m, "min_confidence", 1.01), "min_confidence"),
    (lambda m: setattr(m, "min_confidence", -0.1), "min_confidence"),
    (lambda m: setattr(m, "min_confidence", math.nan), "min_confidence"),
    (lambda m: setattr(m, "min_confidence", math.inf), "min_confidence"),
]


@pytest.mark.parametrize(
    ("edit", "field"), WRONG_REQUESTS, ids=[f"{n}:{f}" for n, (_, f) in enumerate(WRONG_REQUESTS)]
)
async def test_wrong_field_is_named(edit: Edit, field: str) -> None:
    with pytest.raises(SidecarError) as refused:
        await read(edited(edit))

    assert refused.value.code is ErrorCode.INVALID_REQUEST
    assert [each.field for each in refused.value.violations] == [field]
    assert "canary-text" not in str(refused.value)


WRONG_INLINE_POLICIES: list[tuple[Edit, str]] = [
    (lambda p: p.ClearField("default_models"), "inline_policy.default_models.models"),
    (lambda p: setattr(p, "name", "eu"), "inline_policy.name"),
    (lambda p: setattr(p.routes[0], "name", "other"), "inline_policy.routes[0].name"),
    (lambda p: setattr(p.routes[0], "name", "ä"), "inline_policy.routes[0].name"),
    (lambda p: setattr(p.routes[0], "description", " "), "inline_policy.routes[0].description"),
    (lambda p: setattr(p.routes[0], "domain", "gone"), "inline_policy.routes[0].domain"),
    (
        lambda p: setattr(p.routes[0], "min_confidence", math.nan),
        "inline_policy.routes[0].min_confidence",
    ),
    (
        lambda p: setattr(p.routes[0].models.models[0], "model", "acme/gone"),
        "inline_policy.routes[0].models.models[0].model",
    ),
    (
        lambda p: setattr(p.routes[0].models.models[0], "weight", -1),
        "inline_policy.routes[0].models.models[0].weight",
    ),
    (
        lambda p: setattr(p.routes[0].models, "preference", 9),
        "inline_policy.routes[0].models.preference",
    ),
    (
        lambda p: setattr(p.default_models.models[0], "weight", math.nan),
        "inline_policy.default_models.models[0].weight",
    ),
]


@pytest.mark.parametrize(
    ("edit", "field"), WRONG_INLINE_POLICIES, ids=[field for _, field in WRONG_INLINE_POLICIES]
)
async def test_wrong_field_of_an_inline_policy_is_named(edit: Edit, field: str) -> None:
    with pytest.raises(SidecarError) as refused:
        await read(inline(edit))

    assert refused.value.code is ErrorCode.INVALID_POLICY
    assert [each.field for each in refused.value.violations] == [field]


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (lambda p: p.routes.extend([p.routes[0]] * 600), "inline_policy.routes"),
        (lambda p: setattr(p, "etag", "x" * 600_000), "inline_policy"),
    ],
    ids=["routes", "bytes"],
)
async def test_inline_policy_that_is_too_large_is_refused_unread(edit: Edit, field: str) -> None:
    message = inline(edit)
    message.inline_policy.name = "not looked at"

    with pytest.raises(SidecarError) as refused:
        await read(message)

    assert refused.value.code is ErrorCode.INVALID_POLICY
    assert [each.field for each in refused.value.violations] == [field]


async def test_reading_ends_where_more_is_wrong_than_can_be_told() -> None:
    message = routing_pb2.RouteRequest(messages=[routing_pb2.Message()] * 4000)

    with pytest.raises(SidecarError) as refused:
        await read(message)

    assert refused.value.code is ErrorCode.INVALID_REQUEST
    assert len(refused.value.violations) < 200


def long_request(name: str) -> routing_pb2.RouteRequest:
    return routing_pb2.RouteRequest(messages=[user(f"{name} {n}") for n in range(1000)])


async def turns_during(reading: Awaitable[Any]) -> tuple[Any, int]:
    """The result, and how often everybody else had a turn of the event loop meanwhile."""
    count = 0

    async def everybody_else() -> None:
        nonlocal count
        while True:
            await asyncio.sleep(0)
            count += 1

    others = asyncio.create_task(everybody_else())
    result = await reading
    others.cancel()
    return result, count


async def test_long_conversation_is_read_in_slices_and_in_order() -> None:
    request, turns = await turns_during(read(long_request("x")))

    assert [each.text for each in request.conversation.messages] == [f"x {n}" for n in range(1000)]
    assert turns >= 5


async def test_long_conversations_share_the_slices() -> None:
    reader = RequestReader(registry(), RequestLimits())
    names = "abcd"

    requests, turns = await turns_during(
        asyncio.gather(*(reader.read(long_request(name), Call(lambda: None)) for name in names))
    )

    assert [each.conversation.messages[-1].text for each in requests] == [
        f"{name} 999" for name in names
    ]
    assert turns >= 5 * len(names)


async def test_all_wrong_fields_are_reported_at_once() -> None:
    message = edited(lambda m: m.messages.add())
    message.min_confidence = 2

    with pytest.raises(SidecarError) as refused:
        await read(message)

    fields = [each.field for each in refused.value.violations]
    assert fields == ["messages[1].role", "min_confidence"]


@pytest.mark.parametrize(
    "message",
    [
        routing_pb2.RouteRequest(messages=[user("x")] * 4),
        route_request("x" * 201),
        edited(lambda m: m.messages[0].parts.extend([m.messages[0].parts[0]] * 5)),
        routing_pb2.RouteRequest(
            messages=[
                routing_pb2.Message(
                    role=routing_pb2.ROLE_ASSISTANT,
                    tool_calls=[routing_pb2.ToolCall(name="f", arguments="x" * 201)],
                )
            ]
        ),
    ],
    ids=["messages", "text", "parts", "tool arguments"],
)
async def test_request_over_a_limit_is_too_large(message: routing_pb2.RouteRequest) -> None:
    with pytest.raises(SidecarError) as refused:
        await read(message, SMALL)

    assert refused.value.code is ErrorCode.REQUEST_TOO_LARGE


TWINS: list[tuple[enums.EnumTwin[Any, Any], Any, type[Enum]]] = [
    (enums.ROLE, routing_pb2.Role, Role),
    (enums.DIALECT, routing_pb2.ApiDialect, ApiDialect),
    (enums.CAPABILITY, routing_pb2.Capability, Capability),
    (enums.PREFERENCE, policy_pb2.Preference, Preference),
    (enums.PIN_MODE, policy_pb2.PinMode, PinMode),
    (enums.SOURCE, decision_pb2.DecisionSource, Source),
    (enums.REASON, decision_pb2.DecisionReason, Reason),
]


@pytest.mark.parametrize(("twin", "proto", "core"), TWINS, ids=[t[0].prefix for t in TWINS])
def test_enum_and_its_twin_have_the_same_values(
    twin: enums.EnumTwin[Any, Any], proto: Any, core: type[Enum]
) -> None:
    known = {twin.to_core(value): value for value in proto.values() if value != 0}

    assert known == {member: twin.to_proto(member) for member in core}


@pytest.mark.parametrize("explained", [True, False])
def test_decision_survives_the_wire(explained: bool) -> None:
    decision = Decision(
        id="d1",
        route="billing",
        model=FAST,
        fallbacks=(LARGE, Model("bare/model", "bare")),
        source=Source.FALLBACK,
        reason=Reason.NO_CAPABLE_MODEL,
        detail="why",
        policy=PolicyRef("namespaces/default/policies/support", 3, "sha256:00"),
        prompt_format="compact-v1",
        routing_model="router",
        confidence=0.0 if explained else None,
        candidates=(Candidate("billing", 0.75), Candidate("other", 0.25)),
        steps=(StepTime("prompt", 0.25), StepTime("total", 1234.5)),
        explanation=Explanation("prompt", 10, 4, True, (Excluded("m", "why"),), "a")
        if explained
        else None,
    )

    message = decision_pb2.Decision()
    put_decision(decision, message)

    assert decision_to_core(message) == decision


def test_policy_survives_the_wire() -> None:
    violations = Violations()

    assert policy_to_core(policy_to_proto(FULL_POLICY), "policy", violations) == FULL_POLICY
    assert not list(violations)


@pytest.mark.parametrize(
    ("yaml", "proto"),
    [
        ("name", "name"),
        ("namespace", "name"),
        ("default", "default_models"),
        ("default.models", "default_models.models"),
        ("default.models[0]", "default_models.models[0].model"),
        ("default.models[0].weight", "default_models.models[0].weight"),
        ("default.preference", "default_models.preference"),
        ("routes[12].models", "routes[12].models.models"),
        ("routes[12].models[3]", "routes[12].models.models[3].model"),
        ("routes[12].models[3].weight", "routes[12].models.models[3].weight"),
        ("routes[12].preference", "routes[12].models.preference"),
        ("routes[12].examples[1]", "routes[12].examples[1]"),
    ],
)
def test_path_of_a_finding_is_spelled_as_in_the_message(yaml: str, proto: str) -> None:
    assert proto_path(yaml) == proto


def test_catalog_that_is_larger_than_one_request_survives_the_wire() -> None:
    """As several files make it."""
    ids = [f"acme/{number:0120}" for number in range(4000)]
    record = CatalogRecord({id: replace(LARGE, id=id) for id in ids}, 1, "1-x", "sha256:x")
    message = catalog_to_proto(record)

    assert message.ByteSize() > MAX_BYTES
    assert catalog_record_to_core(message) == record


def test_context_window_beyond_the_message_is_the_largest_it_can_hold() -> None:
    (message,) = models_to_proto([replace(FAST, context_window=10**11)]).models

    assert message.context_window == 2**31 - 1
