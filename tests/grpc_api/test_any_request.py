"""Whatever a client sends is read or refused; nothing else happens."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar._generated.llmrouter.v1 import policy_pb2, routing_pb2
from sidecar.core.decision import RoutingRequest
from sidecar.core.errors import SidecarError
from sidecar.core.policy import Policy
from sidecar.grpc_api.convert.requests import RequestLimits
from sidecar.grpc_api.request_reader import Call, RequestReader
from sidecar.policies import check_policy, has_errors
from tests.grpc_api.standins import CATALOG, registry

CANARY = "canary-7f3a"

names = st.sampled_from(["", "a", "acme/fast", "other", "ä", "namespaces/a/policies/b", "x" * 300])
numbers = st.floats(width=64) | st.sampled_from([0.0, 0.5, 1.0])
enums = st.integers(0, 9)


def optional(message: Any, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | st.builds(message, **fields)


weighted = st.builds(policy_pb2.WeightedModel, model=names, weight=st.none() | numbers)
model_lists = optional(
    policy_pb2.ModelList, models=st.lists(weighted, max_size=2), preference=enums
)
routes = st.builds(
    policy_pb2.Route,
    name=names,
    description=names,
    models=model_lists,
    domain=names,
    min_confidence=numbers,
    examples=st.lists(names, max_size=1),
)
policies = st.builds(
    policy_pb2.Policy,
    name=names,
    routes=st.lists(routes, max_size=2),
    default_models=model_lists,
)
parts = st.builds(routing_pb2.Part, text=st.just(CANARY)) | st.builds(
    routing_pb2.Part, image=st.none() | st.just(routing_pb2.ImageMarker())
)
calls = st.builds(routing_pb2.ToolCall, id=names, name=names, arguments=st.just(CANARY))
messages = st.builds(
    routing_pb2.Message,
    role=enums,
    parts=st.lists(parts, max_size=2),
    tool_calls=st.lists(calls, max_size=1),
    tool_call_id=names,
)
requests = st.builds(
    routing_pb2.RouteRequest,
    messages=st.lists(messages, max_size=3),
    policy=names,
    model=names,
    conversation_key=names,
    needs=optional(
        routing_pb2.Needs,
        capabilities=st.lists(enums, max_size=2),
        context_tokens=st.integers(-(2**31), 2**31 - 1),
    ),
    dialect=enums,
    min_confidence=numbers,
    explain=st.booleans(),
) | st.builds(
    routing_pb2.RouteRequest,
    messages=st.just([routing_pb2.Message(role=routing_pb2.ROLE_USER)]),
    inline_policy=policies,
)


def outcome(message: routing_pb2.RouteRequest) -> RoutingRequest | SidecarError:
    reader = RequestReader(registry(), RequestLimits())
    try:
        return asyncio.run(reader.read(message, Call(lambda: None)))
    except SidecarError as error:
        return error


@settings(max_examples=300)
@given(requests)
def test_any_request_is_valid_or_refused_by_field(message: routing_pb2.RouteRequest) -> None:
    result = outcome(message)

    if isinstance(result, SidecarError):
        assert result.violations
        assert CANARY not in repr((result.message, result.violations))
    else:
        check_trusted(result)


def check_trusted(request: RoutingRequest) -> None:
    """What the core relies on."""
    assert request.conversation.messages
    assert 0 <= request.min_confidence <= 1
    assert request.needs.context_tokens >= 0
    if isinstance(request.policy, Policy):
        assert not has_errors(check_policy(request.policy, CATALOG))
