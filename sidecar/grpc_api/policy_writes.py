"""The writes of PolicyService."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.core.decision import RoutingRequest
from sidecar.core.errors import ErrorCode, FieldViolation, SidecarError
from sidecar.core.policy import Policy, PolicyRecord
from sidecar.grpc_api.context import Context
from sidecar.grpc_api.convert.catalogs import catalog_to_core, catalog_to_proto
from sidecar.grpc_api.convert.policies import proto_path, record_to_proto
from sidecar.grpc_api.convert.policy_writes import (
    check_mask,
    merged,
    with_paths,
    write_note,
    written_policy,
)
from sidecar.grpc_api.convert.resource_names import namespace, policy_name
from sidecar.grpc_api.convert.violations import Violations, shown
from sidecar.grpc_api.policy_access import PolicyAccess
from sidecar.grpc_api.protocols import Router
from sidecar.policies.editing import PolicyEditing, RefusedPolicyError
from sidecar.policies.examples import Example, ExampleResult, examples_of, result_of
from sidecar.policies.stores import PolicyStore, WriteNote

_TRIES = 5
_AGAIN_S = 0.5
_CATCH_UP_S = 5.0
_NONE_YET = "0"
"""As an etag: of a policy that there is not. No revision has it."""

Change = Callable[[PolicyEditing, WriteNote, bool], PolicyRecord]
"""Makes the change, or with True says what it would make."""


class PolicyWrites:
    """Reads requests of writes, has the changes made, and says what came of them."""

    def __init__(self, access: PolicyAccess, router: Router) -> None:
        self._access = access
        self._router = router

    async def create(
        self, request: policy_pb2.CreatePolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        violations = Violations()
        parent = namespace(request.parent, "parent")
        name = f"namespaces/{parent}/policies/{request.policy_id}"
        policy_name(name, "policy_id")
        if request.policy.name not in ("", name):
            violations.add(
                "policy.name", f"{shown(request.policy.name)} is not {name}; leave it empty"
            )
        note = write_note(request, "", violations)
        violations.raise_if_any()
        message = policy_pb2.Policy()
        message.CopyFrom(request.policy)
        message.name = name

        def change(editing: PolicyEditing, note: WriteNote, only: bool) -> PolicyRecord:
            return editing.create(written_policy(message, "policy"), note, only)

        return await self._policy(name, change, note, request, context)

    async def update(
        self, request: policy_pb2.UpdatePolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        violations = Violations()
        name = request.policy.name
        policy_name(name, "policy.name")
        fields = check_mask(request.update_mask, violations)
        note = write_note(request, request.policy.etag, violations)
        violations.raise_if_any()

        def edit(present: Policy) -> Policy:
            return written_policy(merged(present, request.policy, fields), "policy")

        def change(editing: PolicyEditing, note: WriteNote, only: bool) -> PolicyRecord:
            try:
                return editing.update(name, edit, note, only)
            except SidecarError as error:
                missing = error.code is ErrorCode.POLICY_NOT_FOUND and note.etag in ("", _NONE_YET)
                if not (missing and request.allow_missing):
                    raise
            new = replace(note, etag="")
            try:
                return editing.create(written_policy(request.policy, "policy"), new, only)
            except SidecarError as error:
                if error.code is not ErrorCode.POLICY_EXISTS:
                    raise
                # Somebody else has created it since; unless it was deleted, it can be updated now.
                with suppress(SidecarError):
                    return editing.update(name, edit, note, only)
                raise

        if request.require_examples_pass and not note.etag:
            # What is tested is what is written: the policy as it is now, and no other.
            note = replace(note, etag=await self._access.ask(_etag_of(name)))
        return await self._policy(name, change, note, request, context)

    async def delete(
        self, request: policy_pb2.DeletePolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        def change(editing: PolicyEditing, note: WriteNote, only: bool) -> PolicyRecord:
            return editing.delete(request.name, note, only)

        return await self._named(change, request, context)

    async def undelete(
        self, request: policy_pb2.UndeletePolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        def change(editing: PolicyEditing, note: WriteNote, only: bool) -> PolicyRecord:
            return editing.undelete(request.name, note, only)

        return await self._named(change, request, context)

    async def rollback(
        self, request: policy_pb2.RollbackPolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        def change(editing: PolicyEditing, note: WriteNote, only: bool) -> PolicyRecord:
            return editing.rollback(request.name, request.revision, note, only)

        if request.revision < 1:
            violations = Violations()
            violations.add("revision", f"{request.revision} is no revision; they count from 1")
            violations.raise_if_any()
        return await self._named(change, request, context)

    async def update_catalog(
        self, request: policy_pb2.UpdateModelCatalogRequest, context: Context
    ) -> policy_pb2.ModelCatalog:
        violations = Violations()
        note = write_note(request, request.model_catalog.etag, violations)
        models = catalog_to_core(request.model_catalog, "model_catalog", violations)
        violations.raise_if_any()
        try:
            record = await self._access.write(
                "the model catalog",
                context,
                lambda editing: editing.update_catalog(models, note, request.validate_only),
            )
        except RefusedPolicyError as error:
            raise with_paths(error, "model_catalog") from None
        return catalog_to_proto(record)

    async def _named(
        self,
        change: Change,
        request: policy_pb2.DeletePolicyRequest
        | policy_pb2.UndeletePolicyRequest
        | policy_pb2.RollbackPolicyRequest,
        context: Context,
    ) -> policy_pb2.Policy:
        violations = Violations()
        policy_name(request.name, "name")
        note = write_note(request, request.etag, violations)
        violations.raise_if_any()
        return await self._policy(request.name, change, note, request, context)

    async def _policy(
        self,
        name: str,
        change: Change,
        note: WriteNote,
        request: _PolicyRequest,
        context: Context,
    ) -> policy_pb2.Policy:
        async def make(note: WriteNote, only: bool) -> PolicyRecord:
            try:
                return await self._access.write(
                    name, context, lambda editing: change(editing, note, only)
                )
            except RefusedPolicyError as error:
                raise with_paths(error, "policy") from None

        if getattr(request, "require_examples_pass", False):
            tested = await make(note, only=True)
            if tested.change:
                return record_to_proto(tested)  # Made by the same request before.
            await self._require_examples(tested.policy)
        return record_to_proto(await make(note, only=request.validate_only))

    async def _routed(self, example: Example, policy: Policy) -> ExampleResult:
        """What becomes of an example; asked again where the routing model, which reads the policy
        for the first time, was late."""
        # By itself: what was tried before must not keep its route.
        request = RoutingRequest(example.conversation, policy=policy, trial=True)
        for attempt in range(_TRIES):
            result = result_of(example, await self._router.decide(request))
            if result.decided or attempt == _TRIES - 1:
                return result
            await asyncio.sleep(_AGAIN_S)
        raise AssertionError("returned in the last round")

    async def _caught_up(self) -> None:
        """Returns when what the store holds now, such as models that were added a moment ago, has
        reached the router; or after a while, and then the router says what it lacks."""
        number = await self._access.ask(lambda store: store.last_change())
        with suppress(TimeoutError):
            async with asyncio.timeout(_CATCH_UP_S):
                await self._access.feed.beyond(number - 1)

    async def _require_examples(self, policy: Policy) -> None:
        """Raises SidecarError EXAMPLES_FAILED."""
        await self._caught_up()
        failed: list[ExampleResult] = []
        for example in examples_of(policy):
            result = await self._routed(example, policy)
            if not result.passed:
                failed.append(result)
            if not result.decided:
                break  # Nor will the others be, and each would be waited for.
        if failed:
            raise SidecarError(
                ErrorCode.EXAMPLES_FAILED,
                _failure(failed),
                [
                    FieldViolation(f"policy.{proto_path(each.example.path)}", each.said)
                    for each in failed
                ],
            )


def _failure(failed: Sequence[ExampleResult]) -> str:
    if not failed[-1].decided:
        return (
            f"the routing model does not answer ({failed[-1].reason}), so that examples of the "
            "policy could not be routed; send it again when it does, or leave out "
            "require_examples_pass"
        )
    count = len(failed)
    return (
        f"{count} example{'s' if count > 1 else ''} of the policy would not be routed as it says; "
        "change the descriptions, or leave out require_examples_pass"
    )


def _etag_of(name: str) -> Callable[[PolicyStore], str]:
    def ask(store: PolicyStore) -> str:
        try:
            return store.policy(name).etag
        except SidecarError as error:
            if error.code is not ErrorCode.POLICY_NOT_FOUND:
                raise
            return _NONE_YET

    return ask


_PolicyRequest = (
    policy_pb2.CreatePolicyRequest
    | policy_pb2.UpdatePolicyRequest
    | policy_pb2.DeletePolicyRequest
    | policy_pb2.UndeletePolicyRequest
    | policy_pb2.RollbackPolicyRequest
)
