"""Reads one route request: the only way from the wire to a `RoutingRequest`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar.core.decision import PolicyName, RoutingRequest
from sidecar.core.naming import PolicySelection
from sidecar.core.policy import Policy
from sidecar.grpc_api.context import Context
from sidecar.grpc_api.convert import requests
from sidecar.grpc_api.convert.requests import RequestLimits, Turns
from sidecar.grpc_api.convert.resource_names import policy_name
from sidecar.grpc_api.convert.violations import Violations
from sidecar.grpc_api.inline_policies import InlinePolicies
from sidecar.grpc_api.protocols import PolicyRegistry

_NAMED_ALONE = PolicySelection(header="")


@dataclass(frozen=True, slots=True)
class Call:
    """What a call says beside its messages.

    Args:
        time_remaining: seconds that the caller still waits; None if it set no deadline.
        metadata: the value of a key; empty if it is not there, or is binary.
    """

    time_remaining: Callable[[], float | None]
    metadata: Callable[[str], str] = lambda key: ""

    @classmethod
    def of(cls, context: Context) -> Call:
        def metadata(key: str) -> str:
            found = (value for name, value in context.invocation_metadata() or () if name == key)
            value = next(found, "")
            return value if isinstance(value, str) else ""

        return cls(context.time_remaining, metadata)


class RequestReader:
    """Checks and converts route requests; the core trusts what comes out."""

    def __init__(
        self,
        registry: PolicyRegistry,
        limits: RequestLimits,
        selection: PolicySelection = _NAMED_ALONE,
    ) -> None:
        self._registry = registry
        self._limits = limits
        self._selection = selection
        self._inline = InlinePolicies()
        self._turns = Turns()

    def check_batch(self, messages: Sequence[routing_pb2.RouteRequest]) -> None:
        """Raises SidecarError REQUEST_TOO_LARGE if the requests are too much together."""
        requests.check_batch_size(messages, self._limits)

    async def read(self, message: routing_pb2.RouteRequest, call: Call) -> RoutingRequest:
        """The request of `message`, which is part of `call`.

        Raises:
            SidecarError: REQUEST_TOO_LARGE, INVALID_REQUEST or INVALID_POLICY, with the path of
                every wrong field.
        """
        if requests.check_size(message, self._limits):
            await self._turns.next()
        violations = Violations()
        conversation = await requests.conversation(message, self._limits, self._turns, violations)
        needs = requests.needs(message.needs, conversation, violations)
        dialect = requests.dialect(message.dialect, violations)
        min_confidence = requests.min_confidence(message.min_confidence, violations)
        key = requests.bounded(
            message.conversation_key,
            "conversation_key",
            requests.MAX_CONVERSATION_KEY_BYTES,
            violations,
        )
        model = requests.bounded(message.model, "model", requests.MAX_MODEL_ID_BYTES, violations)
        violations.raise_if_any()
        return RoutingRequest(
            conversation=conversation,
            policy=await self._policy(message, call),
            model=model,
            conversation_key=key,
            needs=needs,
            dialect=dialect,
            min_confidence=min_confidence,
            # Last, since checking an inline policy takes time.
            budget_s=call.time_remaining(),
            explain=message.explain,
        )

    async def _policy(self, message: routing_pb2.RouteRequest, call: Call) -> PolicyName | Policy:
        if message.HasField("inline_policy"):
            return await self._inline.accept(
                message.inline_policy, "inline_policy", self._registry.catalog
            )
        if not message.policy:
            key, named = self._selection.chosen(call.metadata)
            if key:
                return policy_name(named, f"metadata {key}", bare=True)
        return policy_name(message.policy, "policy", bare=True)
