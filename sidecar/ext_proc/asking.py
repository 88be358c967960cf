"""Whether a request wants to be routed, and how."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sidecar.core.decision import PolicyName, RoutingRequest
from sidecar.core.policy import ApiDialect, Catalog, Model
from sidecar.ext_proc.dialects.keys import bounded_key
from sidecar.ext_proc.options import Asking
from sidecar.ext_proc.request import HttpHead, Passed, PassReason, Understood

_PORT = re.compile(r":\d+$")
_NAME = re.compile(
    r"(?:namespaces/([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)/policies/)?([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)"
)


_NO_TRAILERS = "x-llm-no-trailers"


@dataclass(frozen=True, slots=True)
class RouteSays:
    """What Envoy's filter or route says, by the initial metadata that it is set up to send with
    each stream (`grpc_initial_metadata` of `ExtProcPerRoute`): unlike a header, no client can say
    it.

    Args:
        no_trailers: a request with trailers is refused; see docs/ext-proc.md.
    """

    policy: str = ""
    no_trailers: bool = False

    @classmethod
    def of(cls, metadata: Iterable[tuple[str, str | bytes]], options: Asking) -> RouteSays:
        said: dict[str, str | bytes] = {}
        for key, value in metadata:
            said.setdefault(key, value)
        policy = said.get(options.selection.header)
        return cls(policy if isinstance(policy, str) else "", _NO_TRAILERS in said)


def asked(
    head: HttpHead,
    understood: Understood,
    route: RouteSays,
    options: Asking,
    catalog: Catalog,
    budget_s: float | None = None,
    arrived: float | None = None,
) -> RoutingRequest | Passed:
    """What to decide for a request that was understood; Passed if nothing is to be decided.

    Args:
        budget_s: longest the decision may take from `arrived` on; None: as long as any.
        arrived: see `RoutingRequest`.
    """
    named = route.policy or _named(head, options)
    alias = options.aliases.get(understood.model)
    model = ""
    if named is None and alias is None and understood.model and not options.route_concrete:
        found = concrete(understood.model, understood.dialect, catalog)
        if found is None:
            return Passed(PassReason.UNKNOWN_MODEL)
        model = found.id
    policy = policy_name(named if named is not None else alias or "")
    if policy is None:
        return Passed(PassReason.UNKNOWN_POLICY)
    return RoutingRequest(
        conversation=understood.conversation,
        policy=policy,
        model=model,
        conversation_key=_key(head, understood, options),
        caller=caller_of(head, options),
        continues=understood.previous_response_id,
        refers_to=understood.refers_to,
        sealed=understood.sealed,
        # A tool loop is many requests here, of clients that do not know of pins.
        keep_task=True,
        needs=understood.needs,
        dialect=understood.dialect,
        whole_answer=not understood.stream,
        budget_s=budget_s,
        arrived=arrived,
    )


def caller_of(head: HttpHead, options: Asking) -> str:
    """Who the client is, as far as Envoy says; empty if it does not."""
    return head.header(options.caller_header) if options.caller_header else ""


def policy_name(text: str) -> PolicyName | None:
    """An id of the namespace `default`, or a resource name; empty: the default policy. None if it
    is neither."""
    if not text:
        return PolicyName()
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    return PolicyName(match[2], match[1] or PolicyName().namespace)


def concrete(name: str, dialect: ApiDialect, catalog: Catalog) -> Model | None:
    """The model that a client means by `name`: an id of the catalog, or what its provider calls it;
    of several that are called so, the first that speaks the client's API."""
    if name in catalog:
        return catalog[name]
    called = [model for model in catalog.values() if model.upstream_model == name]
    speaking = [model for model in called if dialect in model.dialects]
    return next(iter(speaking or called), None)


def _named(head: HttpHead, options: Asking) -> str | None:
    """The policy that headers, path or authority name; None if none of them does."""
    by, policy = options.selection.chosen(head.header)
    if by:
        return policy
    prefixes = [prefix for prefix in options.paths if head.path.startswith(prefix)]
    if prefixes:
        return options.paths[max(prefixes, key=len)]
    if not options.authorities:
        return None
    return options.authorities.get(_PORT.sub("", head.authority).lower())


def _key(head: HttpHead, understood: Understood, options: Asking) -> str:
    key = next(filter(None, map(head.header, options.key_headers)), "")
    return bounded_key(key) if key else understood.conversation_key
