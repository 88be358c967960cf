"""`llmrouter.v1.PolicyService`."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from sidecar._generated.llmrouter.v1 import policy_pb2, policy_pb2_grpc
from sidecar.core.errors import FieldViolation, SidecarError
from sidecar.core.policy import Policy
from sidecar.grpc_api.context import Context
from sidecar.grpc_api.convert.policies import (
    finding_to_proto,
    oversize,
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
        self._records = {record.policy.resource_name: record for record in registry.records()}
        # One: every thread that computes makes the event loop wait for the interpreter's lock.
        self._validating = ThreadPoolExecutor(1, "validate-policy")

    async def GetPolicy(  # noqa: N802 -- the method's name in the API
        self,
        request: policy_pb2.GetPolicyRequest,
        context: Context,
    ) -> policy_pb2.Policy:
        # The registry knows best what to say about a policy that it does not have.
        self._registry.get(policy_name(request.name, "name"))
        return await asyncio.to_thread(record_to_proto, self._records[request.name])

    async def ListPolicies(  # noqa: N802
        self,
        request: policy_pb2.ListPoliciesRequest,
        context: Context,
    ) -> policy_pb2.ListPoliciesResponse:
        wanted = namespace(request.parent, "parent")
        limit = page_size(request.page_size)
        after = name_before(request.parent, request.page_token)
        messages = (
            record_to_proto(record)
            for name, record in self._records.items()
            if wanted in (ALL_NAMESPACES, record.policy.namespace) and name > after
        )
        # In a thread: a page can hold thousands of routes.
        policies, last = await asyncio.to_thread(
            page,
            messages,
            limit,
            lambda message: message.ByteSize(),
            lambda message: message.name,
        )
        return policy_pb2.ListPoliciesResponse(
            policies=policies, next_page_token=token_after(request.parent, last)
        )

    async def ValidatePolicy(  # noqa: N802
        self,
        request: policy_pb2.ValidatePolicyRequest,
        context: Context,
    ) -> policy_pb2.ValidatePolicyResponse:
        if request.WhichOneof("source") is None:
            raise invalid("source", "is unset; set policy or yaml")
        # In a thread: reading a large YAML document takes seconds, the event loop has milliseconds.
        return await asyncio.get_running_loop().run_in_executor(
            self._validating, self._validated, request
        )

    def _validated(
        self, request: policy_pb2.ValidatePolicyRequest
    ) -> policy_pb2.ValidatePolicyResponse:
        response = policy_pb2.ValidatePolicyResponse(
            max_prompt_tokens=self._registry.max_prompt_tokens
        )
        if request.HasField("policy"):
            policy, findings = self._check_message(request.policy)
        else:
            policy, findings = self._check_yaml(request.yaml)
        if policy is not None:
            findings = [*self._compile(policy, response), *findings]
        response.findings.extend(findings)
        response.valid = not any(each.severity == policy_pb2.SEVERITY_ERROR for each in findings)
        if response.valid and policy is not None:
            response.policy.CopyFrom(policy_to_proto(policy))
        return response

    def _check_message(self, message: policy_pb2.Policy) -> _Checked:
        """The policy if it has no errors, and all findings."""
        if (too_much := oversize(message, "policy")) is not None:
            return None, [_error(too_much)]
        violations = Violations()
        policy = policy_to_core(message, "policy", violations)
        unreadable = [_error(each) for each in violations]
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
            return [_error(FieldViolation("", error.message))]
        if compiled.prompt is not None:
            response.prefix_tokens = len(compiled.prompt.prefix_ids)
        return []


def _error(violation: FieldViolation) -> policy_pb2.Finding:
    return policy_pb2.Finding(
        severity=policy_pb2.SEVERITY_ERROR, field=violation.field, message=violation.description
    )
