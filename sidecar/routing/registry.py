"""Policies compiled for the routing model, by name."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sidecar.core.decision import PolicyName, PolicyRef
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import CompiledPrompt
from sidecar.core.policy import Catalog, Policy, PolicyRecord

_INLINE_KEPT = 64
"""Compiled inline policies kept: callers send the same few again and again, and compiling one
costs milliseconds."""


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """A policy ready to decide. `prompt` is None for a policy without routes.

    `catalog` is the one that the policy was checked against: a request that began under it ends
    under it.
    """

    policy: Policy
    ref: PolicyRef
    prompt: CompiledPrompt | None
    catalog: Catalog = field(default_factory=dict, compare=False)

    @property
    def inline(self) -> bool:
        return self.ref.revision == 0


CompilePrompt = Callable[[Policy], CompiledPrompt]
"""Raises SidecarError POLICY_TOO_LARGE. Called from several threads."""


@dataclass(frozen=True, slots=True)
class _InForce:
    """What decides now; replaced as a whole."""

    catalog: Catalog
    records: Mapping[str, PolicyRecord]
    named: Mapping[str, CompiledPolicy]


class PolicyRegistry:
    """The named policies in force, and a bounded memory of inline ones.

    A request takes its policy once and keeps it; a change is one assignment, so no request waits
    for it and none sees half of it. Changes are made in the event loop alone.
    """

    def __init__(
        self,
        records: Sequence[PolicyRecord],
        catalog: Catalog,
        compile_prompt: CompilePrompt,
        *,
        default_policy: PolicyName,
        max_prompt_tokens: int,
    ) -> None:
        self.max_prompt_tokens = max_prompt_tokens
        self._compile_prompt = compile_prompt
        self._default = default_policy
        self._inline: OrderedDict[Policy, CompiledPolicy] = OrderedDict()
        self._in_force = _InForce(catalog, {}, {})
        self.put([(record, self.compile_record(record, catalog)) for record in records])

    @property
    def catalog(self) -> Catalog:
        """The models in force."""
        return self._in_force.catalog

    @property
    def default_name(self) -> str:
        """Resource name of the policy of requests that name none."""
        return self._resource_name(PolicyName())

    def records(self) -> Sequence[PolicyRecord]:
        """All named policies, sorted by resource name."""
        records = self._in_force.records
        return [records[name] for name in sorted(records)]

    def named(self) -> Sequence[CompiledPolicy]:
        """All named policies compiled, the default policy first."""
        default = self.default_name
        named = self._in_force.named.values()
        return sorted(named, key=lambda compiled: compiled.ref.name != default)

    def get_default(self) -> CompiledPolicy:
        """The policy of requests that name none. Raises SidecarError POLICY_NOT_FOUND."""
        return self.get(PolicyName())

    def find(self, name: str) -> CompiledPolicy | None:
        """The policy of that resource name; None if there is none in force."""
        return self._in_force.named.get(name)

    def compile_record(self, record: PolicyRecord, catalog: Catalog) -> CompiledPolicy:
        """A named policy, ready for `put`; takes milliseconds and changes nothing. Raises
        SidecarError POLICY_TOO_LARGE."""
        digest = record.policy.digest()
        ref = PolicyRef(record.policy.resource_name, record.revision, digest)
        return self._compiled(record.policy, ref, catalog)

    def put(self, policies: Sequence[tuple[PolicyRecord, CompiledPolicy]]) -> None:
        """From now on these decide, instead of those of the same names."""
        before = self._in_force
        records = {record.policy.resource_name: record for record, _ in policies}
        named = {compiled.ref.name: compiled for _, compiled in policies}
        self._in_force = _InForce(
            before.catalog, {**before.records, **records}, {**before.named, **named}
        )

    def remove(self, name: str) -> None:
        """From now on there is no policy of that resource name."""
        before = self._in_force
        self._in_force = _InForce(
            before.catalog,
            {each: record for each, record in before.records.items() if each != name},
            {each: compiled for each, compiled in before.named.items() if each != name},
        )

    def put_catalog(self, catalog: Catalog, kept: Container[str] = ()) -> None:
        """From now on these are the models, also of the named policies, except `kept`, which name
        models that it lacks."""
        before = self._in_force
        named = {
            name: compiled if name in kept else replace(compiled, catalog=catalog)
            for name, compiled in before.named.items()
        }
        self._in_force = _InForce(catalog, before.records, named)
        self._inline.clear()

    def get(self, name: PolicyName) -> CompiledPolicy:
        """Raises SidecarError POLICY_NOT_FOUND."""
        resource = self._resource_name(name)
        try:
            return self._in_force.named[resource]
        except KeyError:
            known = ", ".join(sorted(self._in_force.named)[:10]) or "none"
            raise SidecarError(
                ErrorCode.POLICY_NOT_FOUND,
                f"there is no policy {resource}; the first of those loaded: {known}",
            ) from None

    def compile(self, policy: Policy) -> CompiledPolicy:
        """Compile a policy that is not in the registry; takes milliseconds.

        Raises:
            SidecarError: POLICY_TOO_LARGE; INVALID_POLICY if it names a model that has left the
                catalog since it was checked.
        """
        catalog = self.catalog
        if missing := missing_models(policy, catalog):
            raise SidecarError(
                ErrorCode.INVALID_POLICY,
                f"the model {missing[0]!r} is not in the catalog any more; choose another one",
            )
        return self._compiled(policy, PolicyRef("", 0, policy.digest()), catalog)

    async def compile_inline(self, policy: Policy) -> CompiledPolicy:
        """As `compile`, without holding up the event loop, and remembered."""
        compiled = self._inline.get(policy)
        if compiled is None:
            compiled = await asyncio.to_thread(self.compile, policy)
            if compiled.catalog is self.catalog:
                self._inline[policy] = compiled
            if len(self._inline) > _INLINE_KEPT:
                self._inline.popitem(last=False)
        else:
            self._inline.move_to_end(policy)
        return compiled

    def _compiled(self, policy: Policy, ref: PolicyRef, catalog: Catalog) -> CompiledPolicy:
        prompt = self._compile_prompt(policy) if policy.routes else None
        return CompiledPolicy(policy, ref, prompt, catalog)

    def _resource_name(self, name: PolicyName) -> str:
        named = name if name.name else self._default
        return f"namespaces/{named.namespace}/policies/{named.name}"


def missing_models(policy: Policy, catalog: Catalog) -> list[str]:
    """Ids that the policy names and the catalog lacks."""
    lists = (policy.default, *(route.models for route in policy.routes))
    return sorted({each.id for models in lists for each in models.models if each.id not in catalog})
