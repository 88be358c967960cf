"""Reads one route request: the only way from the wire to a `RoutingRequest`."""

from __future__ import annotations

import math
import time
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


@dataclass(frozen=True, slots=True)
class Budget:
    """What of a decision's time reading may take.

    Args:
        decision_s: seconds for the whole decision.
        reserve_s: seconds of it, or of the caller's own deadline, kept for the way back.
    """

    decision_s: float = math.inf
    reserve_s: float = 0.0

    def left_s(self, caller_s: float | None, arrived: float) -> float:
        """Seconds from now on; `caller_s` is how long the caller waits from `arrived` on."""
        whole_s = self.decision_s if caller_s is None else min(self.decision_s, caller_s)
        return max(whole_s - self.reserve_s - (time.perf_counter() - arrived), 0.0)


_UNLIMITED = Budget()


class RequestReader:
    """Checks and converts route requests; the core trusts what comes out."""

    def __init__(
        self,
        registry: PolicyRegistry,
        limits: RequestLimits,
        selection: PolicySelection = _NAMED_ALONE,
        budget: Budget = _UNLIMITED,
    ) -> None:
        self._registry = registry
        self._limits = limits
        self._selection = selection
        self._budget = budget
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
        arrived, caller_s = time.perf_counter(), call.time_remaining()
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
        policy: PolicyName | Policy | None = self._named(message, call)
        unchecked = False
        if policy is None:
            left_s = self._budget.left_s(caller_s, arrived)
            policy, unchecked = await self._inlined(message, left_s)
        return RoutingRequest(
            conversation=conversation,
            policy=policy,
            unchecked=unchecked,
            model=model,
            conversation_key=key,
            needs=needs,
            dialect=dialect,
            min_confidence=min_confidence,
            budget_s=caller_s,
            arrived=arrived,
            explain=message.explain,
        )

    async def _inlined(
        self, message: routing_pb2.RouteRequest, within_s: float
    ) -> tuple[Policy, bool]:
        """And whether no more than its default models could be checked."""
        sent, path, catalog = message.inline_policy, "inline_policy", self._registry.catalog
        policy = await self._inline.accept(sent, path, catalog, within_s)
        if policy is not None:
            return policy, False
        return self._inline.default_alone(sent, path, self._registry.catalog), True

    def _named(self, message: routing_pb2.RouteRequest, call: Call) -> PolicyName | None:
        if message.HasField("inline_policy"):
            return None
        if not message.policy:
            key, named = self._selection.chosen(call.metadata)
            if key:
                return policy_name(named, f"metadata {key}", bare=True)
        return policy_name(message.policy, "policy", bare=True)
