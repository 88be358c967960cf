"""The case files as the sidecar's own types."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.policy import Policy
from tests.prompts.samples import policy_of

CASES = Path(__file__).parent / "cases"

Case = Mapping[str, Any]


def load(file: str) -> Sequence[Case]:
    cases: Sequence[Case] = json.loads((CASES / file).read_text(encoding="utf-8"))
    return cases


def case_id(case: Case) -> str:
    return str(case["case"])


def policy_in(case: Case) -> Policy:
    """The routes of the case; those inline in the request replace the configured ones."""
    inline = case["inline_usage_preferences"]
    groups = (
        [entry["routing_preferences"] for entry in inline] if inline else case["routes"].values()
    )
    return policy_of({route["name"]: route["description"] for group in groups for route in group})


def conversation_in(case: Case) -> Conversation:
    return Conversation(tuple(_message(message) for message in case["messages"]))


def _message(message: Case) -> Message:
    content = message["content"]
    if isinstance(content, str):
        return Message(Role(message["role"]), content)
    texts = [part["text"] for part in content if part["type"] == "text"]
    return Message(Role(message["role"]), "\n".join(texts), images=len(content) - len(texts))


def chat(prompt: str) -> str:
    """What the Qwen2.5 chat template makes of `prompt` as the only message."""
    return (
        "<|im_start|>system\n"
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{prompt}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
