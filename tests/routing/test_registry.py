"""Named and inline policies, compiled."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest

from sidecar.core.decision import PolicyName
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import CompiledPrompt
from sidecar.core.policy import Model, ModelList, Policy, PolicyRecord, Route, WeightedModel
from sidecar.routing import CompiledPolicy, PolicyRegistry
from sidecar.routing.compiled import prompt_bytes
from sidecar.routing.registry import CompilePrompt
from tests.doubles import StubPrompt

MODELS = ModelList((WeightedModel("m"),))
POLICY = Policy("main", (Route("r", "text", MODELS),), MODELS)
OTHER_TEAM = replace(POLICY, namespace="team")


class Compiler:
    """Counts, and finds policies named `huge` too large."""

    def __init__(self) -> None:
        self.compiled = 0

    def __call__(self, policy: Policy) -> CompiledPrompt:
        self.compiled += 1
        if policy.name == "huge":
            raise SidecarError(ErrorCode.POLICY_TOO_LARGE, "huge")
        return StubPrompt(policy)


def registry(compiler: Compiler, *policies: Policy) -> PolicyRegistry:
    records = [PolicyRecord(policy, 1, "e") for policy in policies]
    return PolicyRegistry(
        records,
        {"m": Model("m", "m-1")},
        compiler,
        default_policy=PolicyName("main"),
        max_prompt_tokens=100,
    )


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (PolicyName(), "namespaces/default/policies/main"),
        (PolicyName("main"), "namespaces/default/policies/main"),
        (PolicyName("main", "team"), "namespaces/team/policies/main"),
        # A namespace without a name is not a policy: the default is meant.
        (PolicyName("", "team"), "namespaces/default/policies/main"),
    ],
)
def test_get(name: PolicyName, found: str) -> None:
    assert registry(Compiler(), POLICY, OTHER_TEAM).get(name).ref.name == found


def test_unknown_policy_names_those_there_are() -> None:
    with pytest.raises(SidecarError, match="namespaces/default/policies/main") as caught:
        registry(Compiler(), POLICY).get(PolicyName("mian"))

    assert caught.value.code is ErrorCode.POLICY_NOT_FOUND


def test_unknown_policy_where_there_are_none_says_what_to_do() -> None:
    with pytest.raises(SidecarError, match=r"/policies/main; make one: none is loaded$"):
        registry(Compiler()).get(PolicyName("main"))


def test_a_named_policy_that_is_too_large_is_refused_at_once() -> None:
    with pytest.raises(SidecarError) as caught:
        registry(Compiler(), POLICY, replace(POLICY, name="huge"))

    assert caught.value.code is ErrorCode.POLICY_TOO_LARGE


async def test_an_inline_policy_is_compiled_once() -> None:
    compiler = Compiler()
    policies = registry(compiler, POLICY)
    first = await policies.compile_inline(replace(POLICY, name="inline"))
    second = await policies.compile_inline(replace(POLICY, name="inline"))

    assert first is second
    assert first.inline
    assert compiler.compiled == 2


class Gated:
    """A compiler that holds each policy until it is let go; `huge` ones are too large."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.compiled = 0

    def __call__(self, policy: Policy) -> CompiledPrompt:
        assert self.gate.wait(60)
        self.compiled += 1
        if policy.description == "huge":
            raise SidecarError(ErrorCode.POLICY_TOO_LARGE, "too large")
        return StubPrompt(policy)


def inline(number: int = 0, description: str = "") -> Policy:
    return replace(POLICY, name=f"inline-{number}", description=description)


async def test_who_cannot_wait_for_an_inline_policy_gets_it_uncompiled_and_the_next_does() -> None:
    gated = Gated()
    policies = many(gated, 1, 10**6)
    late = await policies.compile_inline(inline(), 0.01)
    waiting = [asyncio.create_task(policies.compile_inline(inline())) for _ in range(3)]
    gated.gate.set()
    compiled = await asyncio.gather(*waiting)

    assert late.inline
    assert (late.prompt, late.ref.digest) == (None, inline().digest())
    assert all(each.prompt is not None for each in compiled)
    assert gated.compiled == 1


async def test_what_is_wrong_with_an_inline_policy_is_told_to_the_next_who_waits() -> None:
    gated = Gated()
    policies = many(gated, 1, 10**6)
    assert (await policies.compile_inline(inline(description="huge"), 0.01)).prompt is None
    gated.gate.set()

    with pytest.raises(SidecarError) as caught:
        await policies.compile_inline(inline(description="huge"))
    assert caught.value.code is ErrorCode.POLICY_TOO_LARGE


async def test_inline_policies_that_are_being_compiled_are_bounded() -> None:
    gated = Gated()
    policies = many(gated, 1, 10**6)
    for number in range(20):
        await policies.compile_inline(inline(number), 0)
    # Not waited for: it would never come.
    beyond = await policies.compile_inline(inline(20))
    gated.gate.set()
    known = await policies.compile_inline(inline(15))

    assert beyond.prompt is None
    assert known.prompt is not None
    assert gated.compiled == 16


def many(compiler: CompilePrompt, count: int, compiled_bytes: int) -> PolicyRegistry:
    """Policies `p-0`, `p-1`, …, none of them compiled yet."""
    made = PolicyRegistry(
        (),
        {"m": Model("m", "m-1")},
        compiler,
        default_policy=PolicyName("p-0"),
        max_prompt_tokens=100,
        surely_fits=lambda policy: True,
        compiled_bytes=compiled_bytes,
    )
    records = [PolicyRecord(replace(POLICY, name=f"p-{n}"), 1, "e") for n in range(count)]
    made.put([(record, made.accept_record(record, made.catalog)) for record in records])
    return made


async def use(policies: PolicyRegistry, number: int) -> CompiledPolicy:
    compiled = policies.get(PolicyName(f"p-{number}"))
    if compiled.prompt is not None:
        return compiled
    ready = await policies.ready(compiled, 10)
    assert ready is not None
    return ready


async def test_policy_is_compiled_once_for_all_who_need_it_at_the_same_time() -> None:
    compiler = Compiler()
    policies = many(compiler, 3, 10**6)
    before = compiler.compiled

    made = await asyncio.gather(*(use(policies, 1) for _ in range(8)))

    assert (before, compiler.compiled) == (0, 1)
    assert {each.policy.name for each in made if each.prompt is not None} == {"p-1"}
    assert policies.get(PolicyName("p-1")).prompt is made[0].prompt


async def test_compiled_policies_are_kept_within_a_bound_of_bytes() -> None:
    compiler = Compiler()
    size = prompt_bytes(StubPrompt(POLICY))
    policies = many(compiler, 10, 3 * size)
    for number in (0, 1, 2, 0, 3):
        await use(policies, number)
        assert policies.compiled_bytes <= 3 * size

    # The one that was not used for longest went, and comes back when it is needed.
    kept = [each.policy.name for each in policies.named() if each.prompt is not None]
    assert kept == ["p-0", "p-2", "p-3"]
    await use(policies, 1)
    assert compiler.compiled == 5


async def test_inline_policies_never_take_the_place_of_named_ones() -> None:
    policies = many(Compiler(), 2, prompt_bytes(StubPrompt(POLICY)))
    await use(policies, 1)
    for number in range(200):
        await policies.compile_inline(replace(POLICY, name=f"inline-{number}"))

    assert policies.get(PolicyName("p-1")).prompt is not None


async def test_revision_that_was_replaced_while_it_was_compiled_does_not_come_back() -> None:
    gate = threading.Event()

    def slow(policy: Policy) -> CompiledPrompt:
        assert gate.wait(60)
        return StubPrompt(policy)

    policies = many(Compiler(), 1, 10**6)
    policies._compile_prompt = slow
    begun = asyncio.create_task(use(policies, 0))
    await asyncio.sleep(0.01)
    record = PolicyRecord(replace(POLICY, name="p-0", description="new"), 2, "e")
    policies.put([(record, policies.accept_record(record, policies.catalog))])
    gate.set()

    assert (await begun).ref.revision == 1
    assert policies.compiled_policies == 0
    assert policies.get(PolicyName()).ref.revision == 2


async def test_who_cannot_wait_is_told_so_and_the_next_finds_it_compiled() -> None:
    gate = threading.Event()

    def slow(policy: Policy) -> CompiledPrompt:
        assert gate.wait(60)
        return StubPrompt(policy)

    policies = many(Compiler(), 1, 10**6)
    policies._compile_prompt = slow
    assert await policies.ready(policies.get(PolicyName()), 0.01) is None
    gate.set()

    assert (await use(policies, 0)).prompt is not None


async def test_inline_policies_are_kept_within_a_bound() -> None:
    compiler = Compiler()
    policies = registry(compiler, POLICY)
    for number in range(200):
        await policies.compile_inline(replace(POLICY, name=f"inline-{number}"))
    await policies.compile_inline(replace(POLICY, name="inline-0"))

    assert compiler.compiled == 1 + 200 + 1


def test_a_policy_without_routes_has_no_prompt() -> None:
    empty = replace(POLICY, routes=())

    assert registry(Compiler(), empty).get(PolicyName()).prompt is None


def test_policy_of_a_model_that_has_left_the_catalog_is_refused() -> None:
    changed = registry(Compiler(), POLICY)
    changed.put_catalog({"n": Model("n", "n-1")}, kept={POLICY.resource_name})

    with pytest.raises(SidecarError, match="'m' is not in the catalog any more") as caught:
        changed.compile(POLICY)

    assert caught.value.code is ErrorCode.INVALID_POLICY
    # What is in force goes on with the catalog that it was checked against.
    assert "m" in changed.get(PolicyName()).catalog


def test_what_a_catalog_lacks_is_told_of_each_policy_by_the_catalog_it_has() -> None:
    m, n = Model("m", "m-1"), Model("n", "n-1")
    changed = registry(Compiler(), POLICY, OTHER_TEAM)
    names = {POLICY.resource_name, OTHER_TEAM.resource_name}
    both = {name: ["m"] for name in names}

    assert changed.lacking({"m": m, "n": n}) == {}
    assert changed.lacking({"n": n}) == both

    changed.put_catalog({"m": m, "n": n}, kept={POLICY.resource_name})
    assert changed.lacking({"n": n}) == both

    changed.put_catalog({"n": n}, kept=names)
    assert changed.lacking({"n": n}) == both
    assert changed.lacking({"m": m}) == {}


def test_inline_policies_are_compiled_anew_for_a_new_catalog() -> None:
    async def compiled_twice() -> int:
        compiler = Compiler()
        changed = registry(compiler, POLICY)
        inline = replace(POLICY, name="inline")
        await changed.compile_inline(inline)
        changed.put_catalog({"m": Model("m", "m-2")})
        await changed.compile_inline(inline)
        assert (await changed.compile_inline(inline)).catalog["m"].upstream_model == "m-2"
        return compiler.compiled

    assert asyncio.run(compiled_twice()) == 3
