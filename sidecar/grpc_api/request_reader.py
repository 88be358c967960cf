"""Reads one route request: the only way from the wire to a `RoutingRequest`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar.core.decision import PolicyName, RoutingRequest
from sidecar.core.policy import Policy
from sidecar.grpc_api.convert import requests
from sidecar.grpc_api.convert.requests import RequestLimits, Turns
from sidecar.grpc_api.convert.resource_names import policy_name
from sidecar.grpc_api.convert.violations import Violations
from sidecar.grpc_api.inline_policies import InlinePolicies
from sidecar.grpc_api.protocols import PolicyRegistry


class RequestReader:
    """Checks and converts route requests; the core trusts what comes out."""

    def __init__(self, registry: PolicyRegistry, limits: RequestLimits) -> None:
        self._registry = registry
        self._limits = limits
        self._inline = InlinePolicies()
        self._turns = Turns()

    def check_batch(self, messages: Sequence[routing_pb2.RouteRequest]) -> None:
        """Raises SidecarError REQUEST_TOO_LARGE if the requests are too much together."""
        requests.check_batch_size(messages, self._limits)

    async def read(
        self, message: routing_pb2.RouteRequest, time_remaining: Callable[[], float | None]
    ) -> RoutingRequest:
        """The request of `message`.

        Args:
            time_remaining: gives the seconds the caller still waits, None if it set no deadline;
                asked last, since checking an inline policy takes time.

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
            policy=await self._policy(message),
            model=model,
            conversation_key=key,
            needs=needs,
            dialect=dialect,
            min_confidence=min_confidence,
            budget_s=time_remaining(),
            explain=message.explain,
        )

    async def _policy(self, message: routing_pb2.RouteRequest) -> PolicyName | Policy:
        if message.HasField("inline_policy"):
            return await self._inline.accept(
                message.inline_policy, "inline_policy", self._registry.catalog
            )
        return policy_name(message.policy, "policy", bare=True)
