"""The errors of stores, in one place, so that every store says the same."""

from __future__ import annotations

from sidecar.core.errors import ErrorCode, FieldViolation, SidecarError
from sidecar.policies.findings import quoted


class NotMadeError(SidecarError):
    """A database that is still to be made: STORE_UNAVAILABLE."""


def not_found(name: str) -> SidecarError:
    return SidecarError(
        ErrorCode.POLICY_NOT_FOUND,
        f"there is no policy {name}; ListPolicies, `sidecar policy list`, gives those there are",
    )


def exists(name: str, deleted: bool) -> SidecarError:
    if deleted:
        return SidecarError(
            ErrorCode.POLICY_EXISTS,
            f"{name} was deleted; undelete it and update it, or choose another name",
        )
    return SidecarError(
        ErrorCode.POLICY_EXISTS, f"{name} exists already; update it, or choose another name"
    )


def deleted(name: str) -> SidecarError:
    return SidecarError(ErrorCode.POLICY_NOT_FOUND, f"{name} has been deleted; undelete it first")


def not_deleted(name: str) -> SidecarError:
    return SidecarError(
        ErrorCode.POLICY_EXISTS, f"{name} is not deleted, so there is nothing to undelete"
    )


def conflict(name: str, given: str, current: str) -> SidecarError:
    return SidecarError(
        ErrorCode.POLICY_CONFLICT,
        f"etag: {quoted(given)} is not that of {name}, whose etag now is {quoted(current)}; read "
        "it again and decide whether your change still holds",
        metadata={"current_etag": current},
    )


def no_revision(name: str, revision: int, last: int) -> SidecarError:
    if 0 < revision <= last:
        return SidecarError(
            ErrorCode.REVISION_NOT_FOUND,
            f"{name}, revision {revision}, was pruned; name a later one",
        )
    if last == 0:
        kept = "there has been none"
    else:
        kept = "its only one is 1" if last == 1 else f"its revisions are 1 to {last}"
    return SidecarError(ErrorCode.REVISION_NOT_FOUND, f"{name} has no revision {revision}; {kept}")


def no_history(name: str) -> SidecarError:
    return SidecarError(
        ErrorCode.REVISION_NOT_FOUND,
        f"{name} comes from a file, which has no history here; look into the version control "
        "that keeps the file",
    )


def reused_request_id(request_id: str) -> SidecarError:
    text = f"{request_id!r} was given to another request before; make a new one for each request"
    return SidecarError(
        ErrorCode.INVALID_REQUEST,
        f"request_id: {text}",
        [FieldViolation("request_id", text)],
    )


def changes_lost(number: int, why: str) -> SidecarError:
    return SidecarError(
        ErrorCode.CHANGES_LOST,
        f"after_change: {number} {why}; list the policies and watch from the change number of "
        "the list",
    )


def unavailable(what: str, why: str, remedy: str) -> SidecarError:
    return SidecarError(
        ErrorCode.STORE_UNAVAILABLE,
        f"the policy store {what} cannot be used now: {why}; {remedy}",
    )


def not_opened(what: str, why: str, remedy: str) -> SidecarError:
    return SidecarError(
        ErrorCode.STORE_UNAVAILABLE,
        f"the policy store {what} cannot be opened: {why}; {remedy}",
    )


def not_made(what: str, why: str) -> NotMadeError:
    remedy = "name another one, or make it with `sidecar policy apply`"
    opened = not_opened(what, why, remedy)
    return NotMadeError(opened.code, opened.message)
