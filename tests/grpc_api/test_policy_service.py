"""PolicyService over a real socket."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta

import pytest

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar._generated.llmrouter.v1.policy_pb2_grpc import PolicyServiceStub
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import Model, Policy
from sidecar.grpc_api import paging
from sidecar.grpc_api.policy_access import PolicyAccess, fixed_policies
from sidecar.grpc_api.server import ServerOptions
from sidecar.policies.prices import today
from sidecar.routing import PolicyRegistry
from tests.doubles import StubPrompt
from tests.grpc_api.standins import policy, policy_message, registry, serving

YAML = """\
apiVersion: llmrouter.v1
kind: Policy
name: support
default:
  models: [acme/fast]
routes:
  - name: billing
    description: questions about invoices
    models: [acme/fast, acme/large]
"""


async def test_get_returns_the_policy_with_revision_and_digest(
    policies: PolicyServiceStub,
) -> None:
    found = await policies.GetPolicy(
        policy_pb2.GetPolicyRequest(name="namespaces/default/policies/support")
    )

    assert found.name == "namespaces/default/policies/support"
    assert found.revision == 1
    assert found.etag
    assert found.digest == policy().digest()
    assert [route.name for route in found.routes] == ["billing"]
    assert [each.model for each in found.default_models.models] == ["acme/fast", "acme/large"]


@pytest.fixture
def many() -> PolicyRegistry:
    named = [policy(f"p{number}", space) for space in ("b", "a") for number in range(5)]
    return registry(*named)


async def pages(stub: PolicyServiceStub, parent: str, size: int) -> list[list[str]]:
    result: list[list[str]] = []
    token = ""
    while token or not result:
        response = await stub.ListPolicies(
            policy_pb2.ListPoliciesRequest(parent=parent, page_size=size, page_token=token)
        )
        result.append([each.name for each in response.policies])
        token = response.next_page_token
    return result


@pytest.mark.parametrize(
    ("parent", "size", "lengths"),
    [
        ("namespaces/a", 0, [5]),
        ("namespaces/a", 5, [5]),
        ("namespaces/a", 2, [2, 2, 1]),
        ("namespaces/-", 4, [4, 4, 2]),
        ("namespaces/-", 100_000, [10]),
        ("namespaces/none", 3, [0]),
    ],
)
async def test_list_gives_every_policy_once_in_order(
    many: PolicyRegistry, parent: str, size: int, lengths: list[int]
) -> None:
    async with serving(registry_=many) as (_, channel):
        listed = await pages(PolicyServiceStub(channel), parent, size)

    names = [name for page in listed for name in page]
    assert [len(page) for page in listed] == lengths
    assert names == sorted(set(names))


async def test_token_of_another_list_is_refused(many: PolicyRegistry) -> None:
    token = paging.token_after("namespaces/a", "namespaces/a/policies/p1")

    assert paging.name_before("namespaces/a", token) == "namespaces/a/policies/p1"
    with pytest.raises(SidecarError):
        paging.name_before("namespaces/b", token)


def test_page_stays_within_a_message() -> None:
    size = paging.MAX_PAGE_BYTES // 2
    kept, last = paging.page(["a", "b", "c"], 100, lambda _: size, str)

    assert (kept, last) == (["a", "b"], "b")


def test_page_holds_one_item_however_large() -> None:
    kept, last = paging.page(["a", "b"], 100, lambda _: paging.MAX_PAGE_BYTES + 1, str)

    assert (kept, last) == (["a"], "a")


async def validate(
    stub: PolicyServiceStub, source: str | policy_pb2.Policy
) -> policy_pb2.ValidatePolicyResponse:
    if isinstance(source, str):
        return await stub.ValidatePolicy(policy_pb2.ValidatePolicyRequest(yaml=source))
    return await stub.ValidatePolicy(policy_pb2.ValidatePolicyRequest(policy=source))


@pytest.mark.parametrize(("max_prompt_tokens", "doubted"), [(5, True), (6, False)])
async def test_policy_that_takes_more_than_half_of_the_prompt_is_doubtful(
    max_prompt_tokens: int, doubted: bool
) -> None:
    checked = registry()
    checked.max_prompt_tokens = max_prompt_tokens
    async with serving(registry_=checked) as (_, channel):
        response = await validate(PolicyServiceStub(channel), policy_message())

    assert response.valid
    said = [each for each in response.findings if "take 3 of the 5 tokens" in each.message]
    assert [each.field for each in said] == ["policy.routes"] * doubted


@pytest.mark.parametrize("source", [YAML, policy_message()], ids=["yaml", "message"])
async def test_valid_policy_comes_back_with_digest_and_size(
    policies: PolicyServiceStub, source: str | policy_pb2.Policy
) -> None:
    response = await validate(policies, source)

    assert response.valid
    assert {each.severity for each in response.findings} == {policy_pb2.SEVERITY_WARNING}
    assert [route.name for route in response.policy.routes] == ["billing"]
    assert response.policy.digest.startswith("sha256:")
    assert response.policy.revision == 0
    assert response.prefix_tokens == 3
    assert response.max_prompt_tokens == 512


def message(edit: Callable[[policy_pb2.Policy], object]) -> policy_pb2.Policy:
    edited = policy_message()
    edit(edited)
    return edited


@pytest.mark.parametrize(
    ("source", "field", "line"),
    [
        (YAML.replace("acme/fast]", "acme/fats]"), "default.models[0]", 5),
        (YAML.replace("name: billing", "name: other"), "routes[0].name", 7),
        (YAML + "    colour: red\n", "routes[0].colour", 10),
        ("name: [", "", 1),
        (message(lambda p: setattr(p, "name", "x/y")), "policy.name", 0),
        (
            message(lambda p: setattr(p.routes[0].models, "preference", 17)),
            "policy.routes[0].models.preference",
            0,
        ),
        (
            message(lambda p: setattr(p.routes[0].models.models[0], "model", "gone")),
            "policy.routes[0].models.models[0].model",
            0,
        ),
    ],
    ids=lambda value: value[-20:] if isinstance(value, str) else "",
)
async def test_wrong_policy_is_an_answer_with_findings(
    policies: PolicyServiceStub, source: str | policy_pb2.Policy, field: str, line: int
) -> None:
    response = await validate(policies, source)

    assert not response.valid
    assert [(each.field, each.line) for each in response.findings] == [(field, line)]
    assert response.findings[0].severity == policy_pb2.SEVERITY_ERROR
    assert not response.HasField("policy")


async def test_warning_leaves_the_policy_valid(policies: PolicyServiceStub) -> None:
    response = await validate(policies, message(lambda p: p.ClearField("routes")))

    assert response.valid
    assert {each.severity for each in response.findings} == {policy_pb2.SEVERITY_WARNING}
    assert ("policy.routes", 0) in {(each.field, each.line) for each in response.findings}


@pytest.mark.parametrize(
    ("source", "untested"),
    [(YAML, ("routes", 6)), (policy_message(), ("policy.routes", 0))],
    ids=["yaml", "message"],
)
async def test_doubts_of_the_lint_are_warnings_with_their_place(
    source: str | policy_pb2.Policy, untested: tuple[str, int]
) -> None:
    def priced(id_: str, day: date | None) -> Model:
        return Model(id_, id_, input_price=1.0, output_price=2.0, prices_as_of=day)

    old = date(2020, 2, 29)
    catalog = {each.id: each for each in (priced("acme/fast", old), priced("acme/large", today()))}
    async with serving(registry_=registry(catalog=catalog)) as (_, channel):
        response = await validate(PolicyServiceStub(channel), source)

    found = {each.message.partition(":")[0]: (each.field, each.line) for each in response.findings}
    assert response.valid
    assert found['"billing"'] == untested
    [price] = [each.message for each in response.findings if "priced as of" in each.message]
    assert price.startswith('"acme/fast": priced as of more than 180 days ago')


async def test_age_from_which_prices_are_doubtful_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    day = date(2026, 8, 21)
    monkeypatch.setattr("sidecar.grpc_api.policy_validation.today", lambda: day)
    model = Model("acme/fast", "f", input_price=1.0, output_price=2.0, prices_as_of=day)
    older = replace(model, prices_as_of=day - timedelta(days=2))
    checked = registry(catalog={model.id: older, "acme/large": replace(model, id="acme/large")})
    for days, doubted in ((1, True), (2, False)):
        options = ServerOptions(max_price_age_days=days)
        async with serving(registry_=checked, options=options) as (_, channel):
            response = await validate(PolicyServiceStub(channel), YAML)

        assert any("priced as of" in each.message for each in response.findings) is doubted


async def test_policy_too_large_for_the_model_is_a_finding() -> None:
    def refuse(policy: Policy) -> None:
        raise SidecarError(ErrorCode.POLICY_TOO_LARGE, "the routes take 600 tokens of 512")

    small = registry()
    small._compile_prompt = refuse  # type: ignore[assignment]
    async with serving(registry_=small) as (_, channel):
        response = await validate(PolicyServiceStub(channel), policy_message())

    assert not response.valid
    assert [each.message for each in response.findings] == ["the routes take 600 tokens of 512"]


@pytest.mark.parametrize("source", [YAML, policy_message()], ids=["yaml", "message"])
async def test_policies_are_compiled_one_at_a_time_beside_the_event_loop(
    source: str | policy_pb2.Policy,
) -> None:
    one = threading.Lock()
    event_loop = threading.current_thread()

    def compile_(policy: Policy) -> StubPrompt:
        assert threading.current_thread() is not event_loop
        assert one.acquire(blocking=False)
        time.sleep(0.01)
        one.release()
        return StubPrompt(policy)

    checked = registry()
    checked._compile_prompt = compile_
    async with serving(registry_=checked) as (_, channel):
        stub = PolicyServiceStub(channel)
        responses = await asyncio.gather(*(validate(stub, source) for _ in range(5)))

    assert all(response.valid for response in responses)


async def test_what_is_known_of_a_store_that_is_away_is_read_where_no_decision_waits() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    known, read = registry(), threading.Event()
    policies = fixed_policies(known)
    policies.feed.away = "away"  # type: ignore[misc]

    async with asyncio.timeout(60):
        reading = asyncio.create_task(
            PolicyAccess(policies, known).read(lambda store: read.wait(60) and store.last_change())
        )
        await asyncio.sleep(0)
        # Where policies are compiled that decisions wait for.
        await asyncio.to_thread(read.set)
        assert await reading == 0


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (lambda p: p.routes.extend([p.routes[0]] * 600), "policy.routes"),
        (lambda p: setattr(p, "etag", "x" * 600_000), "policy"),
    ],
    ids=["routes", "bytes"],
)
async def test_policy_message_that_is_too_large_is_not_read(
    policies: PolicyServiceStub, edit: Callable[[policy_pb2.Policy], object], field: str
) -> None:
    response = await validate(policies, message(edit))

    assert [each.field for each in response.findings] == [field]
    assert not response.valid
