"""Route requests to core types, with everything that is wrong with them.

Violations name the field path and the rule. They never quote a message: only roles, ids, names and
numbers.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar.core.conversation import Conversation, Message, Role, ToolCall
from sidecar.core.decision import Needs, implied_capabilities
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import ApiDialect
from sidecar.grpc_api.convert.enums import CAPABILITY, DIALECT, ROLE
from sidecar.grpc_api.convert.violations import Violations

MAX_CONVERSATION_KEY_BYTES = 256
MAX_MODEL_ID_BYTES = 256


_MAX_CAPABILITIES = 16
_SLICE = 256
"""Messages, parts and tool calls that are read in one turn of the event loop: well under a
millisecond's work."""

_LARGE_BYTES = 256 * 1024
"""Of a request that is read in a turn of the event loop after the one in which it was decoded."""

_BESIDE_CONTENT_BYTES = 2 * 1024 * 1024
"""Far more than an inline policy, ids and the frames of 4,096 messages take."""

_MAX_VIOLATIONS = 100
"""After which reading ends: a status has room for fewer."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """How much is read of a request, and of all requests of a batch together.

    Args:
        max_messages: messages of the conversation.
        max_parts: parts and tool calls of one message.
        max_content_bytes: UTF-8 bytes of text and tool-call arguments of the conversation.
    """

    max_messages: int = 4096
    max_parts: int = 1024
    max_content_bytes: int = 4 * 1024 * 1024

    @property
    def max_request_bytes(self) -> int:
        """Of a request with an inline policy; more cannot be within the other limits."""
        return self.max_content_bytes + _BESIDE_CONTENT_BYTES


def check_size(message: routing_pb2.RouteRequest, limits: RequestLimits) -> bool:
    """True if the request is large enough to be read in a turn of its own.

    Raises SidecarError REQUEST_TOO_LARGE; comes first, so that the rest is bounded.
    """
    count = len(message.messages)
    if count > limits.max_messages:
        raise _too_large(
            "messages",
            f"{count} messages, more than the {limits.max_messages} that are read; "
            "leave out the oldest",
        )
    size = _content_bytes([message], limits)
    if size > limits.max_content_bytes:
        raise _too_large(
            "messages",
            f"{size} bytes of content, more than the {limits.max_content_bytes} that are read; "
            "leave out the oldest messages",
        )
    return size > _LARGE_BYTES


def check_batch_size(messages: Sequence[routing_pb2.RouteRequest], limits: RequestLimits) -> None:
    """Raises SidecarError REQUEST_TOO_LARGE if the requests of one batch are too much together."""
    count = sum(len(each.messages) for each in messages)
    if count > limits.max_messages:
        raise _too_large(
            "requests",
            f"{count} messages in all, more than the {limits.max_messages} that are read of a "
            "batch; send several",
        )
    size = _content_bytes(messages, limits)
    if size > limits.max_content_bytes:
        raise _too_large(
            "requests",
            f"{size} bytes of content in all, more than the {limits.max_content_bytes} that are "
            "read of a batch; send several",
        )


def _content_bytes(messages: Sequence[routing_pb2.RouteRequest], limits: RequestLimits) -> int:
    """Bytes of the messages as encoded, within a few of the content's; where the requests as a
    whole are not too large, theirs, which are known sooner."""
    whole = sum(each.ByteSize() for each in messages)
    if whole <= limits.max_content_bytes:
        return whole
    return sum(each.ByteSize() for request in messages for each in request.messages)


def _too_large(field: str, description: str) -> SidecarError:
    return SidecarError(ErrorCode.REQUEST_TOO_LARGE, f"{field}: {description}")


class Turns:
    """Lets long conversations be read a slice at a time, one slice in a turn of the event loop
    however many of them there are."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def next(self) -> None:
        """Returns in a later turn, in which nobody else's slice has begun."""
        async with self._lock:
            await asyncio.sleep(0)


async def conversation(
    message: routing_pb2.RouteRequest, limits: RequestLimits, turns: Turns, violations: Violations
) -> Conversation:
    """The messages; wrong ones are reported and stand in the result as far as they go.

    Raises:
        SidecarError: REQUEST_TOO_LARGE for a message with too many parts; INVALID_REQUEST early
            where more is wrong than can be told.
    """
    if not message.messages:
        violations.add("messages", "is empty; send at least one message")
    converted: list[Message] = []
    in_slice = 0
    for index, each in enumerate(message.messages):
        parts, calls = each.parts, each.tool_calls
        content = len(parts) + len(calls)
        if content > limits.max_parts:
            raise _too_large(
                f"messages[{index}]",
                f"{content} parts and tool calls, more than the {limits.max_parts} that are read "
                "of one message; join text parts",
            )
        in_slice += 1 + content
        if in_slice > _SLICE and converted:
            await turns.next()
            in_slice = 1 + content
        converted.append(_message(each, parts, calls, index, violations))
        if len(violations) > _MAX_VIOLATIONS:
            violations.raise_if_any()
    return Conversation(tuple(converted))


def _message(
    message: routing_pb2.Message,
    parts: Sequence[routing_pb2.Part],
    calls: Sequence[routing_pb2.ToolCall],
    index: int,
    violations: Violations,
) -> Message:
    role = ROLE.to_core(message.role)
    answered = message.tool_call_id
    if (
        role is None
        or (calls and role is not Role.ASSISTANT)
        or (answered and role is not Role.TOOL)
    ):
        _check_role(message, role, f"messages[{index}]", violations)
    texts = []
    images = 0
    for number, part in enumerate(parts):
        text = part.text
        # The text is asked first, since it nearly always decides.
        if text or part.HasField("text"):
            texts.append(text)
        elif part.HasField("image"):
            images += 1
        else:
            violations.add(f"messages[{index}].parts[{number}]", "is unset; set text or image")
    tool_calls = []
    for number, call in enumerate(calls):
        name = call.name
        if not name:
            violations.add(
                f"messages[{index}].tool_calls[{number}].name", "is empty; name the tool"
            )
        tool_calls.append(ToolCall(call.id, name, call.arguments))
    return Message(role or Role.USER, "\n".join(texts), images, tuple(tool_calls), answered)


def _check_role(
    message: routing_pb2.Message, role: Role | None, path: str, violations: Violations
) -> None:
    if role is None:
        violations.add(f"{path}.role", f"{message.role} is not a role; use one of {ROLE.names}")
        return
    if message.tool_calls and role is not Role.ASSISTANT:
        violations.add(f"{path}.tool_calls", f"only an assistant has them, not a {role} message")
    if message.tool_call_id and role is not Role.TOOL:
        violations.add(f"{path}.tool_call_id", f"only a tool message has it, not a {role} message")


def needs(message: routing_pb2.Needs, conversation: Conversation, violations: Violations) -> Needs:
    """What the caller says the model needs, and what the conversation shows that it needs."""
    capabilities = set(implied_capabilities(conversation))
    if len(message.capabilities) > _MAX_CAPABILITIES:
        violations.add(
            "needs.capabilities",
            f"{len(message.capabilities)} capabilities, at most {_MAX_CAPABILITIES} are allowed; "
            "send each once",
        )
    for index, value in enumerate(message.capabilities[:_MAX_CAPABILITIES]):
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
