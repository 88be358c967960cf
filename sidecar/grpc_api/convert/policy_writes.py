"""What the requests of writes have in common, and what they ask to change."""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

from google.protobuf.field_mask_pb2 import FieldMask

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import Attribution, Policy
from sidecar.grpc_api.convert.policies import (
    oversize,
    policy_to_core,
    policy_to_proto,
    proto_path,
)
from sidecar.grpc_api.convert.violations import Violations, shown
from sidecar.policies.editing import RefusedPolicyError
from sidecar.policies.notes import note_violations
from sidecar.policies.stores import WriteNote, now

MAX_REQUEST_ID = 64

_REQUEST_ID = re.compile(rf"[!-~]{{0,{MAX_REQUEST_ID}}}")
_FIXED = {"name", "revision", "etag", "digest", "update_time", "revision_info", "delete_time"}
CHANGEABLE = tuple(
    field.name for field in policy_pb2.Policy.DESCRIPTOR.fields if field.name not in _FIXED
)
"""Fields of a policy that a writer chooses."""


class WriteRequest(Protocol):
    """What every request of a write has."""

    @property
    def note(self) -> policy_pb2.ChangeNote: ...

    @property
    def request_id(self) -> str: ...

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes: ...  # noqa: N802


def write_note(request: WriteRequest, etag: str, violations: Violations) -> WriteNote:
    """The note of a write whose author is what the caller says it is."""
    author, message = request.note.author, request.note.message
    for wrong in note_violations(author, message):
        violations.add(f"note.{wrong.field}", wrong.description)
    if not _REQUEST_ID.fullmatch(request.request_id):
        violations.add(
            "request_id",
            f"{shown(request.request_id)} is not 1 to {MAX_REQUEST_ID} printable ASCII characters; "
            "send a UUID",
        )
    return WriteNote(
        Attribution(author, message, now(), verified=False),
        etag,
        request.request_id,
        _digest(request) if request.request_id else "",
    )


def _digest(request: WriteRequest) -> str:
    kind = type(request).__name__.encode()
    content = request.SerializeToString(deterministic=True)
    return "sha256:" + hashlib.sha256(kind + b"\0" + content).hexdigest()


def check_mask(mask: FieldMask, violations: Violations) -> tuple[str, ...]:
    """Names of the fields to take; all that can be changed for an empty mask."""
    if not mask.paths or list(mask.paths) == ["*"]:
        return CHANGEABLE
    for index, path in enumerate(mask.paths):
        if path not in CHANGEABLE:
            violations.add(
                f"update_mask.paths[{index}]",
                f"{shown(path)} cannot be changed by itself; use {', '.join(CHANGEABLE)}",
            )
    return tuple(mask.paths)


def merged(present: Policy, given: policy_pb2.Policy, fields: tuple[str, ...]) -> policy_pb2.Policy:
    """`present` with the `fields` of `given`, unset ones included."""
    message = policy_to_proto(present)
    for name in fields:
        message.ClearField(name)  # type: ignore[arg-type]
    message.MergeFrom(_only(given, fields))
    return message


def _only(given: policy_pb2.Policy, fields: tuple[str, ...]) -> policy_pb2.Policy:
    kept = policy_pb2.Policy()
    kept.CopyFrom(given)
    for field, _ in given.ListFields():
        if field.name not in fields:
            kept.ClearField(field.name)  # type: ignore[arg-type]
    return kept


def written_policy(message: policy_pb2.Policy, path: str) -> Policy:
    """The policy of a write. Raises SidecarError INVALID_POLICY for what cannot be read; its rules
    are checked where it is written."""
    violations = Violations()
    if (too_much := oversize(message, path)) is not None:
        violations.extend([too_much])
        violations.raise_if_any(ErrorCode.INVALID_POLICY)
    policy = policy_to_core(message, path, violations)
    violations.raise_if_any(ErrorCode.INVALID_POLICY)
    return policy


def with_paths(error: RefusedPolicyError, path: str) -> SidecarError:
    """The error with the paths of fields as the request has them."""
    violations = Violations()
    for finding in error.findings:
        where = proto_path(finding.path) if path == "policy" else finding.path
        violations.add(f"{path}.{where}" if where else path, finding.message)
    try:
        violations.raise_if_any(ErrorCode.INVALID_POLICY)
    except SidecarError as placed:
        return placed
    raise AssertionError("a refusal has findings") from error
