"""What can be set about reading requests of LLM APIs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sidecar.core.policy import ApiDialect
from sidecar.ext_proc.dialects.harness import CODING_AGENTS, HarnessBlock

BY_SHAPE = None
"""In `DialectOptions.paths`: the body tells which API it is for."""

PATHS: Mapping[str, ApiDialect | None] = MappingProxyType(
    {
        "*/v1/chat/completions": ApiDialect.OPENAI_CHAT,
        "*/v1/responses": ApiDialect.OPENAI_RESPONSES,
        "*/v1/responses/compact": ApiDialect.OPENAI_RESPONSES,
        "*/v1/responses/input_tokens": ApiDialect.OPENAI_RESPONSES,
        "*/v1/completions": ApiDialect.OPENAI_COMPLETIONS,
        "*/v1/messages": ApiDialect.ANTHROPIC_MESSAGES,
        # Counts for the model that the next request will go to, and has the same body.
        "*/v1/messages/count_tokens": ApiDialect.ANTHROPIC_MESSAGES,
    }
)

KEY_FIELDS: Mapping[ApiDialect, tuple[str, ...]] = MappingProxyType(
    {
        ApiDialect.ANTHROPIC_MESSAGES: ("metadata.user_id",),
        ApiDialect.OPENAI_RESPONSES: ("conversation",),
    }
)
"""`prompt_cache_key` is not among them: OpenAI advises one per shared prefix, which is often one
for all conversations of an application."""


@dataclass(frozen=True, slots=True)
class DialectOptions:
    """How requests are recognised and read.

    Args:
        paths: pattern of the path without its query -> API; `*` stands for any characters. The
            first that fits counts; a path that none fits is no LLM request.
        key_fields: fields of the body, dotted, whose text is the client's id of the conversation;
            the first that has one counts. Of `metadata.user_id` only a session in it is taken,
            since a user has many conversations.
        harness: blocks that a harness puts into the user's turns, not shown to the router.
        max_decoded_bytes: largest body after decompression.
        max_messages: messages that are read, newest first; older ones are left out.
        bytes_per_token: to estimate the context a request needs; 0: no estimate is made, and models
            are not passed over for their context window.
    """

    paths: Mapping[str, ApiDialect | None] = field(default_factory=lambda: PATHS)
    key_fields: Mapping[ApiDialect, tuple[str, ...]] = field(default_factory=lambda: KEY_FIELDS)
    harness: tuple[HarnessBlock, ...] = CODING_AGENTS
    max_decoded_bytes: int = 32 * 1024 * 1024
    max_messages: int = 4096
    bytes_per_token: int = 4
