"""Reads conversations in the form in which chat APIs take them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
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


def read_case_file(path: Path) -> list[Case]:
    """The conversations of a file in UTF-8; `-` is standard input. Raises Failure as `read_cases`,
    and if it cannot be read."""
    standard_input = str(path) == "-"
    name = "standard input" if standard_input else str(path)
    try:
        data = sys.stdin.buffer.read() if standard_input else path.read_bytes()
        return read_cases(data.decode("utf-8-sig"), name)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise Failure(f"{name}:{line}: not UTF-8; save it in UTF-8") from None
    except OSError as error:
        raise Failure(f"{name}: cannot be read: {error.strerror}") from None


def read_cases(text: str, name: str) -> list[Case]:
    """The conversations of `text`: one JSON document, or one a line (JSON Lines).

    A conversation is a list of messages as OpenAI's Chat Completions API takes them, or an object
    with such a list under `messages` and, if wanted, `policy` and `expected`; other keys, such as
    those of a whole request body, are passed over.

    Args:
        name: of the file, for errors.

    Raises:
        Failure: names the file, the line or the path in the document, and what is wrong; never
            holds what a message says.
    """
    # Not splitlines(): JSON allows other ends of lines, such as U+2028, inside a text.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        document = _parsed(text, name)
    except Failure as failure:
        if len(lines) < 2:
            raise
        whole = failure
    else:
        return [_case(document, name)]
    cases: list[Case] = []
    for number, line in lines:
        where = f"{name}:{number}"
        try:
            document = _parsed(line, where)
        except Failure as failure:
            # Where not even the first line is a document, it is one of several lines.
            raise (failure if cases else whole) from None
        cases.append(_case(document, where))
    return cases


def _parsed(text: str, where: str) -> Any:
    try:
        # No number is of use here, and as int one of more than 4,300 digits would be an error.
        return json.loads(text, parse_int=float)
    except json.JSONDecodeError as error:
        raise Failure(f"{where}: not JSON: {error}") from None
    except RecursionError:
        raise Failure(f"{where}: nested too deeply to be read; flatten it") from None


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
    return Case(
        Conversation(tuple(messages)),
        policy=_optional_text(content, "policy", f"{where}: policy") or "",
        expected=_optional_text(content, "expected", f"{where}: expected"),
    )


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise Failure(f"{where}: must be an object with role and content")
    text, images = _content(message.get("content"), f"{where}.content")
    return Message(
        role=_role(message.get("role"), f"{where}.role"),
        text=text,
        images=images,
        tool_calls=_tool_calls(message.get("tool_calls"), f"{where}.tool_calls"),
        tool_call_id=_optional_text(message, "tool_call_id", f"{where}.tool_call_id") or "",
    )


def _role(role: Any, where: str) -> Role:
    try:
        return Role(role)
    except ValueError:
        # Not shown: what stands in a wrong place may be what somebody wrote.
        raise Failure(f"{where}: must be one of {', '.join(Role)}") from None


def _content(content: Any, where: str) -> tuple[str, int]:
    """The text, and how many images there are."""
    if content is None:
        return "", 0
    if isinstance(content, str):
        return checked_text(content, where), 0
    if not isinstance(content, list):
        raise Failure(f"{where}: must be a text or a list of parts")
    texts, images = [], 0
    for index, part in enumerate(content):
        kind = str(part.get("type")) if isinstance(part, dict) else ""
        if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(checked_text(part["text"], f"{where}[{index}].text"))
        elif kind in _IMAGE_PARTS:
            images += 1
        else:
            raise Failure(f"{where}[{index}]: must be a part of type text or image_url")
    return "\n".join(texts), images


def _tool_calls(calls: Any, where: str) -> tuple[ToolCall, ...]:
    if calls is None:
        return ()
    if not isinstance(calls, list):
        raise Failure(f"{where}: must be a list")
    return tuple(_tool_call(call, f"{where}[{index}]") for index, call in enumerate(calls))


def _tool_call(call: Any, where: str) -> ToolCall:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise Failure(f"{where}: must be an object with id and function")
    return ToolCall(
        id=checked_text(call.get("id"), f"{where}.id"),
        name=checked_text(function.get("name"), f"{where}.function.name"),
        arguments=_optional_text(function, "arguments", f"{where}.function.arguments") or "",
    )


def _optional_text(content: dict[str, Any], key: str, where: str) -> str | None:
    """None where the key is absent or null."""
    value = content.get(key)
    return None if value is None else checked_text(value, where)


def checked_text(value: Any, where: str) -> str:
    """`value`, if it is a text that can be sent. Raises Failure that does not show it."""
    if not isinstance(value, str):
        raise Failure(f"{where}: must be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        # json.loads() takes "\\ud800", and Python gives bytes that are no UTF-8 such a form.
        raise Failure(
            f"{where}: holds half a character (a lone surrogate such as \\ud800, or a byte that is "
            "not UTF-8); take it out"
        ) from None
    return value
