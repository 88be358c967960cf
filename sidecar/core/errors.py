"""The one list of errors a caller can see, and the exception that carries one.

Routing failures (a slow model, an open breaker, …) are not here: they never reach a caller as
errors but as `sidecar.core.decision.Reason` on a fallback decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class ErrorCode(Enum):
    """Value: (gRPC status name, HTTP status, metric label)."""

    INVALID_REQUEST = ("INVALID_ARGUMENT", 400, "invalid_request")
    INVALID_POLICY = ("INVALID_ARGUMENT", 400, "invalid_policy")
    POLICY_TOO_LARGE = ("INVALID_ARGUMENT", 400, "policy_too_large")
    POLICY_NOT_FOUND = ("NOT_FOUND", 404, "policy_not_found")
    MODEL_NOT_FOUND = ("NOT_FOUND", 404, "model_not_found")
    REVISION_NOT_FOUND = ("NOT_FOUND", 404, "revision_not_found")
    POLICY_EXISTS = ("ALREADY_EXISTS", 409, "policy_exists")
    POLICY_CONFLICT = ("ABORTED", 409, "policy_conflict")
    POLICY_IN_USE = ("FAILED_PRECONDITION", 400, "policy_in_use")
    POLICY_READ_ONLY = ("FAILED_PRECONDITION", 400, "policy_read_only")
    EXAMPLES_FAILED = ("FAILED_PRECONDITION", 400, "examples_failed")
    WRITES_REFUSED = ("PERMISSION_DENIED", 403, "writes_refused")
    CHANGES_LOST = ("OUT_OF_RANGE", 400, "changes_lost")
    STORE_UNAVAILABLE = ("UNAVAILABLE", 503, "store_unavailable")
    REQUEST_TOO_LARGE = ("RESOURCE_EXHAUSTED", 413, "request_too_large")
    UNSUPPORTED = ("UNIMPLEMENTED", 501, "unsupported")
    DRAINING = ("UNAVAILABLE", 503, "draining")
    CANCELLED = ("CANCELLED", 499, "cancelled")
    INTERNAL = ("INTERNAL", 500, "internal")

    @property
    def grpc_status(self) -> str:
        """Name of the `grpc.StatusCode`."""
        return self.value[0]

    @property
    def http_status(self) -> int:
        return self.value[1]

    @property
    def label(self) -> str:
        """Stable lower-case name for metrics and logs."""
        return self.value[2]


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field of a request: `field` is its path (`messages[2].role`), `description`
    what is wrong with which value and what to do. Never contains message content."""

    field: str
    description: str


class SidecarError(Exception):
    """An error for the caller. `str(error)` is safe to show: no message content, no secrets."""

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        violations: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """`metadata`: facts for programs, such as the etag that a write should have had."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
