"""ListPolicyRevisions and DiffPolicyRevisions."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.grpc_api.convert.policies import record_to_proto
from sidecar.grpc_api.convert.violations import invalid
from sidecar.grpc_api.paging import name_before, page, token_after
from sidecar.policies.differences import differences, unified_diff, value_text
from sidecar.policies.stores import Listed, PolicyHistory, UnreadableRevisionError

_READ_AT_ONCE = 50
_REVISION = re.compile("[0-9]{1,18}")
"""What fits into 64 bits."""


def revisions(
    request: policy_pb2.ListPolicyRevisionsRequest, limit: int, store: PolicyHistory
) -> policy_pb2.ListPolicyRevisionsResponse:
    """A page of revisions. Raises SidecarError as the store does."""
    last = name_before(request.name, request.page_token)
    if last and not _REVISION.fullmatch(last):
        raise invalid("page_token", "is not a token of this list; send none for the first page")
    unreachable: list[int] = []

    def messages() -> Iterator[policy_pb2.Policy]:
        for each in _latest_first(store, request.name, int(last) if last else None):
            if isinstance(each, UnreadableRevisionError):
                unreachable.append(each.revision)
            else:
                yield record_to_proto(each)

    kept, following = page(
        messages(), limit, policy_pb2.Policy.ByteSize, lambda message: str(message.revision)
    )
    return policy_pb2.ListPolicyRevisionsResponse(
        revisions=kept,
        next_page_token=token_after(request.name, following),
        # Those behind the last one are met again by the next page.
        unreachable=[
            f"{request.name}@{revision}"
            for revision in unreachable
            if not following or revision > int(following)
        ],
    )


def _latest_first(store: PolicyHistory, name: str, before: int | None) -> Iterator[Listed]:
    while True:
        part = store.revisions(name, before, _READ_AT_ONCE)
        yield from part
        if len(part) < _READ_AT_ONCE:
            return
        before = part[-1].revision


def diff(
    request: policy_pb2.DiffPolicyRevisionsRequest, store: PolicyHistory
) -> policy_pb2.DiffPolicyRevisionsResponse:
    """How two revisions differ. Raises SidecarError as the store does."""
    for field in ("from_revision", "to_revision"):
        if getattr(request, field) < 0:
            raise invalid(field, f"{getattr(request, field)} is negative")
    last = store.revisions(request.name, None, 1)[0].revision
    newer = request.to_revision or last
    older = request.from_revision or max(newer - 1, 1)
    before = store.revision(request.name, older).policy
    after = store.revision(request.name, newer).policy
    names = (f"{request.name}@{older}", f"{request.name}@{newer}")
    return policy_pb2.DiffPolicyRevisionsResponse(
        from_revision=older,
        to_revision=newer,
        differences=[
            policy_pb2.Difference(
                path=each.path, before=value_text(each.before), after=value_text(each.after)
            )
            for each in differences(before, after)
        ],
        unified_diff=unified_diff(before, after, names),
    )
