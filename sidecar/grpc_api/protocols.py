"""What the services need of the rest, so that they can be tested with small stand-ins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sidecar.core.decision import Decision, PolicyName, RoutingRequest
from sidecar.core.model import CompiledPrompt
from sidecar.core.policy import Catalog, Policy, PolicyRecord
from sidecar.policies.stores import Snapshot


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

    @property
    def default_name(self) -> str:
        """Resource name of the policy of requests that name none."""
        ...

    def records(self) -> Sequence[PolicyRecord]:
        """All named policies, sorted by resource name."""
        ...

    def prompt_of(self, policy: Policy) -> CompiledPrompt | None:
        """What the routing model reads of a policy, whose models need not be in force yet; None if
        it has no routes. Raises SidecarError POLICY_TOO_LARGE."""
        ...


class ChangeFeed(Protocol):
    """Knows of the changes of a store."""

    @property
    def snapshot(self) -> Snapshot:
        """What the store held when it was last read."""
        ...

    @property
    def away(self) -> str:
        """Why the store cannot be reached; empty if it can."""
        ...

    @property
    def problem(self) -> str:
        """Why what is in force may be out of date; empty if nothing is known to be wrong."""
        ...

    async def beyond(self, number: int) -> None:
        """Returns when a change with a greater number has been seen."""
        ...
