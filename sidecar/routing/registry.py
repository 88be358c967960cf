"""Policies compiled for the routing model, by name."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field

from sidecar.core.decision import PolicyName, PolicyRef
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import CompiledPrompt
from sidecar.core.policy import Catalog, Policy, PolicyRecord
from sidecar.routing.compiled import CompiledPrompts, prompt_bytes

_INLINE_KEPT = 64
"""Compiled inline policies kept: callers send the same few again and again, and compiling one
costs milliseconds."""

_INLINE_BYTES = 16 * 1024 * 1024
"""Most memory for them, by estimate. It is apart from that of named policies, so that callers who
make up policies never take the place of those that were accepted."""

_INLINE_AT_ONCE = 16
"""Inline policies that are being compiled or wait for their turn; who brings another one does not
wait for all of them."""

COMPILED_BYTES = 128 * 1024 * 1024
"""Memory for compiled named policies; one of 34 routes takes some 80 kB."""


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """A policy that decides.

    `prompt` is None for a policy without routes. Of a named policy it is None as well until
    `PolicyRegistry.ready` gives it, where it was not needed before or its memory was; of an inline
    one where it takes longer to compile than its request can wait.

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

SurelyFits = Callable[[Policy], bool]
"""True only for a policy that compiles without an error; takes no more than microseconds a route.
Compiling it can wait until it is needed."""


def never_sure(policy: Policy) -> bool:
    """Every policy is compiled when it is accepted."""
    return False


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

    Args:
        surely_fits: which policies need not be compiled to know that they can be.
        compiled_bytes: bound of the named policies' compiled prompts, by estimate.
    """

    def __init__(
        self,
        records: Sequence[PolicyRecord],
        catalog: Catalog,
        compile_prompt: CompilePrompt,
        *,
        default_policy: PolicyName,
        max_prompt_tokens: int,
        surely_fits: SurelyFits = never_sure,
        compiled_bytes: int = COMPILED_BYTES,
    ) -> None:
        self.max_prompt_tokens = max_prompt_tokens
        self.surely_fits = surely_fits
        self._compile_prompt = compile_prompt
        self._default = default_policy
        self._inline: OrderedDict[Policy, CompiledPolicy] = OrderedDict()
        self._inline_bytes = 0
        self._compiling_inline: dict[Policy, asyncio.Task[CompiledPolicy]] = {}
        self._prompts = CompiledPrompts(compiled_bytes)
        self._compiling: dict[str, asyncio.Task[CompiledPrompt]] = {}
        # One at a time: every thread that computes makes the event loop wait for the interpreter.
        self._turn, self._inline_turn = asyncio.Lock(), asyncio.Lock()
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

    @property
    def compiled_policies(self) -> int:
        """Named policies whose compiled prompts are in memory."""
        return len(self._prompts)

    @property
    def compiled_bytes(self) -> int:
        """Memory of those, by estimate."""
        return self._prompts.nbytes

    def named(self) -> Sequence[CompiledPolicy]:
        """All named policies, the default policy first."""
        default = self.default_name
        named = sorted(self._in_force.named.values(), key=lambda each: each.ref.name != default)
        return [_with(each, self._prompts.peek(each.ref.digest)) for each in named]

    def find(self, name: str) -> CompiledPolicy | None:
        """The policy of that resource name; None if there is none in force."""
        found = self._in_force.named.get(name)
        return None if found is None else _with(found, self._prompts.peek(found.ref.digest))

    def compile_record(self, record: PolicyRecord, catalog: Catalog) -> CompiledPolicy:
        """A named policy, ready for `put`; takes milliseconds and changes nothing. Raises
        SidecarError POLICY_TOO_LARGE."""
        return self._compiled(record.policy, _ref_of(record), catalog)

    def accept_record(self, record: PolicyRecord, catalog: Catalog) -> CompiledPolicy:
        """As `compile_record`, where `surely_fits` says that it would raise nothing: at once, and
        compiled when it is needed."""
        return CompiledPolicy(record.policy, _ref_of(record), None, catalog)

    def put(self, policies: Sequence[tuple[PolicyRecord, CompiledPolicy]]) -> None:
        """From now on these decide, instead of those of the same names."""
        before = self._in_force
        records = {record.policy.resource_name: record for record, _ in policies}
        named = {compiled.ref.name: _with(compiled, None) for _, compiled in policies}
        self._in_force = _InForce(
            before.catalog, {**before.records, **records}, {**before.named, **named}
        )
        for _, compiled in policies:
            replaced = before.named.get(compiled.ref.name)
            if replaced is not None and replaced.ref.digest != compiled.ref.digest:
                self._prompts.drop(replaced.ref.digest)
            if compiled.prompt is not None:
                self._prompts.put(compiled.ref.digest, compiled.prompt)

    def remove(self, names: Collection[str]) -> None:
        """From now on there are no policies of those resource names."""
        before = self._in_force
        for name in names:
            if (removed := before.named.get(name)) is not None:
                self._prompts.drop(removed.ref.digest)
        self._in_force = _InForce(
            before.catalog,
            {each: record for each, record in before.records.items() if each not in names},
            {each: compiled for each, compiled in before.named.items() if each not in names},
        )

    def lacking(self, catalog: Catalog) -> Mapping[str, Sequence[str]]:
        """Ids of models that named policies have now and `catalog` lacks, by resource name."""
        gone: dict[int, Collection[str]] = {}
        found: dict[str, Sequence[str]] = {}
        for name, compiled in self._in_force.named.items():
            known = compiled.catalog
            if (left := gone.get(id(known))) is None:
                left = gone[id(known)] = known.keys() - catalog.keys()
            if left and (missing := missing_models(compiled.policy, catalog)):
                found[name] = missing
        return found

    def put_catalog(self, catalog: Catalog, kept: Container[str] = ()) -> None:
        """From now on these are the models, also of the named policies, except `kept`, which name
        models that it lacks."""
        before = self._in_force
        # Not by `replace`, which takes five times as long: there may be thousands.
        named = {
            name: each
            if name in kept
            else CompiledPolicy(each.policy, each.ref, each.prompt, catalog)
            for name, each in before.named.items()
        }
        self._in_force = _InForce(catalog, before.records, named)
        self._inline.clear()
        self._inline_bytes = 0
        self._compiling_inline.clear()

    def get(self, name: PolicyName) -> CompiledPolicy:
        """Raises SidecarError POLICY_NOT_FOUND."""
        resource = self._resource_name(name)
        try:
            found = self._in_force.named[resource]
            return _with(found, self._prompts.get(found.ref.digest))
        except KeyError:
            known = ", ".join(sorted(self._in_force.named)[:10])
            others = f"the first of those loaded: {known}" if known else "make one: none is loaded"
            raise SidecarError(
                ErrorCode.POLICY_NOT_FOUND, f"there is no policy {resource}; {others}"
            ) from None

    async def ready(self, compiled: CompiledPolicy, within_s: float) -> CompiledPolicy | None:
        """A named policy with its prompt, compiled in a thread, once for all who wait for it.

        Returns:
            None if it took longer than `within_s`; it goes on and the next request finds it.
        """
        digest = compiled.ref.digest
        task = self._compiling.get(digest)
        if task is None:
            task = asyncio.create_task(self._compile_needed(compiled), name="compile-policy")
            self._compiling[digest] = task
            task.add_done_callback(lambda _: self._compiling.pop(digest))
        await asyncio.wait({task}, timeout=max(within_s, 0))
        return _with(compiled, task.result()) if task.done() else None

    async def _compile_needed(self, compiled: CompiledPolicy) -> CompiledPrompt:
        async with self._turn:
            prompt = await asyncio.to_thread(self._compile_prompt, compiled.policy)
        named = self._in_force.named.get(compiled.ref.name)
        # A revision that was replaced meanwhile ends with the requests that began under it.
        if named is not None and named.ref.digest == compiled.ref.digest:
            self._prompts.put(compiled.ref.digest, prompt)
        return prompt

    def prompt_of(self, policy: Policy) -> CompiledPrompt | None:
        """What the routing model reads of any policy; None if it has no routes; takes milliseconds.

        Which models it names is left alone: a write is checked against the catalog of the store,
        which may have some that are not in force here yet. Raises SidecarError POLICY_TOO_LARGE.
        """
        return self._compile_prompt(policy) if policy.routes else None

    def compile(self, policy: Policy) -> CompiledPolicy:
        """Compile a policy that is not in the registry; takes milliseconds.

        Raises:
            SidecarError: POLICY_TOO_LARGE; INVALID_POLICY if it names a model that has left the
                catalog since it was checked.
        """
        catalog = self.catalog
        _check_models(policy, catalog)
        return self._compiled(policy, _inline_ref(policy), catalog)

    async def compile_inline(self, policy: Policy, within_s: float | None = None) -> CompiledPolicy:
        """As `compile`, without holding up the event loop, once for all who wait for it, and
        remembered.

        Returns:
            Without its prompt where that takes longer than `within_s`, or too many others come
            first; what is under way goes on and the next request finds it.
        """
        compiled = self._inline.get(policy)
        if compiled is not None:
            self._inline.move_to_end(policy)
            return compiled
        catalog = self.catalog
        _check_models(policy, catalog)
        task = self._compiling_inline.get(policy)
        if task is None and len(self._compiling_inline) < _INLINE_AT_ONCE:
            task = self._begin_inline(policy)
        if task is not None:
            await asyncio.wait({task}, timeout=within_s)
            if task.done():
                return task.result()
        return CompiledPolicy(policy, _inline_ref(policy), None, catalog)

    def unchecked_inline(self, policy: Policy) -> CompiledPolicy:
        """An inline policy of which no more than the default models is known, and so no digest.
        Raises SidecarError INVALID_POLICY."""
        catalog = self.catalog
        _check_models(policy, catalog)
        return CompiledPolicy(policy, PolicyRef("", 0, ""), None, catalog)

    def _begin_inline(self, policy: Policy) -> asyncio.Task[CompiledPolicy]:
        task = asyncio.create_task(self._compile_beside(policy), name="compile-inline")
        self._compiling_inline[policy] = task

        def forget(_: asyncio.Task[CompiledPolicy]) -> None:
            if self._compiling_inline.get(policy) is task:
                del self._compiling_inline[policy]
            if not task.cancelled():
                # What is wrong with it is told to who still waits, or to the next request.
                task.exception()

        task.add_done_callback(forget)
        return task

    async def _compile_beside(self, policy: Policy) -> CompiledPolicy:
        async with self._inline_turn:
            compiled = await asyncio.to_thread(self.compile, policy)
        if compiled.catalog is self.catalog:
            self._remember_inline(policy, compiled)
        return compiled

    def _remember_inline(self, policy: Policy, compiled: CompiledPolicy) -> None:
        if self._inline.pop(policy, None) is None:
            self._inline_bytes += _bytes_of(compiled)
        self._inline[policy] = compiled
        while len(self._inline) > _INLINE_KEPT or self._inline_bytes > _INLINE_BYTES:
            _, dropped = self._inline.popitem(last=False)
            self._inline_bytes -= _bytes_of(dropped)

    def _compiled(self, policy: Policy, ref: PolicyRef, catalog: Catalog) -> CompiledPolicy:
        return CompiledPolicy(policy, ref, self.prompt_of(policy), catalog)

    def _resource_name(self, name: PolicyName) -> str:
        return (name if name.name else self._default).resource_name


def _inline_ref(policy: Policy) -> PolicyRef:
    return PolicyRef("", 0, policy.digest())


def _check_models(policy: Policy, catalog: Catalog) -> None:
    """Raises SidecarError INVALID_POLICY if the policy names a model that has left the catalog
    since it was checked."""
    if missing := missing_models(policy, catalog):
        raise SidecarError(
            ErrorCode.INVALID_POLICY,
            f"the model {missing[0]!r} is not in the catalog any more; choose another one",
        )


def _ref_of(record: PolicyRecord) -> PolicyRef:
    # What a store keeps is what it computed when the revision was made.
    digest = record.digest or record.policy.digest()
    return PolicyRef(record.policy.resource_name, record.revision, digest)


def _with(compiled: CompiledPolicy, prompt: CompiledPrompt | None) -> CompiledPolicy:
    if compiled.prompt is prompt:
        return compiled
    return CompiledPolicy(compiled.policy, compiled.ref, prompt, compiled.catalog)


def _bytes_of(compiled: CompiledPolicy) -> int:
    return 0 if compiled.prompt is None else prompt_bytes(compiled.prompt)


def missing_models(policy: Policy, catalog: Catalog) -> list[str]:
    """Ids that the policy names and the catalog lacks."""
    missing = {each.id for each in policy.default.models if each.id not in catalog}
    for route in policy.routes:
        for each in route.models.models:
            if each.id not in catalog:
                missing.add(each.id)
    return sorted(missing)
