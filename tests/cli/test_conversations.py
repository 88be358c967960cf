import json
from typing import Any

import pytest

from sidecar.cli.conversations import Case, read_cases
from sidecar.cli.failures import Failure
from sidecar.core.conversation import Conversation, Message, Role, ToolCall

USER = {"role": "user", "content": "hello"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

ROLES = "must be one of system, developer, user, assistant, tool"
TOOL_CALL = "f: messages[0].tool_calls[0]"


def tool_call(call: Any) -> str:
    return json.dumps([{"role": "assistant", "tool_calls": [call]}])


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
        ('[\n{"role": "user"}\n{"role": "user"}]', "f: not JSON: Expecting ',' delimiter: line 3"),
        ('"hello"', "f: must be a list of messages"),
        ("{}", "f: must be a list of messages"),
        ("[]", "f: messages is empty"),
        ('["hello"]', "f: messages[0]: must be an object"),
        ('[{"content": "a"}]', f"f: messages[0].role: {ROLES}"),
        ('[{"role": "secret", "content": "a"}]', f"f: messages[0].role: {ROLES}"),
        ('[{"role": ["secret"], "content": "a"}]', f"f: messages[0].role: {ROLES}"),
        ('[{"role": {"a": "secret"}, "content": "a"}]', f"f: messages[0].role: {ROLES}"),
        ('[{"role": "user", "content": 7}]', "f: messages[0].content: must be a text or a list"),
        (
            '[{"role": "user", "content": [{"type": "sound"}]}]',
            "f: messages[0].content[0]: must be a part of type text or image_url",
        ),
        (
            '[{"role": "assistant", "tool_calls": [{"id": "x"}]}]',
            "f: messages[0].tool_calls[0]: must be an object with id and function",
        ),
        (tool_call({"id": 7, "function": {"name": "f"}}), f"{TOOL_CALL}.id: must be a text"),
        (tool_call({"id": "c", "function": {"name": []}}), f"{TOOL_CALL}.function.name: must be"),
        (
            tool_call({"id": "c", "function": {"name": "f", "arguments": {"secret": 1}}}),
            f"{TOOL_CALL}.function.arguments: must be a text",
        ),
        ('[{"role": "assistant", "tool_calls": {"a": 1}}]', "f: messages[0].tool_calls: must be a"),
        (
            '[{"role": "tool", "content": "a", "tool_call_id": ["secret"]}]',
            "f: messages[0].tool_call_id: must be a text",
        ),
        (
            '[{"role": "user", "content": [{"type": ["text"], "text": "secret"}]}]',
            "f: messages[0].content[0]: must be a part",
        ),
        ('[{"role": "user", "content": "secret \\ud800"}]', "f: messages[0].content: holds half"),
        (
            '[{"role": "user", "content": [{"type": "text", "text": "secret \\ud800"}]}]',
            "f: messages[0].content[0].text: holds half a character",
        ),
        (
            '[{"role": "user", "content": "a"}]\n[{"role": "user", "content": "secret \\udfff"}]',
            "f:2: messages[0].content: holds half a character",
        ),
        ("[" * 100_000, "f: nested too deeply"),
        ('[{"role": "user", "content": "a"}]\n' + "[" * 100_000, "f:2: nested too deeply"),
        (
            f'[{{"role": "user", "content": {"9" * 5000}}}]',
            "f: messages[0].content: must be a text or a list",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}], "policy": 3}',
            "f: policy: must be a text",
        ),
    ],
    ids=lambda value: value[:60],
)
def test_what_cannot_be_read_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(Failure) as raised:
        read_cases(text, "f")
    assert raised.value.message.startswith(message)
    assert "\n" not in raised.value.message
    assert "secret" not in raised.value.message


def test_what_is_null_is_absent() -> None:
    document = {
        "messages": [USER | {"tool_calls": None, "tool_call_id": None}],
        "policy": None,
        "expected": None,
    }
    assert read_cases(json.dumps(document), "f") == [
        Case(Conversation((Message(Role.USER, "hello"),)))
    ]


def test_numbers_that_nobody_needs_may_be_long() -> None:
    text = f'{{"messages": [{json.dumps(USER)}], "seed": {"9" * 5000}}}'
    assert read_cases(text, "f") == [Case(Conversation((Message(Role.USER, "hello"),)))]


def test_a_line_ends_only_where_json_lines_end() -> None:
    line = json.dumps([{"role": "user", "content": "a\u2028b"}], ensure_ascii=False)
    case = Case(Conversation((Message(Role.USER, "a\u2028b"),)))
    assert read_cases(f"{line}\n{line}\n", "f") == [case, case]
