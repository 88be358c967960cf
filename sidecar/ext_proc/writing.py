"""From a decision, or its absence, to what is done to the request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.core.decision import Decision
from sidecar.core.policy import Model
from sidecar.ext_proc.dialects.json_fields import splice, with_first
from sidecar.ext_proc.effect import Common, Effect
from sidecar.ext_proc.messages import MetadataValue
from sidecar.ext_proc.options import NO_DECISION, OwnedHeader, Writing
from sidecar.ext_proc.request import HttpRequest, Passed, Understood

_MAX_KNOWN = 1024
"""Decisions that are told apart: as many as there are models of routes, times ways to them."""


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """A decision, and what is done to each request that is decided alike."""

    decision: Decision
    common: Common

    def is_like(self, decision: Decision) -> bool:
        """True if they differ in what is one request's own and in nothing that is written."""
        mine = self.decision
        return (
            mine.model is decision.model
            and mine.fallbacks == decision.fallbacks
            and mine.policy == decision.policy
            and mine.routing_model == decision.routing_model
            and mine.confidence == decision.confidence
        )


class Writer:
    """Writes decisions down as effects."""

    def __init__(self, options: Writing) -> None:
        self._options = options
        self._known: dict[tuple[str, ...], _Known] = {}

    def passing(self, passed: Passed) -> Effect:
        """The request goes on as it came, without what only the sidecar may set, and says why."""
        values = {OwnedHeader.SOURCE: NO_DECISION, OwnedHeader.REASON: passed.reason.value}
        metadata: dict[str, MetadataValue] = {"source": NO_DECISION, "reason": passed.reason.value}
        return Effect(common=_common(values, metadata, (), self._options)).whole()

    def decided(
        self,
        decision: Decision,
        request: HttpRequest,
        understood: Understood,
        longest: int | None = None,
    ) -> Effect:
        """The decision as headers and metadata, and the model's upstream name in the body where
        another one or none stands there. Where it is right already the body goes on as it came;
        if it is compressed, uncompressed where a fallback may need another name in it, which is
        put in by Envoy, unless that makes it longer than `longest`."""
        options = self._options
        body = None
        if options.rewrite_model and (
            understood.model != decision.model.upstream_model
            or _has_to_be_read(decision, understood.plain_body, longest)
        ):
            body = _rewritten(decision, request, understood)
        named = OwnedHeader.DECISION_ID in options.headers
        return Effect(
            headers=((options.names[OwnedHeader.DECISION_ID], decision.id),) if named else (),
            remove=("content-encoding",) if body is not None and understood.plain_body else (),
            metadata={"decision_id": decision.id} if options.metadata else {},
            body=body,
            model=decision.model.id if understood.awaited else "",
            whole_answer=not understood.stream,
            common=self._common_of(decision),
        )

    def _common_of(self, decision: Decision) -> Common:
        key = (decision.route, decision.model.id, decision.source, decision.reason)
        known = self._known.get(key)
        if known is None or not known.is_like(decision):
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            common = _common(
                _headers(decision),
                _metadata(decision),
                _clusters(decision),
                self._options,
                by_request=OwnedHeader.DECISION_ID,
            )
            known = self._known[key] = _Known(decision, common)
        return known.common


def _has_to_be_read(decision: Decision, plain: bytes | None, longest: int | None) -> bool:
    """Whether a body that came compressed, `plain` without that, may have to get the name of a
    fallback, and may go on uncompressed."""
    if plain is None or (longest is not None and len(plain) > longest):
        return False
    name = decision.model.upstream_model
    return any(model.upstream_model != name for model in _reachable(decision))


def _rewritten(decision: Decision, request: HttpRequest, understood: Understood) -> bytes:
    """The body with another value of `model`, or with that field, every other byte as it was."""
    plain = understood.plain_body if understood.plain_body is not None else request.body
    assert plain is not None, "what was understood has a body"
    name = decision.model.upstream_model
    if understood.model_at is None:
        return with_first(plain, "model", name)
    return splice(plain, understood.model_at, name)


def _headers(decision: Decision) -> dict[OwnedHeader, str]:
    sure = decision.confidence
    return {
        OwnedHeader.ROUTE: decision.route,
        OwnedHeader.MODEL: decision.model.id,
        OwnedHeader.CLUSTER: decision.model.cluster,
        OwnedHeader.FALLBACKS: ",".join(model.id for model in decision.fallbacks),
        OwnedHeader.SOURCE: decision.source.value,
        OwnedHeader.REASON: decision.reason.value,
        OwnedHeader.CONFIDENCE: "" if sure is None else f"{sure:.2f}",
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
        "source": decision.source.value,
        "reason": decision.reason.value,
        "policy": decision.policy.name,
        "policy_revision": decision.policy.revision,
        "policy_digest": decision.policy.digest,
        "routing_model": decision.routing_model,
    }
    if decision.confidence is not None:
        values["confidence"] = decision.confidence
    return values


def _common(
    values: Mapping[OwnedHeader, str],
    metadata: Mapping[str, MetadataValue],
    clusters: tuple[str, ...],
    options: Writing,
    by_request: OwnedHeader | None = None,
) -> Common:
    """`by_request`: a header that each request has a value of its own for."""
    headers: list[tuple[str, str]] = []
    remove: list[str] = []
    for header, name in options.names.items():
        value = values.get(header)
        # An empty header is dropped by some Envoys and kept by others.
        if value and header in options.headers:
            headers.append((name, value))
        elif header is not by_request or header not in options.headers:
            remove.append(name)
    return Common(
        headers=tuple(headers),
        remove=tuple(remove),
        reroute=options.reroute,
        metadata=metadata if options.metadata else {},
        clusters=clusters if options.metadata else (),
    )
