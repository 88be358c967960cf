"""Policies of a running sidecar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.cli.connection import connect, no_answer
from sidecar.cli.failures import Failure
from sidecar.cli.policy_place import Found, PlaceFailure, ended, said, with_fields
from sidecar.cli.tls_options import Tls
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import CatalogRecord, Model, Policy, PolicyRecord
from sidecar.grpc_api.convert.catalogs import catalog_record_to_core, models_to_proto
from sidecar.grpc_api.convert.enums import CHANGE_KIND
from sidecar.grpc_api.convert.policies import policy_to_proto, record_to_core
from sidecar.policies.stores import UNREADABLE, UNREADABLE_ETAG, Change, ChangeKind, WriteNote

T = TypeVar("T")
M = TypeVar("M")

_SERVICE = "/llmrouter.v1.PolicyService/"
_EXAMPLES_TIMEOUT_S = 600.0
"""The routing model reads each policy for the first time, and each example."""

_KEEPALIVE_MS, _KEEPALIVE_TIMEOUT_MS = 10_000, 5_000
"""While a call goes on: who watches has no deadline, and a sidecar whose machine or network is gone
says nothing. Sidecars disconnect who pings more often than every five seconds."""


class SidecarPlace:
    """PolicyService at `address`: `host:port` or `unix:path`."""

    def __init__(self, address: str, timeout_s: float, tls: Tls | None = None) -> None:
        """Raises Failure for files that TLS cannot use."""
        self._address = address
        self._timeout_s = timeout_s
        self._tls = tls
        self._channel = connect(
            address,
            tls,
            ("grpc.max_receive_message_length", -1),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
            # Without it a ping's answer is waited for a minute, whatever the keepalive's timeout.
            ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
            # Pings go on where no change comes for hours.
            ("grpc.http2.max_pings_without_data", 0),
        )

    def get(self, name: str, revision: int = 0) -> PolicyRecord:
        request = policy_pb2.GetPolicyRequest(name=name, revision=revision)
        return self._policy("GetPolicy", request)

    def list(self, namespace: str, text: str = "", deleted: bool = False) -> Found:
        request = policy_pb2.ListPoliciesRequest(
            parent=f"namespaces/{namespace}", filter=text, show_deleted=deleted
        )
        found: list[PolicyRecord] = []
        unreadable: list[str] = []
        # Of a deleted policy that cannot be read nothing but its history is left.
        command = "history" if deleted else "get"
        while True:
            page = self._call("ListPolicies", request, policy_pb2.ListPoliciesResponse.FromString)
            found += [_understood(record_to_core, each) for each in page.policies]
            unreadable += [_unreadable(name, command) for name in page.unreachable]
            if not page.next_page_token:
                return Found(found, unreadable)
            request.page_token = page.next_page_token

    def history(self, name: str, limit: int) -> Found:
        request = policy_pb2.ListPolicyRevisionsRequest(name=name, page_size=min(limit, 1000))
        found: list[PolicyRecord] = []
        unreadable: list[str] = []
        while True:
            page = self._call(
                "ListPolicyRevisions", request, policy_pb2.ListPolicyRevisionsResponse.FromString
            )
            found += [_understood(record_to_core, each) for each in page.revisions]
            unreadable += map(_unreadable, page.unreachable)
            if not page.next_page_token or len(found) >= limit:
                return Found(found[:limit], unreadable)
            request.page_token = page.next_page_token

    def catalog(self, revision: int = 0) -> CatalogRecord:
        request = policy_pb2.GetModelCatalogRequest(revision=revision)
        record = self._catalog("GetModelCatalog", request)
        if revision not in (0, record.revision):
            raise Failure(
                "the sidecar is older and gives the present model catalog alone; update it"
            )
        return record

    def create(
        self, policy: Policy, note: WriteNote, dry_run: bool, examples_pass: bool = False
    ) -> PolicyRecord:
        request = policy_pb2.CreatePolicyRequest(
            parent=f"namespaces/{policy.namespace}",
            policy_id=policy.name,
            policy=policy_to_proto(policy),
            note=_note(note),
            validate_only=dry_run,
            require_examples_pass=examples_pass,
        )
        return self._policy("CreatePolicy", request, examples_pass)

    def update(
        self, policy: Policy, note: WriteNote, dry_run: bool, examples_pass: bool = False
    ) -> PolicyRecord:
        message = policy_to_proto(policy)
        message.etag = note.etag
        request = policy_pb2.UpdatePolicyRequest(
            policy=message,
            note=_note(note),
            validate_only=dry_run,
            require_examples_pass=examples_pass,
        )
        return self._policy("UpdatePolicy", request, examples_pass)

    def delete(self, name: str, note: WriteNote, dry_run: bool) -> PolicyRecord:
        request = policy_pb2.DeletePolicyRequest(
            name=name, etag=note.etag, note=_note(note), validate_only=dry_run
        )
        return self._policy("DeletePolicy", request)

    def undelete(self, name: str, note: WriteNote, dry_run: bool) -> PolicyRecord:
        request = policy_pb2.UndeletePolicyRequest(
            name=name, etag=note.etag, note=_note(note), validate_only=dry_run
        )
        return self._policy("UndeletePolicy", request)

    def rollback(self, name: str, revision: int, note: WriteNote, dry_run: bool) -> PolicyRecord:
        request = policy_pb2.RollbackPolicyRequest(
            name=name,
            revision=revision,
            etag=note.etag,
            note=_note(note),
            validate_only=dry_run,
        )
        return self._policy("RollbackPolicy", request)

    def update_catalog(
        self, models: Sequence[Model], note: WriteNote, dry_run: bool
    ) -> CatalogRecord:
        message = models_to_proto(models)
        message.etag = note.etag
        request = policy_pb2.UpdateModelCatalogRequest(
            model_catalog=message, note=_note(note), validate_only=dry_run
        )
        return self._catalog("UpdateModelCatalog", request)

    def validated(self, policy: Policy) -> policy_pb2.ValidatePolicyResponse:
        """What the sidecar says of `policy`, which it does not keep. Raises PlaceFailure."""
        request = policy_pb2.ValidatePolicyRequest(policy=policy_to_proto(policy))
        return self._call("ValidatePolicy", request, policy_pb2.ValidatePolicyResponse.FromString)

    def watch(self, after: int | None, tell: Callable[[str], None]) -> Iterator[Change]:
        request = policy_pb2.WatchPoliciesRequest(
            parent="namespaces/-", after_change=-1 if after is None else after
        )
        watch = self._channel.unary_stream(
            f"{_SERVICE}WatchPolicies",
            request_serializer=policy_pb2.WatchPoliciesRequest.SerializeToString,
            response_deserializer=policy_pb2.WatchPoliciesResponse.FromString,
        )
        seen = self._last_change() if after is None else after
        try:
            for message in watch(request):
                seen = message.change_number
                yield _understood(_change, message)
        except grpc.RpcError as error:
            raise ended(self._failure(error), seen) from None

    def close(self) -> None:
        self._channel.close()

    def _last_change(self) -> int:
        request = policy_pb2.ListPoliciesRequest(parent="namespaces/-", page_size=1)
        read = policy_pb2.ListPoliciesResponse.FromString
        return self._call("ListPolicies", request, read).change_number

    def _policy(self, method: str, request: Any, examples: bool = False) -> PolicyRecord:
        timeout_s = max(self._timeout_s, _EXAMPLES_TIMEOUT_S) if examples else self._timeout_s
        read = policy_pb2.Policy.FromString
        return _understood(record_to_core, self._call(method, request, read, timeout_s))

    def _catalog(self, method: str, request: Any) -> CatalogRecord:
        read = policy_pb2.ModelCatalog.FromString
        return _understood(catalog_record_to_core, self._call(method, request, read))

    def _call(
        self, method: str, request: Any, read: Callable[[bytes], T], timeout_s: float | None = None
    ) -> T:
        # The generated stubs are typed for asyncio alone.
        call = self._channel.unary_unary(
            f"{_SERVICE}{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=read,
        )
        try:
            return call(request, timeout=timeout_s or self._timeout_s)
        except grpc.RpcError as error:
            raise self._failure(error) from None

    def _failure(self, error: grpc.RpcError) -> PlaceFailure:
        call = cast(grpc.Call, error)
        status = rpc_status.from_call(call)
        if status is None:
            if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return PlaceFailure(
                    None,
                    f"the sidecar at {self._address} did not answer in time; what it was asked to "
                    "change may have been changed or not",
                )
            if call.code() is grpc.StatusCode.UNAVAILABLE:
                why = no_answer(self._address, self._tls, call.details())
                return PlaceFailure(
                    None,
                    f"{why}; start one with `sidecar up`, or name another, a database or a file "
                    "with --at",
                )
            return PlaceFailure(ErrorCode.INTERNAL, f"{call.details()} ({call.code().name})")
        info, wrong = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(wrong)
        code = ErrorCode.__members__.get(info.reason, ErrorCode.INTERNAL)
        fields = [(each.field, each.description) for each in wrong.field_violations]
        _, _, revision = info.metadata.get(UNREADABLE, "").rpartition("@")
        # An older sidecar does not tell the etag.
        etag = info.metadata.get(UNREADABLE_ETAG, "")
        return PlaceFailure(code, with_fields(status.message, fields), int(revision or 0), etag)


def _understood(read: Callable[[M], T], message: M) -> T:
    """What `read` makes of a message. Raises PlaceFailure for one of a newer sidecar."""
    try:
        return read(message)
    except SidecarError as error:
        text = f"this version cannot read what the sidecar sent, update it: {said(error)}"
        raise PlaceFailure(error.code, text) from None


def _unreadable(name: str, command: str = "get") -> str:
    policy, _, revision = name.partition("@")
    option = f" --revision {revision}" if revision else ""
    return (
        f"{name} cannot be read by the sidecar; `sidecar policy {command} {policy}{option}` says "
        "what is wrong"
    )


def _note(note: WriteNote) -> policy_pb2.ChangeNote:
    attribution = note.attribution
    return policy_pb2.ChangeNote(author=attribution.author, message=attribution.message)


def _change(message: policy_pb2.WatchPoliciesResponse) -> Change:
    if message.HasField("model_catalog"):
        record = catalog_record_to_core(message.model_catalog)
        return Change(message.change_number, ChangeKind.CATALOG, record)
    policy = record_to_core(message.policy)
    kind = CHANGE_KIND.to_core(message.kind)
    if kind is None:  # An older sidecar does not tell.
        kind = ChangeKind.DELETE if policy.deleted else ChangeKind.UPDATE
    return Change(message.change_number, kind, policy)
