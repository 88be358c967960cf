"""The one mapping from errors to gRPC statuses.

A status carries `google.rpc.ErrorInfo` (reason: the name of the error code) and, for wrong fields,
`google.rpc.BadRequest`, as AIP-193 wants.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar.core.errors import ErrorCode, FieldViolation, SidecarError

DOMAIN = "llmrouter.dev"

_SHOWN_BYTES = 1024
"""Of the status text and of the violations each. A status travels in HTTP/2 trailers, percent- or
base64-encoded, and gRPC clients refuse more than 8 KiB of them by default
(GRPC_ARG_MAX_METADATA_SIZE of grpc/impl/channel_arg_names.h).
"""

DEFECT = SidecarError(ErrorCode.INTERNAL, "A defect of the sidecar; its log has the details.")
"""What a caller sees of an unexpected exception: nothing of it, since it may hold anything."""


def grpc_code(code: ErrorCode) -> grpc.StatusCode:
    return grpc.StatusCode[code.grpc_status]


def status_of(error: SidecarError) -> status_pb2.Status:
    """The status of a call that failed with `error`."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.code.name, domain=DOMAIN, metadata=error.metadata)
    ]
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=each.field, description=each.description
                    )
                    for each in shortened(error.violations)
                ]
            )
        )
    return status_pb2.Status(
        code=grpc_code(error.code).value[0],
        message=_cut(error.message),
        details=[_packed(detail) for detail in details],
    )


def route_error_of(error: SidecarError) -> routing_pb2.RouteError:
    """The error of one request of a batch or a stream."""
    return routing_pb2.RouteError(
        code=grpc_code(error.code).value[0],
        reason=error.code.name,
        message=_cut(error.message),
        field_violations=[
            routing_pb2.FieldViolation(field=each.field, description=each.description)
            for each in shortened(error.violations)
        ],
    )


def shortened(violations: Sequence[FieldViolation]) -> Sequence[FieldViolation]:
    """The first violations that fit into a status, then one that counts the rest."""
    kept: list[FieldViolation] = []
    size = 0
    for number, violation in enumerate(violations):
        cut = FieldViolation(_cut(violation.field), _cut(violation.description))
        size += len(cut.field.encode()) + len(cut.description.encode())
        if size > _SHOWN_BYTES and kept:
            rest = f"{len(violations) - number} more wrong fields are not listed"
            return [*kept, FieldViolation(violation.field, rest)]
        kept.append(cut)
    return kept


def _cut(text: str) -> str:
    encoded = text.encode()
    if len(encoded) <= _SHOWN_BYTES:
        return text
    return encoded[:_SHOWN_BYTES].decode(errors="ignore") + "…"


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
