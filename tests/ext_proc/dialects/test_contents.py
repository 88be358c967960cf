"""What each API says, as messages of the core. Tables: the field of the body -> its messages."""

from __future__ import annotations

import pytest

from sidecar.core.conversation import Message, Role, ToolCall
from sidecar.core.policy import Capability
from tests.ext_proc.dialects.requests import CHAT, COMPLETIONS, MESSAGES, RESPONSES, understood

PNG = "data:image/png;base64,iVBORw0KGgo="
SYSTEM, DEVELOPER, USER, ASSISTANT, TOOL = (
    Role.SYSTEM,
    Role.DEVELOPER,
    Role.USER,
    Role.ASSISTANT,
    Role.TOOL,
)

CHAT_MESSAGES: dict[str, tuple[list[object], list[Message]]] = {
    "text": ([{"role": "user", "content": "Hi"}], [Message(USER, "Hi")]),
    "instructions": (
        [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "Use metric."}]},
            {"role": "user", "content": "Hi", "name": "Ada"},
        ],
        [Message(SYSTEM, "Be brief."), Message(DEVELOPER, "Use metric."), Message(USER, "Hi")],
    ),
    "parts": (
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is"},
                    {"type": "image_url", "image_url": {"url": PNG}},
                    {"type": "text", "text": "this?"},
                    {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
                    {"type": "file", "file": {"file_id": "f"}},
                    {"type": "of tomorrow", "text": {"not": "text"}},
                ],
            }
        ],
        [Message(USER, "What is\nthis?", 1)],
    ),
    "tool loop": (
        [
            {"role": "user", "content": "Weather in Oslo?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                    },
                    {"id": "c2", "type": "custom", "custom": {"name": "sh", "input": "ls"}},
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "Rain"},
            {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "a"}]},
        ],
        [
            Message(USER, "Weather in Oslo?"),
            Message(
                ASSISTANT,
                tool_calls=(
                    ToolCall("c1", "weather", '{"city": "Oslo"}'),
                    ToolCall("c2", "sh", "ls"),
                ),
            ),
            Message(TOOL, "Rain", tool_call_id="c1"),
            Message(TOOL, "a", tool_call_id="c2"),
        ],
    ),
    "function calls": (
        [
            {
                "role": "assistant",
                "content": "",
                "function_call": {"name": "weather", "arguments": "{}"},
            },
            {"role": "function", "name": "weather", "content": "Rain"},
        ],
        [Message(ASSISTANT, tool_calls=(ToolCall("", "weather", "{}"),)), Message(TOOL, "Rain")],
    ),
    "refusal": (
        [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}],
        [Message(ASSISTANT)],
    ),
    "nothing": ([], []),
    "a turn of the harness alone": (
        [{"role": "user", "content": "<environment_details>a</environment_details>"}],
        [],
    ),
    "results of tools in the user's messages": (
        [
            {"role": "user", "content": "<task>\nFix the bug.\n</task>"},
            {"role": "assistant", "content": "<read_file><path>a.py</path></read_file>"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "[read_file for 'a.py'] Result:"},
                    {"type": "text", "text": "poem = 1"},
                    {"type": "text", "text": "<environment_details>a</environment_details>"},
                ],
            },
        ],
        [
            Message(USER, "<task>\nFix the bug.\n</task>"),
            Message(ASSISTANT, "<read_file><path>a.py</path></read_file>"),
            Message(SYSTEM, "[read_file for 'a.py'] Result:\npoem = 1"),
        ],
    ),
    "an image alone": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}],
        [Message(USER, "", 1)],
    ),
}


@pytest.mark.parametrize(("sent", "read"), CHAT_MESSAGES.values(), ids=CHAT_MESSAGES.keys())
def test_chat_completions(sent: list[object], read: list[Message]) -> None:
    assert list(understood({"messages": sent}, CHAT).conversation.messages) == read


RESPONSES_INPUT: dict[str, tuple[object, list[Message]]] = {
    "text": ("Hi", [Message(USER, "Hi")]),
    "messages with and without a type": (
        [
            {"role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": "Hi"},
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "content": [{"type": "output_text", "text": "Hello", "annotations": []}],
            },
        ],
        [Message(DEVELOPER, "Be brief."), Message(USER, "Hi"), Message(ASSISTANT, "Hello")],
    ),
    "parts": (
        [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is this?"},
                    {"type": "input_image", "image_url": PNG},
                    {"type": "input_file", "file_id": "f"},
                ],
            }
        ],
        [Message(USER, "What is this?", 1)],
    ),
    "tool loop": (
        [
            {"role": "user", "content": "Look"},
            {"type": "reasoning", "summary": [], "encrypted_content": "x"},
            {"type": "function_call", "call_id": "c1", "name": "ls", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "a b"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "sh", "input": "ls"},
            {
                "type": "custom_tool_call_output",
                "call_id": "c2",
                "output": [
                    {"type": "input_text", "text": "a"},
                    {"type": "input_image", "image_url": PNG},
                ],
            },
        ],
        [
            Message(USER, "Look"),
            Message(ASSISTANT, tool_calls=(ToolCall("c1", "ls", '"{}"'),)),
            Message(TOOL, "a b", tool_call_id="c1"),
            Message(ASSISTANT, tool_calls=(ToolCall("c2", "sh", '"ls"'),)),
            Message(TOOL, "a", 1, tool_call_id="c2"),
        ],
    ),
    "tools of the provider": (
        [
            {"type": "web_search_call", "id": "ws", "action": {"type": "search", "query": "q"}},
            {"type": "local_shell_call", "call_id": "c", "action": {"command": ["ls"]}},
            {"type": "computer_call", "call_id": "k", "action": {"type": "click"}},
            {
                "type": "computer_call_output",
                "call_id": "k",
                "output": {"type": "computer_screenshot", "image_url": PNG},
            },
            {"type": "item_reference", "id": "msg_9"},
        ],
        [
            Message(
                ASSISTANT,
                tool_calls=(ToolCall("ws", "web_search", '{"type": "search", "query": "q"}'),),
            ),
            Message(ASSISTANT, tool_calls=(ToolCall("c", "local_shell", '{"command": ["ls"]}'),)),
            Message(ASSISTANT, tool_calls=(ToolCall("k", "computer", '{"type": "click"}'),)),
            Message(TOOL, "", 1, tool_call_id="k"),
        ],
    ),
    "references without a type": (
        [{"id": "msg_1"}, {"type": None, "id": "msg_2"}, {"role": "user", "content": "Hi"}],
        [Message(USER, "Hi")],
    ),
    "a message without a type that has an id": (
        [{"id": "msg_1", "role": "assistant", "content": "Hello"}],
        [Message(ASSISTANT, "Hello")],
    ),
    "a turn of the harness alone": ("<user_instructions>Use tabs.</user_instructions>", []),
}


@pytest.mark.parametrize(("sent", "read"), RESPONSES_INPUT.values(), ids=RESPONSES_INPUT.keys())
def test_responses(sent: object, read: list[Message]) -> None:
    assert list(understood({"input": sent}, RESPONSES).conversation.messages) == read


def test_responses_instructions_are_kept_from_the_router() -> None:
    read = understood({"input": "Hi", "instructions": "Be brief."}, RESPONSES).conversation

    assert read.messages == (Message(SYSTEM, "Be brief."), Message(USER, "Hi"))
    assert read.shown_to_router() == (Message(USER, "Hi"),)


@pytest.mark.parametrize(
    ("field", "continued"),
    [
        ({"previous_response_id": "resp_1"}, "resp_1"),
        ({"conversation": "conv_1"}, "conv_1"),
        ({"conversation": {"id": "conv_1"}}, "conv_1"),
        ({"previous_response_id": None}, ""),
        ({}, ""),
    ],
)
def test_responses_note_what_they_continue(field: dict[str, object], continued: str) -> None:
    read = understood({**field, "input": "And then?"}, RESPONSES)

    assert read.previous_response_id == continued


FILE = {"type": "file", "file_id": "file_1"}
IN_RESULT = {"type": "tool_result", "content": [{"type": "document", "source": FILE}]}


def user(*content: object) -> dict[str, object]:
    said = [{"role": "user", "content": content}, {"role": "user", "content": "And then?"}]
    return {"messages": said}


def items(*sent: object) -> dict[str, object]:
    return {"input": [*sent, {"role": "user", "content": "And then?"}]}


def reasoned(**item: object) -> dict[str, object]:
    said = {"role": "user", "content": "Hi"}
    return {"input": [said, {"type": "reasoning", "summary": [], **item}, said]}


REFERENCES: dict[str, tuple[str, dict[str, object], str]] = {
    "file": (CHAT, user({"type": "file", "file": {"file_id": "file_1"}}), "file_1"),
    "file with its data": (CHAT, user({"type": "file", "file": {"file_data": "x" * 2000}}), ""),
    "file that is none": (CHAT, user({"type": "file", "file": [{}]}), ""),
    "the newest of several": (
        CHAT,
        user(*({"type": "file", "file": {"file_id": f"file_{n}"}} for n in (1, 2))),
        "file_2",
    ),
    "file of Responses": (
        RESPONSES,
        items({"role": "user", "content": [{"type": "input_file", "file_id": "file_1"}]}),
        "file_1",
    ),
    "image of Responses": (
        RESPONSES,
        items({"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}),
        "file_1",
    ),
    "file that a tool has found": (
        RESPONSES,
        items(
            {
                "type": "function_call_output",
                "call_id": "c",
                "output": [{"type": "input_file", "file_id": "file_1"}],
            }
        ),
        "file_1",
    ),
    "image by its address": (
        RESPONSES,
        items({"role": "user", "content": [{"type": "input_image", "image_url": PNG}]}),
        "",
    ),
    "item": (RESPONSES, items({"type": "item_reference", "id": "msg_1"}), "msg_1"),
    "item without a type": (RESPONSES, items({"id": "msg_1"}), "msg_1"),
    "reasoning at the provider": (RESPONSES, reasoned(id="rs_1"), "rs_1"),
    "reasoning that comes along": (RESPONSES, reasoned(id="rs_1", encrypted_content="x"), ""),
    "prompt": (RESPONSES, {"prompt": {"id": "pmpt_1", "version": "2"}}, "pmpt_1"),
    "vector store": (
        RESPONSES,
        {**items(), "tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
        "vs_1",
    ),
    "container": (
        RESPONSES,
        {**items(), "tools": [{"type": "code_interpreter", "container": "cntr_1"}]},
        "cntr_1",
    ),
    "new container": (
        RESPONSES,
        {**items(), "tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]},
        "",
    ),
    "document of Messages": (MESSAGES, user({"type": "document", "source": FILE}), "file_1"),
    "image of Messages": (MESSAGES, user({"type": "image", "source": FILE}), "file_1"),
    "upload of Messages": (
        MESSAGES,
        user({"type": "container_upload", "file_id": "file_1"}),
        "file_1",
    ),
    "result of a tool of Messages": (MESSAGES, user(IN_RESULT), "file_1"),
    "document at an address": (
        MESSAGES,
        user({"type": "document", "source": {"type": "url", "url": "https://x"}}),
        "",
    ),
    "container of Messages": (MESSAGES, {**user(), "container": "container_1"}, "container_1"),
    "container with skills": (
        MESSAGES,
        {**user(), "container": {"id": "container_1", "skills": []}},
        "container_1",
    ),
}


@pytest.mark.parametrize(("path", "body", "id"), REFERENCES.values(), ids=REFERENCES.keys())
def test_what_one_provider_alone_has_is_seen(path: str, body: dict[str, object], id: str) -> None:
    assert understood(body, path).refers_to == id


def test_ids_that_are_kept_are_bounded() -> None:
    item = {"type": "item_reference", "id": "m" * 999}
    body = {"previous_response_id": "r" * 5000, **items(item)}

    read = understood(body, RESPONSES)

    assert max(len(read.previous_response_id), len(read.refers_to)) <= 256


@pytest.mark.parametrize("field", [{"prompt": {"id": "pmpt_1"}}, {"previous_response_id": "r"}])
def test_responses_may_have_their_input_at_the_provider(field: dict[str, object]) -> None:
    assert understood(field, RESPONSES).conversation.messages == ()


MESSAGES_MESSAGES: dict[str, tuple[list[object], list[Message]]] = {
    "text": ([{"role": "user", "content": "Hi"}], [Message(USER, "Hi")]),
    "blocks": (
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is", "cache_control": {"type": "ephemeral"}},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"},
                    },
                    {"type": "document", "source": {"type": "url", "url": "https://x"}},
                    {"type": "text", "text": "this?"},
                ],
            }
        ],
        [Message(USER, "What is\nthis?", 1)],
    ),
    "tool loop": (
        [
            {"role": "user", "content": "Look"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm", "signature": "s"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "ls", "input": {"path": "/"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [
                            {"type": "text", "text": "a b"},
                            {"type": "image", "source": {"type": "url", "url": "https://x"}},
                        ],
                    },
                    {"type": "text", "text": "<system-reminder>Mind the time.</system-reminder>"},
                ],
            },
        ],
        [
            Message(USER, "Look"),
            Message(ASSISTANT, "I look.", tool_calls=(ToolCall("t1", "ls", '{"path": "/"}'),)),
            Message(TOOL, "a b", 1, tool_call_id="t1"),
        ],
    ),
    "the user speaks beside results": (
        [
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "a", "is_error": True},
                    {"type": "tool_result", "tool_use_id": "t2"},
                    {"type": "text", "text": "Stop, write a poem."},
                ],
            }
        ],
        [
            Message(TOOL, "a", tool_call_id="t1"),
            Message(TOOL, "", tool_call_id="t2"),
            Message(USER, "Stop, write a poem."),
        ],
    ),
    "tools of the provider": (
        [
            {
                "role": "assistant",
                "content": [
                    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
                    {
                        "type": "web_search_tool_result",
                        "tool_use_id": "s",
                        "content": [{"type": "web_search_result", "url": "https://x"}],
                    },
                    {"type": "text", "text": "Found."},
                ],
            }
        ],
        [
            Message(ASSISTANT, "Found.", tool_calls=(ToolCall("s", "web_search", "{}"),)),
            Message(TOOL, "", tool_call_id="s"),
        ],
    ),
    "instructions in between": (
        [{"role": "system", "content": "Be brief."}],
        [Message(SYSTEM, "Be brief.")],
    ),
}


@pytest.mark.parametrize(("sent", "read"), MESSAGES_MESSAGES.values(), ids=MESSAGES_MESSAGES.keys())
def test_anthropic_messages(sent: list[object], read: list[Message]) -> None:
    assert list(understood({"messages": sent}, MESSAGES).conversation.messages) == read


@pytest.mark.parametrize("system", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_anthropic_system_is_kept_from_the_router(system: object) -> None:
    sent = {"system": system, "messages": [{"role": "user", "content": "Hi"}]}
    read = understood(sent, MESSAGES).conversation

    assert read.messages == (Message(SYSTEM, "Be brief."), Message(USER, "Hi"))
    assert read.shown_to_router() == (Message(USER, "Hi"),)


PROMPTS: dict[str, tuple[object, list[Message]]] = {
    "text": ("Once upon", [Message(USER, "Once upon")]),
    "the first of several": (["Once upon", "There was"], [Message(USER, "Once upon")]),
    "token ids": ([1, 2, 3], []),
    "several of token ids": ([[1, 2], [3]], []),
    "null": (None, []),
    "none": ([], []),
}


@pytest.mark.parametrize(("prompt", "read"), PROMPTS.values(), ids=PROMPTS.keys())
def test_completions(prompt: object, read: list[Message]) -> None:
    assert list(understood({"prompt": prompt}, COMPLETIONS).conversation.messages) == read


TOOLS = [{"type": "function", "function": {"name": "f"}}]
ASK = [{"role": "user", "content": "Hi"}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]
NEEDS: dict[str, tuple[str, dict[str, object], set[Capability]]] = {
    "nothing": (CHAT, {"messages": ASK}, set()),
    "tools offered": (CHAT, {"messages": ASK, "tools": TOOLS}, {Capability.TOOLS}),
    "no tools offered": (CHAT, {"messages": ASK, "tools": []}, set()),
    "tools of null": (CHAT, {"messages": ASK, "tools": None}, set()),
    "functions": (CHAT, {"messages": ASK, "functions": [{"name": "f"}]}, {Capability.TOOLS}),
    "tools in the history": (
        CHAT,
        {"messages": [{"role": "tool", "tool_call_id": "c", "content": "a"}]},
        {Capability.TOOLS},
    ),
    "image": (CHAT, {"messages": IMAGE}, {Capability.IMAGES}),
    "image long ago": (CHAT, {"messages": IMAGE + ASK}, {Capability.IMAGES}),
    "responses": (
        RESPONSES,
        {"input": "Hi", "tools": [{"type": "web_search"}]},
        {Capability.TOOLS},
    ),
    "anthropic": (MESSAGES, {"messages": ASK, "tools": [{"name": "f"}]}, {Capability.TOOLS}),
    "anthropic, at its side": (
        MESSAGES,
        {"messages": ASK, "mcp_servers": [{"type": "url"}]},
        {Capability.TOOLS},
    ),
}


@pytest.mark.parametrize(("path", "body", "needs"), NEEDS.values(), ids=NEEDS.keys())
def test_needs(path: str, body: dict[str, object], needs: set[Capability]) -> None:
    assert understood(body, path).needs.capabilities == needs


X = "x" * 400
BLOCK = f"<user_info>{'x' * 377}</user_info>"
CONTEXT: dict[str, tuple[str, dict[str, object], int]] = {
    "text": (CHAT, {"messages": [{"role": "user", "content": "x" * 400}]}, 100),
    "text that is not ASCII": (CHAT, {"messages": [{"role": "user", "content": "字" * 400}]}, 300),
    "text of a harness": (
        CHAT,
        {"messages": [{"role": "user", "content": text} for text in (BLOCK, f"{BLOCK}Hi")]},
        200,
    ),
    "documents of text": (
        MESSAGES,
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "document", "source": {"type": "text", "data": "x" * 398}},
                        {
                            "type": "document",
                            "source": {"type": "content", "content": [{"type": "text", "text": X}]},
                        },
                        {"type": "search_result", "content": [{"type": "text", "text": X}]},
                        {"type": "document", "source": {"type": "base64", "data": "x" * 4000}},
                        {"type": "document", "source": "of tomorrow"},
                    ],
                }
            ]
        },
        300,
    ),
    "documents that a tool has found": (
        MESSAGES,
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "t",
                            "content": [
                                {"type": "search_result", "content": [{"type": "text", "text": X}]}
                            ],
                        }
                    ],
                }
            ]
        },
        100,
    ),
    "answer": (CHAT, {"messages": [], "max_tokens": 50}, 50),
    "answer, as it is called now": (
        CHAT,
        {"messages": [], "max_completion_tokens": 60, "max_tokens": 50},
        60,
    ),
    "answer of responses": (RESPONSES, {"input": [], "max_output_tokens": 70}, 70),
    "no number": (CHAT, {"messages": [], "max_tokens": "50"}, 0),
    "not above 0": (CHAT, {"messages": [], "max_tokens": -1}, 0),
    "too large to be one": (CHAT, {"messages": [], "max_tokens": 10**40}, 0),
    "image data left out": (
        CHAT,
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": PNG + "A" * 4000}}],
                }
            ]
        },
        0,
    ),
}


@pytest.mark.parametrize(("path", "body", "tokens"), CONTEXT.values(), ids=CONTEXT.keys())
def test_context_is_estimated(path: str, body: dict[str, object], tokens: int) -> None:
    assert understood(body, path).needs.context_tokens == tokens


def answered(**block: object) -> dict[str, object]:
    blocks = [block, {"type": "text", "text": "Hello."}]
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": blocks}]
    return {"messages": [*said, {"role": "user", "content": "And?"}], "max_tokens": 9}


@pytest.mark.parametrize(
    ("path", "body", "sealed"),
    [
        (MESSAGES, answered(type="thinking", thinking="Hm", signature="s"), True),
        (MESSAGES, answered(type="redacted_thinking", data="x"), True),
        (MESSAGES, answered(type="web_search_tool_result", tool_use_id="t", content=[]), True),
        (MESSAGES, answered(type="thinking", thinking="Hm", signature=""), False),
        (MESSAGES, answered(type="text", text="Hm"), False),
        (RESPONSES, reasoned(encrypted_content="x"), True),
        (RESPONSES, reasoned(type="compaction", encrypted_content="x"), True),
        (RESPONSES, reasoned(encrypted_content=None), False),
        (RESPONSES, reasoned(), False),
    ],
)
def test_what_a_provider_has_sealed_is_seen(
    path: str, body: dict[str, object], sealed: bool
) -> None:
    assert understood(body, path).sealed == sealed
