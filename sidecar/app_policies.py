"""The policy store of a sidecar, put together: part of the composition root."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence

import structlog

from sidecar.config import Settings, variable
from sidecar.core.errors import SidecarError
from sidecar.core.policy import Attribution
from sidecar.grpc_api.convert.resource_names import policy_name
from sidecar.grpc_api.listening import is_loopback
from sidecar.grpc_api.policy_access import Policies
from sidecar.inference.breaker import BreakerState
from sidecar.observability.metrics import PolicyStoreState, RefusedPolicy
from sidecar.policies import load_policies
from sidecar.policies.stores import (
    FileStore,
    InvalidFilesError,
    PolicyStore,
    PolicyWriting,
    now,
    open_store,
)
from sidecar.routing import CompiledPolicy, PolicyRegistry, Target
from sidecar.routing.live import LivePolicies

_log = structlog.get_logger(__name__)

_AGAIN_S, _AGAIN_AT_MOST_S = 0.1, 2.0
"""How long after a prefix was refused the model server is asked for it again: twice as long each
time."""


class PolicySourceError(Exception):
    """No policies can be had; the text says what to do."""


def open_policies(settings: Settings) -> PolicyStore:
    """The store that the settings name, filled from the files they name if it is empty.

    Raises:
        PolicySourceError: it cannot be used, or the files have errors.
    """
    url, paths = settings.policy_store.url, settings.policies.paths
    if not url and not paths:
        raise PolicySourceError(
            "policies.paths is empty; name at least one file or folder with policies and the "
            "model catalog, or a database in policy_store.url"
        )
    try:
        if not url:
            files = FileStore(paths)
            for finding in files.findings:
                _log.warning("policy", finding=str(finding))
            return files
        store = open_store(url)
    except InvalidFilesError as error:
        raise PolicySourceError(str(error)) from None
    except SidecarError as error:
        raise PolicySourceError(f"policy_store.url: {error}") from None
    if paths:
        _seed(store, settings)
    return store


def _seed(store: PolicyStore, settings: Settings) -> None:
    assert isinstance(store, PolicyWriting)
    if store.last_change():
        _log.info("policies.paths is not read: the policy store has policies of its own")
        return
    found = load_policies(settings.policies.paths, pipes=False)
    if not found.valid:
        raise PolicySourceError(str(InvalidFilesError(found)))
    # Names of files need not be UTF-8.
    files = ", ".join(found.files).encode(errors="backslashreplace").decode()
    attribution = Attribution("sidecar", f"from {files}"[:2000], now())
    made = store.seed(found.catalog, found.policies, attribution)
    _log.info("policy store filled", changes=made)


def require_default(settings: Settings, known: Collection[str]) -> None:
    """Raises PolicySourceError if `known`, resource names, lack the policy of requests that name
    none."""
    field = "policies.default_policy"
    name = policy_name(settings.policies.default_policy, field, bare=True).resource_name
    if name not in known:
        listed = f" to one of these: {', '.join(sorted(known)[:10])}" if known else ""
        raise PolicySourceError(
            f"{field}: there is no policy {name} for requests that name none; "
            f"name one so, or set {variable('policies', 'default_policy')}{listed}"
        )


def begin_live(
    store: PolicyStore, registry: PolicyRegistry, targets: Iterable[Target], settings: Settings
) -> LivePolicies:
    """What is in the store is in force when this returns, and is followed from then on.

    Raises:
        PolicySourceError: a file has a policy that the routing model cannot take, or the files lack
            the default policy.
        SidecarError: STORE_UNAVAILABLE.
    """
    held = list(targets)

    async def warm(compiled: CompiledPolicy) -> None:
        end = time.monotonic() + settings.triton.warm_timeout_ms / 1000
        before = registry.find(compiled.ref.name)
        present = before.prompt.prefix_ids if before is not None and before.prompt else ()
        places = _places(held, before)
        await asyncio.gather(*(_warm_at(each, compiled, present, end) for each in places))

    def in_use(compiled: CompiledPolicy) -> bool:
        return any(_holds(target, compiled) for target in held)

    live = LivePolicies(store, registry, warm, in_use, settings.policy_store.poll_ms / 1000)
    live.begin()
    if isinstance(store, FileStore):
        # Whoever starts it is there to correct the files.
        for refusal in live.refusals.values():
            raise PolicySourceError(f"{refusal.name}: {refusal.why}")
        require_default(settings, [each.policy.resource_name for each in registry.records()])
    elif registry.find(registry.default_name) is None:
        _log.warning(
            "the default policy is not in the policy store; requests that name no policy are "
            "refused until it is",
            policy=registry.default_name,
        )
    return live


def _places(targets: Sequence[Target], present: CompiledPolicy | None) -> Sequence[Target]:
    """Where the next revision is computed: where the present one is. With affinity each policy has
    a place of its own in the servers' memory."""
    return [each for each in targets if present is None or _holds(each, present)]


def _holds(target: Target, compiled: CompiledPolicy) -> bool:
    return target.warmth.holds(compiled.ref.digest)


async def _warm_at(
    target: Target, compiled: CompiledPolicy, present: Sequence[int], end: float
) -> None:
    """Returns when the target holds the prefix, is not being asked, or at `end`."""
    again_s = _AGAIN_S
    try:
        while (
            compiled.prompt is not None
            and not _holds(target, compiled)
            and target.model.state is BreakerState.CLOSED
            and (left_s := end - time.monotonic()) > 0
        ):
            warming = target.warmth.succeed(compiled, target.model, present)
            if warming is not None:
                await asyncio.wait({warming}, timeout=left_s)
            if not _holds(target, compiled):
                # It was refused, or too many others are computed.
                await asyncio.sleep(min(again_s, max(end - time.monotonic(), 0)))
                again_s = min(again_s * 2, _AGAIN_AT_MOST_S)
    except asyncio.CancelledError:
        target.warmth.abandon(compiled)
        raise


def api_policies(settings: Settings, store: PolicyStore, live: LivePolicies) -> Policies:
    """The policies as the API offers them."""
    server = settings.server
    if not settings.policy_store.writes:
        refused = "policy_store.writes is off; change policies where the store is kept"
        return Policies(store, live, refused, sockets_write=False)
    if (
        server.grpc_address
        and not is_loopback(server.grpc_address)
        and server.tls_client_ca is None
    ):
        refused = (
            f"server.grpc_address is {server.grpc_address}, which others can reach, and callers "
            "are not authenticated; write through server.uds_path or a sidecar on a loopback "
            "address, or ask callers for a certificate by server.tls_client_ca"
        )
        return Policies(store, live, refused)
    return Policies(store, live)


def store_state(live: LivePolicies) -> PolicyStoreState:
    """For metrics and /status."""
    return PolicyStoreState(
        problem=live.problem,
        change=live.snapshot.change,
        refused=tuple(
            RefusedPolicy(each.name, each.revision, each.in_force, each.why)
            for each in live.refusals.values()
        ),
    )
