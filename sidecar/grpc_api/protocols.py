"""What the services need of the rest, so that they can be tested with small stand-ins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sidecar.core.decision import Decision, PolicyName, RoutingRequest
from sidecar.core.model import CompiledPrompt
from sidecar.core.policy import Catalog, Policy, PolicyRecord


class Router(Protocol):
    """Makes decisions."""

    @property
    def degraded(self) -> str:
        """Why the routing model is not answering now; empty if it is."""
        ...

    async def decide(self, request: RoutingRequest) -> Decision:
        """Raises SidecarError for wrong input and nothing else."""
        ...


class CompiledPolicy(Protocol):
    """A policy ready to decide. `prompt` is None for a policy without routes."""

    @property
    def policy(self) -> Policy: ...

    @property
    def prompt(self) -> CompiledPrompt | None: ...


class PolicyRegistry(Protocol):
    """The named policies and the catalog they refer to."""

    @property
    def catalog(self) -> Catalog: ...

    @property
    def max_prompt_tokens(self) -> int: ...

    def get(self, name: PolicyName) -> CompiledPolicy:
        """Raises SidecarError POLICY_NOT_FOUND."""
        ...

    def records(self) -> Sequence[PolicyRecord]:
        """All named policies, sorted by resource name; always the same."""
        ...

    def compile(self, policy: Policy) -> CompiledPolicy:
        """Raises SidecarError POLICY_TOO_LARGE."""
        ...
