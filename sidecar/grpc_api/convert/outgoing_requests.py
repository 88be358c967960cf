"""Route requests from core types, for callers of a sidecar."""

from __future__ import annotations

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar.core.conversation import Message
from sidecar.core.decision import PolicyName, RoutingRequest
from sidecar.grpc_api.convert.enums import CAPABILITY, DIALECT, ROLE
from sidecar.grpc_api.convert.policies import policy_to_proto


def request_to_proto(request: RoutingRequest) -> routing_pb2.RouteRequest:
    """The message that a sidecar reads as `request`; the budget travels as the call's deadline."""
    message = routing_pb2.RouteRequest(
        messages=[_message_to_proto(each) for each in request.conversation.messages],
        model=request.model,
        conversation_key=request.conversation_key,
        needs=routing_pb2.Needs(
            capabilities=sorted(map(CAPABILITY.to_proto, request.needs.capabilities)),
            context_tokens=request.needs.context_tokens,
        ),
        min_confidence=request.min_confidence,
        explain=request.explain,
    )
    if request.dialect is not None:
        message.dialect = DIALECT.to_proto(request.dialect)
    if not isinstance(request.policy, PolicyName):
        message.inline_policy.CopyFrom(policy_to_proto(request.policy))
    elif request.policy.name:
        message.policy = request.policy.resource_name
    return message


def _message_to_proto(message: Message) -> routing_pb2.Message:
    parts = [routing_pb2.Part(text=_valid(message.text))] if message.text else []
    parts += [routing_pb2.Part(image=routing_pb2.ImageMarker()) for _ in range(message.images)]
    return routing_pb2.Message(
        role=ROLE.to_proto(message.role),
        parts=parts,
        tool_calls=[
            routing_pb2.ToolCall(id=call.id, name=call.name, arguments=_valid(call.arguments))
            for call in message.tool_calls
        ],
        tool_call_id=message.tool_call_id,
    )


def _valid(text: str) -> str:
    """Half an emoji, which JSON can hold and a message cannot, as `?`: so a tokenizer reads it."""
    return text.encode("utf-8", "replace").decode("utf-8")
