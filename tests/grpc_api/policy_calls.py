"""Calls of PolicyService about the policy of `tests.policies.stores.parts`, and about a new one."""

from __future__ import annotations

from typing import Any

from sidecar._generated.llmrouter.v1 import policy_pb2
from tests.grpc_api.stored import Stored

NAME = "namespaces/default/policies/support"
NEW = "namespaces/default/policies/new"
NOTE = policy_pb2.ChangeNote(author="ada", message="a better wording")


def models(*ids: str) -> policy_pb2.ModelList:
    return policy_pb2.ModelList(models=[policy_pb2.WeightedModel(model=each) for each in ids])


def policy(name: str = "", description: str = "", **more: Any) -> policy_pb2.Policy:
    return policy_pb2.Policy(
        name=name,
        description=description,
        routes=[
            policy_pb2.Route(
                name="billing", description="invoices", models=models("acme/fast"), **more
            )
        ],
        default_models=models("acme/large"),
    )


def create(policy_id: str = "new", **more: Any) -> policy_pb2.CreatePolicyRequest:
    given = {"policy": policy(), "note": NOTE, **more}
    return policy_pb2.CreatePolicyRequest(parent="namespaces/default", policy_id=policy_id, **given)


def update(
    description: str = "second", name: str = NAME, etag: str = "", **more: Any
) -> policy_pb2.UpdatePolicyRequest:
    content = policy(name, description)
    content.etag = etag
    return policy_pb2.UpdatePolicyRequest(policy=content, note=NOTE, **more)


async def get(api: Stored, name: str = NAME, revision: int = 0) -> policy_pb2.Policy:
    return await api.policies.GetPolicy(policy_pb2.GetPolicyRequest(name=name, revision=revision))
