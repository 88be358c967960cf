"""From a decision, or its absence, to what is done to the request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from sidecar.core.decision import Decision
from sidecar.core.policy import Model
from sidecar.ext_proc.effect import Effect
from sidecar.ext_proc.messages import MetadataValue
from sidecar.ext_proc.options import NO_DECISION, OwnedHeader, Writing
from sidecar.ext_proc.request import HttpRequest, Passed, Understood

Splice = Callable[[bytes, str], bytes]
"""See `Dialects.splice_model`."""


def effect_of_passing(passed: Passed, options: Writing) -> Effect:
    """The request goes on as it came, without what only the sidecar may set, and says why."""
    values = {OwnedHeader.SOURCE: NO_DECISION, OwnedHeader.REASON: passed.reason.value}
    metadata: dict[str, MetadataValue] = {"source": NO_DECISION, "reason": passed.reason.value}
    return _effect(values, metadata, options)


def effect_of(
    decision: Decision,
    request: HttpRequest,
    understood: Understood,
    splice: Splice,
    options: Writing,
) -> Effect:
    """The decision as headers and metadata, and the model's upstream name in the body where another
    one stands there. Where it is right already the body goes on as it came, compressed or not."""
    body = None
    if options.rewrite_model and understood.model not in ("", decision.model.upstream_model):
        body = _rewritten(decision, request, understood, splice)
    dropped = ("content-encoding",) if body is not None and understood.plain_body else ()
    clusters = _clusters(decision) if options.metadata else ()
    effect = _effect(_headers(decision), _metadata(decision), options, body, dropped, clusters)
    return replace(effect, model=decision.model.id, whole_answer=not understood.stream)


def _rewritten(
    decision: Decision, request: HttpRequest, understood: Understood, splice: Splice
) -> bytes | None:
    if understood.plain_body is not None and not request.complete:
        # The rest of it is compressed.
        return None
    plain = understood.plain_body if understood.plain_body is not None else request.body
    assert plain is not None, "what was understood has a body"
    return splice(plain, decision.model.upstream_model)


def _headers(decision: Decision) -> dict[OwnedHeader, str]:
    return {
        OwnedHeader.ROUTE: decision.route,
        OwnedHeader.MODEL: decision.model.id,
        OwnedHeader.CLUSTER: decision.model.cluster,
        OwnedHeader.FALLBACKS: ",".join(model.id for model in decision.fallbacks),
        OwnedHeader.DECISION_ID: decision.id,
        OwnedHeader.SOURCE: decision.source.value,
        OwnedHeader.REASON: decision.reason.value,
    }


def _reachable(decision: Decision) -> tuple[Model, ...]:
    """The fallbacks that Envoy can try: a model without a cluster is reached by other means."""
    return tuple(model for model in decision.fallbacks if model.cluster)


def _clusters(decision: Decision) -> tuple[str, ...]:
    if not decision.model.cluster:
        return ()
    return (decision.model.cluster, *(model.cluster for model in _reachable(decision)))


def _metadata(decision: Decision) -> dict[str, MetadataValue]:
    values: dict[str, MetadataValue] = {
        "route": decision.route,
        "model": decision.model.id,
        "upstream_model": decision.model.upstream_model,
        "cluster": decision.model.cluster,
        "fallbacks": [model.id for model in decision.fallbacks],
        # In the order in which Envoy tries their clusters.
        "fallback_upstream_models": [model.upstream_model for model in _reachable(decision)],
        "decision_id": decision.id,
        "source": decision.source.value,
        "reason": decision.reason.value,
        "policy": decision.policy.name,
        "policy_revision": decision.policy.revision,
    }
    if decision.confidence is not None:
        values["confidence"] = decision.confidence
    return values


def _effect(
    values: Mapping[OwnedHeader, str],
    metadata: Mapping[str, MetadataValue],
    options: Writing,
    body: bytes | None = None,
    dropped: tuple[str, ...] = (),
    clusters: tuple[str, ...] = (),
) -> Effect:
    headers: list[tuple[str, str]] = []
    remove = list(dropped)
    for header, name in options.names.items():
        value = values.get(header)
        # An empty header is dropped by some Envoys and kept by others.
        if value and header in options.headers:
            headers.append((name, value))
        else:
            remove.append(name)
    return Effect(
        headers=tuple(headers),
        remove=tuple(remove),
        reroute=options.reroute,
        metadata=metadata if options.metadata else {},
        clusters=clusters,
        body=body,
        stamp=tuple(headers),
    )
