"""Checks policies that come inside requests."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.core.errors import ErrorCode
from sidecar.core.policy import Catalog, Policy
from sidecar.grpc_api.convert.policies import oversize, policy_to_core, proto_path
from sidecar.grpc_api.convert.violations import Violations
from sidecar.policies.rules import limited, policy_errors

_KEPT = 64
"""Accepted policies remembered: callers send the same few again and again."""

_AT_ONCE = 16
"""Policies that are being checked or wait for their turn; who brings another one does not wait for
all of them."""

_DEFAULT_MODELS = 64
"""Of a policy that is not checked as a whole: far more than are tried after each other, and few
enough to be checked in the event loop."""


@dataclass(frozen=True, slots=True)
class _Key:
    """A policy as it was sent, and what it is checked against."""

    message: bytes
    catalog: int
    """Its identity: it is replaced as a whole, and kept here as long as this is."""


class InlinePolicies:
    """Turns policy messages into policies that meet every rule."""

    def __init__(self) -> None:
        self._accepted: OrderedDict[_Key, tuple[Catalog, Policy]] = OrderedDict()
        self._checking: dict[_Key, asyncio.Task[Policy]] = {}
        # One: every thread that computes makes the event loop wait for the interpreter's lock.
        self._thread = ThreadPoolExecutor(1, "inline-policies")

    async def accept(
        self,
        message: policy_pb2.Policy,
        path: str,
        catalog: Catalog,
        within_s: float | None = None,
    ) -> Policy | None:
        """The policy of `message`, checked once for all who wait for it.

        Args:
            path: of the message in the request, for the violations.

        Returns:
            None where that takes longer than `within_s`, or too many others come first; what is
            under way goes on and the next request finds it.

        Raises:
            SidecarError: INVALID_POLICY with every error.
        """
        violations = Violations()
        if (too_much := oversize(message, path)) is not None:
            violations.extend([too_much])
            violations.raise_if_any(ErrorCode.INVALID_POLICY)
        encoded = message.SerializeToString(deterministic=True)
        key = _Key(hashlib.sha256(encoded).digest(), id(catalog))
        known = self._accepted.get(key)
        if known is not None:
            self._accepted.move_to_end(key)
            return known[1]
        task = self._checking.get(key)
        if task is None:
            if len(self._checking) >= _AT_ONCE:
                return None
            task = self._begin(key, message, path, catalog)
        await asyncio.wait({task}, timeout=within_s)
        return task.result() if task.done() else None

    def default_alone(self, message: policy_pb2.Policy, path: str, catalog: Catalog) -> Policy:
        """The policy of `message` with nothing but its default models, of which an answer takes
        one where the rest could not be checked in time.

        Raises:
            SidecarError: INVALID_POLICY with the errors of these models.
        """
        short = policy_pb2.Policy()
        short.default_models.preference = message.default_models.preference
        short.default_models.models.extend(message.default_models.models[:_DEFAULT_MODELS])
        return _checked(short, path, catalog)

    def _begin(
        self, key: _Key, message: policy_pb2.Policy, path: str, catalog: Catalog
    ) -> asyncio.Task[Policy]:
        task = asyncio.create_task(self._check(key, message, path, catalog), name="check-inline")
        self._checking[key] = task

        def forget(_: asyncio.Task[Policy]) -> None:
            del self._checking[key]
            if not task.cancelled():
                # What is wrong with it is told to who still waits, or to the next request.
                task.exception()

        task.add_done_callback(forget)
        return task

    async def _check(
        self, key: _Key, message: policy_pb2.Policy, path: str, catalog: Catalog
    ) -> Policy:
        # In a thread: hundreds of routes take longer to check than the event loop may be held.
        loop = asyncio.get_running_loop()
        policy = await loop.run_in_executor(self._thread, _checked, message, path, catalog)
        self._accepted[key] = (catalog, policy)
        if len(self._accepted) > _KEPT:
            self._accepted.popitem(last=False)
        return policy


def _checked(message: policy_pb2.Policy, path: str, catalog: Catalog) -> Policy:
    violations = Violations()
    policy = policy_to_core(message, path, violations)
    for finding in limited(policy_errors(policy, catalog)):
        violations.add(f"{path}.{proto_path(finding.path)}", finding.message)
    violations.raise_if_any(ErrorCode.INVALID_POLICY)
    return policy
