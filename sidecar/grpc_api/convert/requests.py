"""Route requests to core types, with everything that is wrong with them.

Violations name the field path and the rule. They never quote a message: only roles, ids, names and
numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar.core.conversation import Conversation, Message, Role, ToolCall
from sidecar.core.decision import Needs
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import ApiDialect, Capability
from sidecar.grpc_api.convert.enums import CAPABILITY, DIALECT, ROLE
from sidecar.grpc_api.convert.violations import Violations

MAX_CONVERSATION_KEY_BYTES = 256
MAX_MODEL_ID_BYTES = 256


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """How much of a request is read.

    Args:
        max_messages: messages of one conversation.
        max_content_bytes: UTF-8 bytes of text and tool-call arguments of one conversation.
    """

    max_messages: int = 4096
    max_content_bytes: int = 4 * 1024 * 1024


def check_size(message: routing_pb2.RouteRequest, limits: RequestLimits) -> None:
    """Raises SidecarError REQUEST_TOO_LARGE; comes first, so that the rest is bounded."""
    count = len(message.messages)
    if count > limits.max_messages:
        raise _too_large(
            f"{count} messages, more than the {limits.max_messages} that are read; "
            "leave out the oldest"
        )
    # The encoded size is within a few bytes of the content's and needs no second encoding.
    size = sum(each.ByteSize() for each in message.messages)
    if size > limits.max_content_bytes:
        raise _too_large(
            f"{size} bytes of content, more than the {limits.max_content_bytes} that are read; "
            "leave out the oldest messages"
        )


def _too_large(description: str) -> SidecarError:
    return SidecarError(ErrorCode.REQUEST_TOO_LARGE, f"messages: {description}")


def conversation(message: routing_pb2.RouteRequest, violations: Violations) -> Conversation:
    """The messages; wrong ones are reported and stand in the result as far as they go."""
    if not message.messages:
        violations.add("messages", "is empty; send at least one message")
    return Conversation(
        tuple(
            _message(each, f"messages[{index}]", violations)
            for index, each in enumerate(message.messages)
        )
    )


def _message(message: routing_pb2.Message, path: str, violations: Violations) -> Message:
    role = ROLE.to_core(message.role)
    if role is None:
        violations.add(f"{path}.role", f"{message.role} is not a role; use one of {ROLE.names}")
    for index, part in enumerate(message.parts):
        if part.WhichOneof("part") is None:
            violations.add(f"{path}.parts[{index}]", "is unset; set text or image")
    if message.tool_calls and role not in (Role.ASSISTANT, None):
        violations.add(f"{path}.tool_calls", f"only an assistant has them, not a {role} message")
    if message.tool_call_id and role not in (Role.TOOL, None):
        violations.add(f"{path}.tool_call_id", f"only a tool message has it, not a {role} message")
    for index, call in enumerate(message.tool_calls):
        if not call.name:
            violations.add(f"{path}.tool_calls[{index}].name", "is empty; name the tool")
    return Message(
        role=role or Role.USER,
        text="\n".join(part.text for part in message.parts if part.HasField("text")),
        images=sum(part.HasField("image") for part in message.parts),
        tool_calls=tuple(
            ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls
        ),
        tool_call_id=message.tool_call_id,
    )


def needs(message: routing_pb2.Needs, conversation: Conversation, violations: Violations) -> Needs:
    """What the caller says the model needs, and what the conversation shows that it needs."""
    capabilities = set(implied_capabilities(conversation))
    for index, value in enumerate(message.capabilities):
        capability = CAPABILITY.to_core(value)
        if capability is None:
            violations.add(
                f"needs.capabilities[{index}]",
                f"{value} is not a capability; use one of {CAPABILITY.names}",
            )
        else:
            capabilities.add(capability)
    if message.context_tokens < 0:
        violations.add(
            "needs.context_tokens",
            f"{message.context_tokens} is negative; send 0 if the length is unknown",
        )
    return Needs(frozenset(capabilities), message.context_tokens)


def implied_capabilities(conversation: Conversation) -> frozenset[Capability]:
    """What a model needs to read the conversation at all.

    Tool calls in the history count: providers refuse such messages for models without tools, also
    where no new tool is offered.
    """
    implied = set()
    if conversation.images:
        implied.add(Capability.IMAGES)
    if any(each.tool_calls or each.role is Role.TOOL for each in conversation.messages):
        implied.add(Capability.TOOLS)
    return frozenset(implied)


def dialect(value: routing_pb2.ApiDialect.ValueType, violations: Violations) -> ApiDialect | None:
    """None: any."""
    if value == routing_pb2.API_DIALECT_UNSPECIFIED:
        return None
    known = DIALECT.to_core(value)
    if known is None:
        violations.add("dialect", f"{value} is not a dialect; use one of {DIALECT.names}")
    return known


def min_confidence(value: float, violations: Violations) -> float:
    if math.isnan(value) or not 0.0 <= value <= 1.0:
        violations.add("min_confidence", f"{value:g} is outside 0..1; send a probability")
    return value


def bounded(value: str, field: str, max_bytes: int, violations: Violations) -> str:
    """A caller's own id, which is kept: its length is bounded."""
    size = len(value.encode())
    if size > max_bytes:
        violations.add(field, f"has {size} bytes, at most {max_bytes} are allowed; send a hash")
    return value
