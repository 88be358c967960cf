"""Policies and findings: core types to protobuf messages and back."""

from __future__ import annotations

import re
from datetime import UTC

from google.protobuf import timestamp_pb2

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.core.decision import PolicyName
from sidecar.core.errors import ErrorCode, FieldViolation, SidecarError
from sidecar.core.policy import (
    DEFAULT_SWITCH_CONFIDENCE,
    Attribution,
    ModelList,
    PinMode,
    Policy,
    PolicyRecord,
    Preference,
    Route,
    WeightedModel,
)
from sidecar.grpc_api.convert.enums import PIN_MODE, PREFERENCE
from sidecar.grpc_api.convert.resource_names import policy_name
from sidecar.grpc_api.convert.violations import Violations
from sidecar.policies import MAX_BYTES, Finding, Severity, too_many_routes

UNNAMED = PolicyName("inline")
"""Stands in for the name of a policy message without one."""

_SEVERITIES = {
    Severity.ERROR: policy_pb2.SEVERITY_ERROR,
    Severity.WARNING: policy_pb2.SEVERITY_WARNING,
}


def oversize(message: policy_pb2.Policy, path: str) -> FieldViolation | None:
    """What is too much in the message; None if it can be read.

    Comes first, so that the rest is bounded: a policy in a message can be as large as one in YAML.

    Args:
        path: of the message in the request.
    """
    too_many = too_many_routes(len(message.routes))
    if too_many is not None:
        return FieldViolation(f"{path}.{too_many.path}", too_many.message)
    size = message.ByteSize()
    if size > MAX_BYTES:
        return FieldViolation(
            path, f"has {size} bytes, more than the {MAX_BYTES} that are read; split the policy"
        )
    return None


def policy_to_core(message: policy_pb2.Policy, path: str, violations: Violations) -> Policy:
    """The policy as written; `check_policy` then says what is wrong with its content. Large ones
    take long: see `oversize`.

    Args:
        path: of the message in the request.
        violations: gets what cannot be said of the core type; it is blank there.
    """
    name = _name_to_core(message.name, f"{path}.name", violations)
    routes = tuple(
        Route(
            name=route.name,
            description=route.description,
            models=_models_to_core(route.models, f"{path}.routes[{index}].models", violations),
            domain=route.domain,
            min_confidence=route.min_confidence,
            examples=tuple(route.examples),
        )
        for index, route in enumerate(message.routes)
    )
    return Policy(
        name=name.name,
        namespace=name.namespace,
        description=message.description,
        routes=routes,
        default=_models_to_core(message.default_models, f"{path}.default_models", violations),
        pin=_pin_to_core(message.pin, f"{path}.pin", violations),
        switch_confidence=(
            message.switch_confidence
            if message.HasField("switch_confidence")
            else DEFAULT_SWITCH_CONFIDENCE
        ),
    )


def _pin_to_core(
    value: policy_pb2.PinMode.ValueType, path: str, violations: Violations
) -> PinMode | None:
    known = PIN_MODE.to_core(value)
    if known is None and value != policy_pb2.PIN_MODE_UNSPECIFIED:
        violations.add(path, f"{value} is not a known value; use one of {PIN_MODE.names}")
    return known


def _name_to_core(name: str, path: str, violations: Violations) -> PolicyName:
    if not name:
        return UNNAMED
    try:
        return policy_name(name, path)
    except SidecarError as error:
        violations.extend(error.violations)
        return UNNAMED


def _models_to_core(message: policy_pb2.ModelList, path: str, violations: Violations) -> ModelList:
    preference: Preference | None = Preference.DECLARED
    if message.preference != policy_pb2.PREFERENCE_UNSPECIFIED:
        preference = PREFERENCE.to_core(message.preference)
    if preference is None:
        violations.add(
            f"{path}.preference",
            f"{message.preference} is not a known value; use one of {PREFERENCE.names}",
        )
        preference = Preference.DECLARED
    models = tuple(
        WeightedModel(entry.model, entry.weight if entry.HasField("weight") else 1.0)
        for entry in message.models
    )
    return ModelList(models, preference)


def policy_to_proto(policy: Policy, digest: str = "") -> policy_pb2.Policy:
    """The policy without a revision. `digest`: where it is known already."""
    return policy_pb2.Policy(
        name=policy.resource_name,
        description=policy.description,
        routes=[_route_to_proto(route) for route in policy.routes],
        default_models=_models_to_proto(policy.default),
        pin=(
            policy_pb2.PIN_MODE_UNSPECIFIED if policy.pin is None else PIN_MODE.to_proto(policy.pin)
        ),
        # Unset means the default; written out where it says something.
        switch_confidence=(
            policy.switch_confidence
            if policy.switch_confidence != DEFAULT_SWITCH_CONFIDENCE
            else None
        ),
        digest=digest or policy.digest(),
    )


def record_to_proto(record: PolicyRecord) -> policy_pb2.Policy:
    """The policy as its store keeps it."""
    message = policy_to_proto(record.policy, record.digest)
    message.revision = record.revision
    message.etag = record.etag
    message.revision_info.CopyFrom(revision_info(record.attribution, record.change))
    if record.attribution is not None:
        message.update_time.FromDatetime(record.attribution.time)
        if record.deleted:
            message.delete_time.FromDatetime(record.attribution.time)
    elif record.deleted:
        # A file that is gone: nobody recorded when.
        message.delete_time.GetCurrentTime()
    return message


def record_to_core(message: policy_pb2.Policy) -> PolicyRecord:
    """The record that a sidecar sent. Raises SidecarError INVALID_POLICY for one that this version
    cannot read."""
    violations = Violations()
    policy = policy_to_core(message, "policy", violations)
    violations.raise_if_any(ErrorCode.INVALID_POLICY)
    return PolicyRecord(
        policy,
        message.revision,
        message.etag,
        message.digest,
        attribution_to_core(message.revision_info, message.update_time),
        deleted=message.HasField("delete_time"),
        change=message.revision_info.change_number,
    )


def attribution_to_core(
    info: policy_pb2.RevisionInfo, time: timestamp_pb2.Timestamp
) -> Attribution | None:
    """None where the store does not keep it."""
    if not time.seconds:
        return None
    return Attribution(info.author, info.message, time.ToDatetime(UTC), info.author_verified)


def revision_info(attribution: Attribution | None, change: int) -> policy_pb2.RevisionInfo:
    """Who made a revision and why, as far as it is known."""
    if attribution is None:
        return policy_pb2.RevisionInfo(change_number=change)
    return policy_pb2.RevisionInfo(
        author=attribution.author,
        author_verified=attribution.verified,
        message=attribution.message,
        change_number=change,
    )


def _route_to_proto(route: Route) -> policy_pb2.Route:
    return policy_pb2.Route(
        name=route.name,
        description=route.description,
        models=_models_to_proto(route.models),
        domain=route.domain,
        min_confidence=route.min_confidence,
        examples=route.examples,
    )


def _models_to_proto(models: ModelList) -> policy_pb2.ModelList:
    weighted = models.preference is Preference.WEIGHTED
    entries = [
        policy_pb2.WeightedModel(
            model=entry.id,
            # Unset means 1; written out where it says something.
            weight=entry.weight if weighted or entry.weight != 1.0 else None,
        )
        for entry in models.models
    ]
    return policy_pb2.ModelList(models=entries, preference=PREFERENCE.to_proto(models.preference))


def finding_to_proto(finding: Finding, field: str) -> policy_pb2.Finding:
    """`field`: the path in the source that the caller sent."""
    return policy_pb2.Finding(
        severity=_SEVERITIES[finding.severity],
        field=field,
        message=finding.message,
        line=finding.line,
    )


_YAML_TO_PROTO = (
    (re.compile(r"^namespace$"), "name"),
    (re.compile(r"^default\b"), "default_models"),
    # A route has one message for its models and their order, which YAML writes side by side.
    (re.compile(r"^(routes\[\d+\])\.(models|preference)\b"), r"\1.models.\2"),
    # A bare entry of a YAML list is the model's id.
    (re.compile(r"(\.models\[\d+\])$"), r"\1.model"),
)


def proto_path(yaml_path: str) -> str:
    """Path of a finding in the Policy message; findings spell paths as in YAML."""
    for pattern, replacement in _YAML_TO_PROTO:
        yaml_path = pattern.sub(replacement, yaml_path)
    return yaml_path
