"""Checks policies that come inside requests."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.core.errors import ErrorCode
from sidecar.core.policy import Catalog, Policy
from sidecar.grpc_api.convert.policies import oversize, policy_to_core, proto_path
from sidecar.grpc_api.convert.violations import Violations
from sidecar.policies import Severity, check_policy

_KEPT = 64
"""Accepted policies remembered: callers send the same few again and again."""


class InlinePolicies:
    """Turns policy messages into policies that meet every rule."""

    def __init__(self) -> None:
        self._accepted: OrderedDict[bytes, tuple[Catalog, Policy]] = OrderedDict()
        # One: every thread that computes makes the event loop wait for the interpreter's lock.
        self._thread = ThreadPoolExecutor(1, "inline-policies")

    async def accept(self, message: policy_pb2.Policy, path: str, catalog: Catalog) -> Policy:
        """The policy of `message`.

        Args:
            path: of the message in the request, for the violations.

        Raises:
            SidecarError: INVALID_POLICY with every error.
        """
        violations = Violations()
        if (too_much := oversize(message, path)) is not None:
            violations.extend([too_much])
            violations.raise_if_any(ErrorCode.INVALID_POLICY)
        key = hashlib.sha256(message.SerializeToString(deterministic=True)).digest()
        known = self._accepted.get(key)
        if known is not None and known[0] is catalog:
            self._accepted.move_to_end(key)
            return known[1]
        # In a thread: hundreds of routes take longer to check than the event loop may be held.
        policy = await asyncio.get_running_loop().run_in_executor(
            self._thread, _checked, message, path, catalog
        )
        self._accepted[key] = (catalog, policy)
        if len(self._accepted) > _KEPT:
            self._accepted.popitem(last=False)
        return policy


def _checked(message: policy_pb2.Policy, path: str, catalog: Catalog) -> Policy:
    violations = Violations()
    policy = policy_to_core(message, path, violations)
    for finding in check_policy(policy, catalog):
        if finding.severity is Severity.ERROR:
            violations.add(f"{path}.{proto_path(finding.path)}", finding.message)
    violations.raise_if_any(ErrorCode.INVALID_POLICY)
    return policy
