"""Reads conversations in the form in which chat APIs take them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sidecar.cli.failures import Failure
from sidecar.core.conversation import Conversation, Message, Role, ToolCall

_TEXT_PARTS = {"text", "input_text", "output_text"}
_IMAGE_PARTS = {"image_url", "input_image", "image"}


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation of a file.

    Args:
        policy: id of the policy to use; empty for the caller's choice.
        expected: the route that a person would take; None where the file does not say. Empty for
            the policy's default.
    """

    conversation: Conversation
    policy: str = ""
    expected: str | None = None


def read_cases(text: str, name: str) -> list[Case]:
    """The conversations of `text`: one JSON document, or one a line (JSON Lines).

    A conversation is a list of messages as OpenAI's Chat Completions API takes them, or an object
    with such a list under `messages` and, if wanted, `policy` and `expected`; other keys, such as
    those of a whole request body, are passed over.

    Args:
        name: of the file, for errors.

    Raises:
        Failure: names the file, the line or the path in the document, and what is wrong.
    """
    try:
        return [_case(json.loads(text), name)]
    except json.JSONDecodeError as whole:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        if len(lines) < 2:
            raise Failure(f"{name}: not JSON: {whole}") from None
    cases = []
    for number, line in lines:
        try:
            cases.append(_case(json.loads(line), f"{name}:{number}"))
        except json.JSONDecodeError as error:
            raise Failure(f"{name}:{number}: not JSON: {error}") from None
    return cases


def _case(document: Any, where: str) -> Case:
    content = {"messages": document} if isinstance(document, list) else document
    if not isinstance(content, dict) or not isinstance(content.get("messages"), list):
        raise Failure(f"{where}: must be a list of messages, or an object that has `messages`")
    if not content["messages"]:
        raise Failure(f"{where}: messages is empty")
    messages = [
        _message(message, f"{where}: messages[{index}]")
        for index, message in enumerate(content["messages"])
    ]
    for key in ("policy", "expected"):
        if not isinstance(content.get(key, ""), str):
            raise Failure(f"{where}: {key} must be a text")
    return Case(Conversation(tuple(messages)), content.get("policy", ""), content.get("expected"))


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise Failure(f"{where}: must be an object with role and content")
    role = message.get("role")
    if role not in set(Role):
        raise Failure(f"{where}.role: {role!r} is none of {', '.join(Role)}")
    text, images = _content(message.get("content"), f"{where}.content")
    return Message(
        role=Role(role),
        text=text,
        images=images,
        tool_calls=_tool_calls(message.get("tool_calls"), f"{where}.tool_calls"),
        tool_call_id=str(message.get("tool_call_id") or ""),
    )


def _content(content: Any, where: str) -> tuple[str, int]:
    """The text, and how many images there are."""
    if content is None or isinstance(content, str):
        return content or "", 0
    if not isinstance(content, list):
        raise Failure(f"{where}: must be a text or a list of parts")
    texts, images = [], 0
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in _IMAGE_PARTS:
            images += 1
        else:
            raise Failure(f"{where}[{index}]: must be a part of type text or image_url")
    return "\n".join(texts), images


def _tool_calls(calls: Any, where: str) -> tuple[ToolCall, ...]:
    try:
        return tuple(
            ToolCall(call["id"], call["function"]["name"], call["function"].get("arguments", ""))
            for call in calls or ()
        )
    except (TypeError, KeyError, AttributeError):
        raise Failure(f"{where}: each must have id and function.name") from None
