"""Named and inline policies, compiled."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sidecar.core.decision import PolicyName
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import CompiledPrompt
from sidecar.core.policy import Model, ModelList, Policy, PolicyRecord, Route, WeightedModel
from sidecar.routing import PolicyRegistry
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
