"""`llmrouter.v1.PolicyService`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from sidecar._generated.llmrouter.v1 import policy_pb2, policy_pb2_grpc
from sidecar.grpc_api.context import Context
from sidecar.grpc_api.convert.catalogs import catalog_to_proto
from sidecar.grpc_api.convert.policies import record_to_proto
from sidecar.grpc_api.convert.resource_names import ALL_NAMESPACES, namespace, policy_name
from sidecar.grpc_api.convert.violations import invalid
from sidecar.grpc_api.drain import Drain
from sidecar.grpc_api.paging import name_before, page, page_size, token_after
from sidecar.grpc_api.policy_access import PolicyAccess
from sidecar.grpc_api.policy_filter import Matches, policy_filter
from sidecar.grpc_api.policy_history import diff, revisions
from sidecar.grpc_api.policy_validation import validated
from sidecar.grpc_api.policy_watch import watch
from sidecar.grpc_api.policy_writes import PolicyWrites
from sidecar.grpc_api.protocols import PolicyRegistry, Router
from sidecar.policies.stores import Listed, PolicyStore, UnreadableRevisionError, name_of

_READ_AT_ONCE = 100


class PolicyService(policy_pb2_grpc.PolicyServiceServicer):
    """Reads, checks and changes policies. Method comments are in policy.proto."""

    def __init__(
        self,
        registry: PolicyRegistry,
        access: PolicyAccess,
        router: Router,
        drain: Drain,
        max_price_age_days: int,
    ) -> None:
        """`max_price_age_days`: older prices are doubtful in ValidatePolicy."""
        self._registry = registry
        self._max_price_age_days = max_price_age_days
        self._access = access
        self._drain = drain
        self._writes = PolicyWrites(access, router)
        # One: every thread that computes makes the event loop wait for the interpreter's lock.
        self._validating = ThreadPoolExecutor(1, "validate-policy")

    async def GetPolicy(  # noqa: N802 -- the method's name in the API
        self,
        request: policy_pb2.GetPolicyRequest,
        context: Context,
    ) -> policy_pb2.Policy:
        policy_name(request.name, "name")
        _check_revision(request.revision)
        if request.revision:
            return await self._access.history(
                request.name,
                lambda store: record_to_proto(store.revision(request.name, request.revision)),
            )
        return await self._access.read(lambda store: record_to_proto(store.policy(request.name)))

    async def ListPolicies(  # noqa: N802
        self,
        request: policy_pb2.ListPoliciesRequest,
        context: Context,
    ) -> policy_pb2.ListPoliciesResponse:
        wanted = namespace(request.parent, "parent")
        limit = page_size(request.page_size)
        matches = policy_filter(request.filter)
        listed = f"{request.parent} {request.show_deleted} {request.filter}"
        after = name_before(listed, request.page_token)

        def list_(store: PolicyStore) -> policy_pb2.ListPoliciesResponse:
            # Asked first: what is written meanwhile is then among the changes that follow.
            number = store.last_change()
            unreachable: list[str] = []
            following = _listed(store, wanted, after, request.show_deleted)
            policies, last = page(
                _messages(following, matches, unreachable),
                limit,
                _size_of,
                lambda message: message.name,
            )
            return policy_pb2.ListPoliciesResponse(
                policies=policies,
                next_page_token=token_after(listed, last),
                change_number=number,
                # Those behind the last one are met again by the next page.
                unreachable=[name for name in unreachable if not last or name < last],
            )

        # What was known last has no deleted ones, and a list without them would be taken for all.
        ask = self._access.ask if request.show_deleted else self._access.read
        return await ask(list_)

    async def ValidatePolicy(  # noqa: N802
        self,
        request: policy_pb2.ValidatePolicyRequest,
        context: Context,
    ) -> policy_pb2.ValidatePolicyResponse:
        if request.WhichOneof("source") is None:
            raise invalid("source", "is unset; set policy or yaml")
        # In a thread: reading a large YAML document takes seconds, the event loop has milliseconds.
        return await asyncio.get_running_loop().run_in_executor(
            self._validating, validated, request, self._registry, self._max_price_age_days
        )

    async def CreatePolicy(  # noqa: N802
        self, request: policy_pb2.CreatePolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        return await self._writes.create(request, context)

    async def UpdatePolicy(  # noqa: N802
        self, request: policy_pb2.UpdatePolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        return await self._writes.update(request, context)

    async def DeletePolicy(  # noqa: N802
        self, request: policy_pb2.DeletePolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        return await self._writes.delete(request, context)

    async def UndeletePolicy(  # noqa: N802
        self, request: policy_pb2.UndeletePolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        return await self._writes.undelete(request, context)

    async def RollbackPolicy(  # noqa: N802
        self, request: policy_pb2.RollbackPolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        return await self._writes.rollback(request, context)

    async def ListPolicyRevisions(  # noqa: N802
        self, request: policy_pb2.ListPolicyRevisionsRequest, context: Context
    ) -> policy_pb2.ListPolicyRevisionsResponse:
        policy_name(request.name, "name")
        limit = page_size(request.page_size)
        return await self._access.history(request.name, partial(revisions, request, limit))

    async def DiffPolicyRevisions(  # noqa: N802
        self, request: policy_pb2.DiffPolicyRevisionsRequest, context: Context
    ) -> policy_pb2.DiffPolicyRevisionsResponse:
        policy_name(request.name, "name")
        return await self._access.history(request.name, partial(diff, request))

    async def WatchPolicies(  # type: ignore[override]  # noqa: N802
        self, request: policy_pb2.WatchPoliciesRequest, context: Context
    ) -> None:
        # Writes by the context: a generator whose caller goes away would not be closed.
        await watch(request, context, self._access, self._drain)

    async def GetModelCatalog(  # noqa: N802
        self, request: policy_pb2.GetModelCatalogRequest, context: Context
    ) -> policy_pb2.ModelCatalog:
        _check_revision(request.revision)
        if request.revision:
            return await self._access.history(
                "the model catalog",
                lambda store: catalog_to_proto(store.catalog_revision(request.revision)),
            )
        return await self._access.read(lambda store: catalog_to_proto(store.catalog()))

    async def UpdateModelCatalog(  # noqa: N802
        self, request: policy_pb2.UpdateModelCatalogRequest, context: Context
    ) -> policy_pb2.ModelCatalog:
        return await self._writes.update_catalog(request, context)


def _check_revision(revision: int) -> None:
    if revision < 0:
        raise invalid("revision", f"{revision} is negative; send 0 for the present one")


def _listed(store: PolicyStore, wanted: str, after: str, deleted: bool) -> Iterator[Listed]:
    """All that follow, read in parts."""
    space = None if wanted == ALL_NAMESPACES else wanted
    while True:
        part = store.policies(space, after, _READ_AT_ONCE, deleted)
        yield from part
        if len(part) < _READ_AT_ONCE:
            return
        after = name_of(part[-1])


def _messages(
    listed: Iterable[Listed], matches: Matches, unreachable: list[str]
) -> Iterator[policy_pb2.Policy]:
    """Names of those that cannot be read go into `unreachable`."""
    for each in listed:
        if isinstance(each, UnreadableRevisionError):
            unreachable.append(each.name)
        elif matches(each):
            yield record_to_proto(each)


_size_of: Callable[[policy_pb2.Policy], int] = policy_pb2.Policy.ByteSize
