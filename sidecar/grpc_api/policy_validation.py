"""ValidatePolicy."""

from __future__ import annotations

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.core.errors import FieldViolation, SidecarError
from sidecar.core.policy import Policy
from sidecar.grpc_api.convert.policies import (
    finding_to_proto,
    oversize,
    policy_to_core,
    policy_to_proto,
    proto_path,
)
from sidecar.grpc_api.convert.violations import Violations
from sidecar.grpc_api.protocols import PolicyRegistry
from sidecar.policies import check_policy, has_errors, parse_policy_yaml

_Checked = tuple[Policy | None, list[policy_pb2.Finding]]


def validated(
    request: policy_pb2.ValidatePolicyRequest, registry: PolicyRegistry
) -> policy_pb2.ValidatePolicyResponse:
    """Everything there is to say about the policy; takes seconds for a large one."""
    response = policy_pb2.ValidatePolicyResponse(max_prompt_tokens=registry.max_prompt_tokens)
    if request.HasField("policy"):
        policy, findings = _check_message(request.policy, registry)
    else:
        policy, findings = _check_yaml(request.yaml, registry)
    if policy is not None:
        findings = [*_compile(policy, response, registry), *findings]
    response.findings.extend(findings)
    response.valid = not any(each.severity == policy_pb2.SEVERITY_ERROR for each in findings)
    if response.valid and policy is not None:
        response.policy.CopyFrom(policy_to_proto(policy))
    return response


def _check_message(message: policy_pb2.Policy, registry: PolicyRegistry) -> _Checked:
    """The policy if it has no errors, and all findings."""
    if (too_much := oversize(message, "policy")) is not None:
        return None, [_error(too_much)]
    violations = Violations()
    policy = policy_to_core(message, "policy", violations)
    unreadable = [_error(each) for each in violations]
    found = check_policy(policy, registry.catalog)
    findings = unreadable + [
        finding_to_proto(each, f"policy.{proto_path(each.path)}") for each in found
    ]
    return (None if unreadable or has_errors(found) else policy), findings


def _check_yaml(text: str, registry: PolicyRegistry) -> _Checked:
    parsed = parse_policy_yaml(text, registry.catalog)
    findings = [finding_to_proto(each, each.path) for each in parsed.findings]
    return (parsed.policy if parsed.valid else None), findings


def _compile(
    policy: Policy, response: policy_pb2.ValidatePolicyResponse, registry: PolicyRegistry
) -> list[policy_pb2.Finding]:
    """Fills in the size of the prompt; a finding if it is too large."""
    try:
        compiled = registry.compile(policy)
    except SidecarError as error:
        return [_error(FieldViolation("", error.message))]
    if compiled.prompt is not None:
        response.prefix_tokens = len(compiled.prompt.prefix_ids)
    return []


def _error(violation: FieldViolation) -> policy_pb2.Finding:
    return policy_pb2.Finding(
        severity=policy_pb2.SEVERITY_ERROR, field=violation.field, message=violation.description
    )
