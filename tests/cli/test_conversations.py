import json
from typing import Any

import pytest

from sidecar.cli.conversations import Case, read_cases
from sidecar.cli.failures import Failure
from sidecar.core.conversation import Conversation, Message, Role, ToolCall

USER = {"role": "user", "content": "hello"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("document", "messages"),
    [
        ([USER], [Message(Role.USER, "hello")]),
        ({"messages": [USER], "model": "x", "stream": True}, [Message(Role.USER, "hello")]),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "a"},
                        {"type": "image_url", "image_url": {"url": "data:"}},
                        {"type": "text", "text": "b"},
                    ],
                }
            ],
            [Message(Role.USER, "a\nb", images=1)],
        ),
        (
            [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
            [Message(Role.ASSISTANT, "", tool_calls=(ToolCall("c1", "f", "{}"),))],
        ),
        (
            [{"role": "tool", "tool_call_id": "c1", "content": "42"}],
            [Message(Role.TOOL, "42", tool_call_id="c1")],
        ),
    ],
    ids=["list", "request", "parts", "tool-call", "tool-result"],
)
def test_what_chat_apis_take_is_read(document: Any, messages: list[Message]) -> None:
    for text in (json.dumps(document), json.dumps(document, indent=2)):
        assert read_cases(text, "f.json") == [Case(Conversation(tuple(messages)))]


def test_json_lines_are_one_conversation_each() -> None:
    lines = [
        json.dumps({"messages": [USER], "policy": "travel", "expected": ""}),
        "",
        json.dumps([USER]),
    ]
    conversation = Conversation((Message(Role.USER, "hello"),))
    assert read_cases("\n".join(lines), "f.jsonl") == [
        Case(conversation, "travel", ""),
        Case(conversation),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: not JSON"),
        ("{", "f: not JSON"),
        ('[{"role": "user", "content": "a"}]\n{', "f:2: not JSON"),
        ('"hello"', "f: must be a list of messages"),
        ("{}", "f: must be a list of messages"),
        ("[]", "f: messages is empty"),
        ('["hello"]', "f: messages[0]: must be an object"),
        ('[{"content": "a"}]', "f: messages[0].role: None is none of system"),
        ('[{"role": "bot", "content": "a"}]', "f: messages[0].role: 'bot' is none of system"),
        ('[{"role": "user", "content": 7}]', "f: messages[0].content: must be a text or a list"),
        (
            '[{"role": "user", "content": [{"type": "sound"}]}]',
            "f: messages[0].content[0]: must be a part of type text or image_url",
        ),
        (
            '[{"role": "assistant", "tool_calls": [{"id": "x"}]}]',
            "f: messages[0].tool_calls: each must have id and function.name",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}], "policy": 3}',
            "f: policy must be a text",
        ),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(Failure) as raised:
        read_cases(text, "f")
    assert raised.value.message.startswith(message)
