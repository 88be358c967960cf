"""WatchPolicies: every change once, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import CatalogRecord
from sidecar.grpc_api.context import Context
from sidecar.grpc_api.convert.catalogs import catalog_to_proto
from sidecar.grpc_api.convert.enums import CHANGE_KIND
from sidecar.grpc_api.convert.policies import record_to_proto
from sidecar.grpc_api.convert.resource_names import ALL_NAMESPACES, namespace
from sidecar.grpc_api.convert.violations import invalid
from sidecar.grpc_api.drain import Drain
from sidecar.grpc_api.policy_access import PolicyAccess
from sidecar.policies.stores import Change, UnreadableRevisionError, change_at, changes_following

FROM_NOW = -1
_AT_ONCE = 50
"""Changes held for one watcher: the rest waits in the store until it has taken these."""
_AGAIN_S = 1.0


async def watch(
    request: policy_pb2.WatchPoliciesRequest,
    context: Context,
    access: PolicyAccess,
    drain: Drain,
) -> None:
    """Sends changes until the caller goes away or the drain begins. Raises SidecarError
    CHANGES_LOST, or UnreadableRevisionError at a change of a newer version."""
    wanted = namespace(request.parent, "parent")
    if request.after_change < FROM_NOW:
        raise invalid("after_change", f"{request.after_change} is neither a change nor -1 or 0")
    ended = asyncio.Event()
    with drain.calls(ended.set):
        after = request.after_change
        if after == FROM_NOW:
            after = await access.ask(lambda store: store.last_change())
        sent = await access.ask(partial(change_at, number=after))
        # The caller learns that the call has been taken before there is anything to send. Not in
        # the task: gRPC does not remember metadata whose sending was cancelled, fails to send it
        # once more with the status, and the call never ends.
        await context.send_initial_metadata(())
        sending = asyncio.create_task(_send(after, sent, wanted, context, access))
        ending = asyncio.create_task(ended.wait())
        try:
            await asyncio.wait((sending, ending), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
        finally:
            sending.cancel()
            ending.cancel()
            await asyncio.gather(sending, ending, return_exceptions=True)


async def _send(
    after: int, sent: Change | None, wanted: str, context: Context, access: PolicyAccess
) -> None:
    """`sent`: as of `_following`."""
    while True:
        changes = await _following(after, sent, access)
        for change in changes:
            after, sent = change.number, change
            message = _message(change, wanted)
            if message is not None:
                await context.write(message)
        if len(changes) < _AT_ONCE:
            await access.feed.beyond(after)


async def _following(after: int, sent: Change | None, access: PolicyAccess) -> Sequence[Change]:
    """`sent`: the change `after`; None if it is not known."""
    limit = _AT_ONCE

    while True:
        try:
            following = partial(changes_following, number=after, seen=sent, limit=limit)
            return await access.ask(following)
        except UnreadableRevisionError:
            if limit == 1:
                raise
            limit = 1  # Those before it can be read.
        except SidecarError as error:
            # Nothing is lost while the store is away: numbers go on where they were.
            if error.code is not ErrorCode.STORE_UNAVAILABLE:
                raise
            await asyncio.sleep(_AGAIN_S)


def _message(change: Change, wanted: str) -> policy_pb2.WatchPoliciesResponse | None:
    kind = CHANGE_KIND.to_proto(change.kind)
    message = policy_pb2.WatchPoliciesResponse(change_number=change.number, kind=kind)
    if isinstance(change.record, CatalogRecord):
        message.model_catalog.CopyFrom(catalog_to_proto(change.record))
    elif wanted in (ALL_NAMESPACES, change.record.policy.namespace):
        message.policy.CopyFrom(record_to_proto(change.record))
    else:
        return None
    return message
