"""Policies compiled for the routing model, by name."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sidecar.core.decision import PolicyName, PolicyRef
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import CompiledPrompt
from sidecar.core.policy import Catalog, Policy, PolicyRecord

_INLINE_KEPT = 64
"""Compiled inline policies kept: callers send the same few again and again, and compiling one
costs milliseconds."""


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """A policy ready to decide. `prompt` is None for a policy without routes."""

    policy: Policy
    ref: PolicyRef
    prompt: CompiledPrompt | None

    @property
    def inline(self) -> bool:
        return self.ref.revision == 0


CompilePrompt = Callable[[Policy], CompiledPrompt]
"""Raises SidecarError POLICY_TOO_LARGE."""


class PolicyRegistry:
    """An immutable set of named policies, and a bounded memory of inline ones."""

    def __init__(
        self,
        records: Sequence[PolicyRecord],
        catalog: Catalog,
        compile_prompt: CompilePrompt,
        *,
        default_policy: PolicyName,
        max_prompt_tokens: int,
    ) -> None:
        self.catalog = catalog
        self.max_prompt_tokens = max_prompt_tokens
        self._compile_prompt = compile_prompt
        self._default = default_policy
        self._records = {record.policy.resource_name: record for record in records}
        self._named = {
            name: self._compiled(
                record.policy, PolicyRef(name, record.revision, record.policy.digest())
            )
            for name, record in self._records.items()
        }
        self._inline: OrderedDict[Policy, CompiledPolicy] = OrderedDict()

    def records(self) -> Sequence[PolicyRecord]:
        """All named policies, sorted by resource name."""
        return [self._records[name] for name in sorted(self._records)]

    def named(self) -> Sequence[CompiledPolicy]:
        """All named policies compiled, the default policy first."""
        default = self._resource_name(PolicyName())
        return sorted(self._named.values(), key=lambda compiled: compiled.ref.name != default)

    def get(self, name: PolicyName) -> CompiledPolicy:
        """Raises SidecarError POLICY_NOT_FOUND."""
        resource = self._resource_name(name)
        try:
            return self._named[resource]
        except KeyError:
            known = ", ".join(sorted(self._named)[:10]) or "none"
            raise SidecarError(
                ErrorCode.POLICY_NOT_FOUND,
                f"there is no policy {resource}; the first of those loaded: {known}",
            ) from None

    def compile(self, policy: Policy) -> CompiledPolicy:
        """Compile a policy that is not in the registry; takes milliseconds. Raises SidecarError
        POLICY_TOO_LARGE."""
        return self._compiled(policy, PolicyRef("", 0, policy.digest()))

    async def compile_inline(self, policy: Policy) -> CompiledPolicy:
        """As `compile`, without holding up the event loop, and remembered."""
        compiled = self._inline.get(policy)
        if compiled is None:
            compiled = await asyncio.to_thread(self.compile, policy)
            self._inline[policy] = compiled
            if len(self._inline) > _INLINE_KEPT:
                self._inline.popitem(last=False)
        else:
            self._inline.move_to_end(policy)
        return compiled

    def _compiled(self, policy: Policy, ref: PolicyRef) -> CompiledPolicy:
        prompt = self._compile_prompt(policy) if policy.routes else None
        return CompiledPolicy(policy, ref, prompt)

    def _resource_name(self, name: PolicyName) -> str:
        named = name if name.name else self._default
        return f"namespaces/{named.namespace}/policies/{named.name}"
