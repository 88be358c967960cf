"""The model catalog: core types to protobuf messages and back."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from enum import Enum
from typing import TypeVar

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.core.errors import ErrorCode
from sidecar.core.policy import ApiDialect, Capability, CatalogRecord, Model
from sidecar.grpc_api.convert.policies import attribution_to_core, revision_info
from sidecar.grpc_api.convert.violations import Violations, shown
from sidecar.policies import MAX_BYTES
from sidecar.policies.days import parsed_day
from sidecar.policies.rules import MAX_CONTEXT_WINDOW

E = TypeVar("E", bound=Enum)


def catalog_to_core(
    message: policy_pb2.ModelCatalog, path: str, violations: Violations
) -> tuple[Model, ...]:
    """The models as written; `check_catalog` then says what is wrong with their content.

    Args:
        path: of the message in the request.
        violations: gets what cannot be said of the core types.
    """
    size = message.ByteSize()
    if size > MAX_BYTES:
        violations.add(path, f"has {size} bytes, more than the {MAX_BYTES} that are read")
        return ()
    return _models_to_core(message, path, violations)


def _models_to_core(
    message: policy_pb2.ModelCatalog, path: str, violations: Violations
) -> tuple[Model, ...]:
    return tuple(
        _model_to_core(model, f"{path}.models[{index}]", violations)
        for index, model in enumerate(message.models)
    )


def _model_to_core(message: policy_pb2.CatalogModel, path: str, violations: Violations) -> Model:
    dialects = _members(ApiDialect, message.dialects, f"{path}.dialects", violations)
    return Model(
        id=message.id,
        upstream_model=message.upstream_model,
        cluster=message.cluster,
        host=message.host,
        dialects=dialects if message.dialects else frozenset(ApiDialect),
        capabilities=_members(Capability, message.capabilities, f"{path}.capabilities", violations),
        input_price=message.input_price if message.HasField("input_price") else None,
        output_price=message.output_price if message.HasField("output_price") else None,
        latency_ms=message.latency_ms if message.HasField("latency_ms") else None,
        context_window=message.context_window if message.HasField("context_window") else None,
        prices_as_of=_day(message.prices_as_of, f"{path}.prices_as_of", violations),
    )


def _day(text: str, path: str, violations: Violations) -> date | None:
    if not text:
        return None
    day = parsed_day(text)
    if day is None:
        violations.add(path, f"{shown(text)} is no day; write it as 2026-08-21, or leave it empty")
    return day


def _members(
    kind: type[E], values: Iterable[str], path: str, violations: Violations
) -> frozenset[E]:
    known = {member.value: member for member in kind}
    for index, value in enumerate(values):
        if value not in known:
            allowed = ", ".join(known)
            violations.add(f"{path}[{index}]", f"{shown(value)} is none of {allowed}")
    return frozenset(known[value] for value in values if value in known)


def catalog_record_to_core(message: policy_pb2.ModelCatalog) -> CatalogRecord:
    """The record that a sidecar sent. Raises SidecarError INVALID_POLICY for one that this version
    cannot read."""
    violations = Violations()
    # Of any size: files together may hold more than one request.
    models = _models_to_core(message, "model_catalog", violations)
    violations.raise_if_any(ErrorCode.INVALID_POLICY)
    return CatalogRecord(
        {model.id: model for model in models},
        message.revision,
        message.etag,
        message.digest,
        attribution_to_core(message.revision_info, message.update_time),
        change=message.revision_info.change_number,
    )


def models_to_proto(models: Iterable[Model]) -> policy_pb2.ModelCatalog:
    """The models without a revision."""
    return policy_pb2.ModelCatalog(models=[_model_to_proto(model) for model in models])


def catalog_to_proto(record: CatalogRecord) -> policy_pb2.ModelCatalog:
    """The catalog as its store keeps it."""
    message = policy_pb2.ModelCatalog(
        models=[_model_to_proto(model) for model in record.models.values()],
        revision=record.revision,
        etag=record.etag,
        digest=record.digest,
        revision_info=revision_info(record.attribution, record.change),
    )
    if record.attribution is not None:
        message.update_time.FromDatetime(record.attribution.time)
    return message


def _model_to_proto(model: Model) -> policy_pb2.CatalogModel:
    everything = model.dialects == frozenset(ApiDialect)
    return policy_pb2.CatalogModel(
        id=model.id,
        upstream_model=model.upstream_model,
        cluster=model.cluster,
        host=model.host,
        dialects=[] if everything else sorted(each.value for each in model.dialects),
        capabilities=sorted(each.value for each in model.capabilities),
        input_price=model.input_price,
        output_price=model.output_price,
        latency_ms=model.latency_ms,
        context_window=_within_32_bits(model.context_window),
        prices_as_of=model.prices_as_of.isoformat() if model.prices_as_of else "",
    )


def _within_32_bits(tokens: int | None) -> int | None:
    """A store may hold more from before that was refused."""
    return None if tokens is None else min(tokens, MAX_CONTEXT_WINDOW)
