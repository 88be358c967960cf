"""Policies inside requests are checked within the budget of the decision."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar._generated.llmrouter.v1 import policy_pb2, routing_pb2
from sidecar.core.decision import Reason, RoutingRequest, Source
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import Policy
from sidecar.grpc_api import inline_policies
from sidecar.grpc_api.convert.requests import RequestLimits
from sidecar.grpc_api.request_reader import Budget, Call, RequestReader
from sidecar.routing import DecisionCache
from tests.grpc_api.standins import policy_message, registry, route_request, user
from tests.routing.worlds import a_world


class Gated:
    """Holds up the check, as a flood of large policies does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        self.checked = 0
        self._check = inline_policies._checked
        monkeypatch.setattr(inline_policies, "_checked", self)

    def __call__(self, message: policy_pb2.Policy, *others: Any) -> Policy:
        # The default alone is checked in the event loop.
        if message.routes:
            assert self.gate.wait(60)
            self.checked += 1
        return self._check(message, *others)


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gated]:
    made = Gated(monkeypatch)
    yield made
    made.gate.set()


def inline(number: int = 0, route: str = "billing", default: str = "") -> routing_pb2.RouteRequest:
    message = route_request()
    message.inline_policy.CopyFrom(policy_message())
    message.inline_policy.description = f"policy {number}"
    message.inline_policy.routes[0].name = route
    if default:
        message.inline_policy.default_models.models[0].model = default
    return message


def within(budget_s: float) -> RequestReader:
    return RequestReader(registry(), RequestLimits(), budget=Budget(budget_s))


async def read(
    reader: RequestReader, message: routing_pb2.RouteRequest, deadline_s: float | None = None
) -> RoutingRequest:
    return await reader.read(message, Call(lambda: deadline_s))


def routes(request: RoutingRequest) -> list[str]:
    assert isinstance(request.policy, Policy)
    return [route.name for route in request.policy.routes]


@pytest.mark.parametrize(
    ("budget_s", "deadline_s"), [(0.05, None), (60, 0.05)], ids=["budget", "caller's deadline"]
)
async def test_who_cannot_wait_for_the_check_has_the_default_alone_and_the_next_all(
    gated: Gated, budget_s: float, deadline_s: float | None
) -> None:
    reader = within(budget_s)
    for number in range(3):
        await read(reader, inline(number), 0.01)

    late = await read(reader, inline(3), deadline_s)
    gated.gate.set()
    # As often as its budget ends before a busy machine has checked it.
    async with asyncio.timeout(60):
        while (found := await read(reader, inline(3), deadline_s)).unchecked:
            pass

    assert (late.unchecked, routes(late)) == (True, [])
    assert routes(found) == ["billing"]
    assert gated.checked == 4


async def test_what_is_wrong_is_told_to_the_next_who_waits(gated: Gated) -> None:
    reader = within(60)
    assert (await read(reader, inline(route="other"), 0.01)).unchecked
    gated.gate.set()

    with pytest.raises(SidecarError) as caught:
        await read(reader, inline(route="other"))

    assert [each.field for each in caught.value.violations] == ["inline_policy.routes[0].name"]


async def test_policies_that_are_being_checked_are_bounded(gated: Gated) -> None:
    reader = within(60)
    for number in range(16):
        await read(reader, inline(number), 0.001)
    # Not waited for: it would never come.
    beyond = await read(reader, inline(16))
    gated.gate.set()
    known = await read(reader, inline(15))

    assert beyond.unchecked
    assert not known.unchecked
    assert gated.checked == 16


async def test_a_default_that_cannot_be_taken_is_an_error_whatever_else_there_is(
    gated: Gated,
) -> None:
    reader = within(60)

    with pytest.raises(SidecarError) as caught:
        await read(reader, inline(default="acme/gone"), 0.01)

    assert caught.value.code is ErrorCode.INVALID_POLICY
    assert [each.field for each in caught.value.violations] == [
        "inline_policy.default_models.models[0].model"
    ]


async def test_the_answer_is_the_policys_default_and_says_why(gated: Gated) -> None:
    models = policy_pb2.ModelList(models=[policy_pb2.WeightedModel(model="mini")])
    message = routing_pb2.RouteRequest(
        messages=[user("review my code")],
        # It would find a pin, if it were looked for one.
        conversation_key="c-1",
        inline_policy=policy_pb2.Policy(
            routes=[policy_pb2.Route(name="code", description="writing code", models=models)],
            default_models=models,
        ),
    )
    async with a_world(DecisionCache(0, 60), budget_s=60) as world:
        reader = RequestReader(world.registry, RequestLimits(), budget=Budget(0.05))
        decision = await world.router.decide(await read(reader, message))

    assert (decision.source, decision.reason) == (Source.FALLBACK, Reason.WARMING)
    assert (decision.model.id, decision.policy.digest) == ("mini", "")
    assert decision.detail == "The policy of the request is being checked."


@pytest.mark.parametrize(("caller_s", "left_s"), [(None, 0.7), (5.0, 0.7), (0.5, 0.2), (0.25, 0.0)])
def test_reading_leaves_time_for_the_way_back(
    monkeypatch: pytest.MonkeyPatch, caller_s: float | None, left_s: float
) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 10.1)

    assert Budget(1.0, reserve_s=0.2).left_s(caller_s, arrived=10.0) == pytest.approx(left_s)


async def test_the_time_that_reading_took_is_part_of_the_decisions() -> None:
    before = time.perf_counter()
    request = await read(within(60), route_request(), 2.5)

    assert request.arrived is not None
    assert before <= request.arrived <= time.perf_counter()
    assert request.budget_s == 2.5
