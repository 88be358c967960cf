"""`llmrouter.v1.PolicyService`."""

from __future__ import annotations

import asyncio

from sidecar._generated.llmrouter.v1 import policy_pb2, policy_pb2_grpc
from sidecar.core.decision import PolicyName
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import Policy
from sidecar.grpc_api.context import Context
from sidecar.grpc_api.convert.policies import (
    finding_to_proto,
    policy_to_core,
    policy_to_proto,
    proto_path,
    record_to_proto,
)
from sidecar.grpc_api.convert.resource_names import ALL_NAMESPACES, namespace, policy_name
from sidecar.grpc_api.convert.violations import Violations, invalid
from sidecar.grpc_api.paging import name_before, page, page_size, token_after
from sidecar.grpc_api.protocols import PolicyRegistry
from sidecar.policies import check_policy, has_errors, parse_policy_yaml

_Checked = tuple[Policy | None, list[policy_pb2.Finding]]


class PolicyService(policy_pb2_grpc.PolicyServiceServicer):
    """Reads and checks policies. Method comments are in policy.proto."""

    def __init__(self, registry: PolicyRegistry) -> None:
        self._registry = registry

    async def GetPolicy(  # noqa: N802 -- the method's name in the API
        self,
        request: policy_pb2.GetPolicyRequest,
        context: Context,
    ) -> policy_pb2.Policy:
        name = policy_name(request.name, "name")
        for record in self._registry.records():
            if PolicyName(record.policy.name, record.policy.namespace) == name:
                return record_to_proto(record)
        # The registry knows best what to say about a policy that it does not have.
        self._registry.get(name)
        raise SidecarError(ErrorCode.POLICY_NOT_FOUND, f"there is no policy {request.name}")

    async def ListPolicies(  # noqa: N802
        self,
        request: policy_pb2.ListPoliciesRequest,
        context: Context,
    ) -> policy_pb2.ListPoliciesResponse:
        wanted = namespace(request.parent, "parent")
        limit = page_size(request.page_size)
        after = name_before(request.parent, request.page_token)
        records = sorted(self._registry.records(), key=lambda each: each.policy.resource_name)
        messages = (
            record_to_proto(record)
            for record in records
            if wanted in (ALL_NAMESPACES, record.policy.namespace)
            and record.policy.resource_name > after
        )
        policies, last = page(
            messages, limit, lambda message: message.ByteSize(), lambda message: message.name
        )
        return policy_pb2.ListPoliciesResponse(
            policies=policies, next_page_token=token_after(request.parent, last)
        )

    async def ValidatePolicy(  # noqa: N802
        self,
        request: policy_pb2.ValidatePolicyRequest,
        context: Context,
    ) -> policy_pb2.ValidatePolicyResponse:
        response = policy_pb2.ValidatePolicyResponse(
            max_prompt_tokens=self._registry.max_prompt_tokens
        )
        # In threads: reading a large YAML document takes seconds, the event loop has milliseconds.
        match request.WhichOneof("source"):
            case "policy":
                policy, findings = await asyncio.to_thread(self._check_message, request.policy)
            case "yaml":
                policy, findings = await asyncio.to_thread(self._check_yaml, request.yaml)
            case _:
                raise invalid("source", "is unset; set policy or yaml")
        if policy is not None:
            findings = [*self._compile(policy, response), *findings]
        response.findings.extend(findings)
        response.valid = not any(each.severity == policy_pb2.SEVERITY_ERROR for each in findings)
        if response.valid and policy is not None:
            response.policy.CopyFrom(policy_to_proto(policy))
        return response

    def _check_message(self, message: policy_pb2.Policy) -> _Checked:
        """The policy if it has no errors, and all findings."""
        violations = Violations()
        policy = policy_to_core(message, "policy", violations)
        unreadable = [
            policy_pb2.Finding(
                severity=policy_pb2.SEVERITY_ERROR, field=each.field, message=each.description
            )
            for each in violations
        ]
        found = check_policy(policy, self._registry.catalog)
        findings = unreadable + [
            finding_to_proto(each, f"policy.{proto_path(each.path)}") for each in found
        ]
        return (None if unreadable or has_errors(found) else policy), findings

    def _check_yaml(self, text: str) -> _Checked:
        parsed = parse_policy_yaml(text, self._registry.catalog)
        findings = [finding_to_proto(each, each.path) for each in parsed.findings]
        return (parsed.policy if parsed.valid else None), findings

    def _compile(
        self, policy: Policy, response: policy_pb2.ValidatePolicyResponse
    ) -> list[policy_pb2.Finding]:
        """Fills in the size of the prompt; a finding if it is too large."""
        try:
            compiled = self._registry.compile(policy)
        except SidecarError as error:
            return [
                policy_pb2.Finding(
                    severity=policy_pb2.SEVERITY_ERROR, field="", message=error.message
                )
            ]
        if compiled.prompt is not None:
            response.prefix_tokens = len(compiled.prompt.prefix_ids)
        return []
