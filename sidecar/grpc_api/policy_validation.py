"""ValidatePolicy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
from sidecar.policies import Finding, check_policy, has_errors, parse_policy_yaml
from sidecar.policies.lint import crowded, lint
from sidecar.policies.prices import today

_Placed = Callable[[Iterable[Finding]], list[policy_pb2.Finding]]
"""Findings about the policy, with the paths of what the caller sent."""


@dataclass(frozen=True, slots=True)
class _Checked:
    """What was read. `policy`: None if it has errors."""

    policy: Policy | None
    findings: list[policy_pb2.Finding]
    placed: _Placed


def validated(
    request: policy_pb2.ValidatePolicyRequest, registry: PolicyRegistry, max_price_age_days: int
) -> policy_pb2.ValidatePolicyResponse:
    """Everything there is to say about the policy but what takes the routing model; takes seconds
    for a large one."""
    response = policy_pb2.ValidatePolicyResponse(max_prompt_tokens=registry.max_prompt_tokens)
    if request.HasField("policy"):
        checked = _check_message(request.policy, registry)
    else:
        checked = _check_yaml(request.yaml, registry)
    policy, findings = checked.policy, checked.findings
    if policy is not None:
        too_large = _compile(policy, response, registry)
        # As with files: doubts are for policies that can be used.
        doubts: tuple[Finding, ...] = ()
        if not too_large:
            doubts = crowded(response.prefix_tokens, response.max_prompt_tokens)
            doubts += lint(policy, registry.catalog, today(), max_price_age_days)
        findings = [*too_large, *findings, *checked.placed(doubts)]
    response.findings.extend(findings)
    response.valid = not any(each.severity == policy_pb2.SEVERITY_ERROR for each in findings)
    if response.valid and policy is not None:
        response.policy.CopyFrom(policy_to_proto(policy))
    return response


def _check_message(message: policy_pb2.Policy, registry: PolicyRegistry) -> _Checked:
    if (too_much := oversize(message, "policy")) is not None:
        return _Checked(None, [_error(too_much)], _in_message)
    violations = Violations()
    policy = policy_to_core(message, "policy", violations)
    unreadable = [_error(each) for each in violations]
    found = check_policy(policy, registry.catalog)
    known = None if unreadable or has_errors(found) else policy
    return _Checked(known, unreadable + _in_message(found), _in_message)


def _check_yaml(text: str, registry: PolicyRegistry) -> _Checked:
    parsed = parse_policy_yaml(text, registry.catalog)

    def in_text(findings: Iterable[Finding]) -> list[policy_pb2.Finding]:
        return [finding_to_proto(each, each.path) for each in parsed.placed(findings)]

    policy = parsed.policy if parsed.valid else None
    return _Checked(policy, in_text(parsed.findings), in_text)


def _in_message(findings: Iterable[Finding]) -> list[policy_pb2.Finding]:
    return [
        finding_to_proto(each, ".".join(filter(None, ("policy", proto_path(each.path)))))
        for each in findings
    ]


def _compile(
    policy: Policy, response: policy_pb2.ValidatePolicyResponse, registry: PolicyRegistry
) -> list[policy_pb2.Finding]:
    """Fills in the size of the prompt; a finding if it is too large."""
    try:
        prompt = registry.prompt_of(policy)
    except SidecarError as error:
        return [_error(FieldViolation("", error.message))]
    if prompt is not None:
        response.prefix_tokens = len(prompt.prefix_ids)
    return []


def _error(violation: FieldViolation) -> policy_pb2.Finding:
    return policy_pb2.Finding(
        severity=policy_pb2.SEVERITY_ERROR, field=violation.field, message=violation.description
    )
