"""Which requests are read, by which API, and why the others pass."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.conversation import Message, Role
from sidecar.core.policy import ApiDialect
from sidecar.ext_proc.dialects import BY_SHAPE, DialectOptions, LlmDialects
from sidecar.ext_proc.dialects.json_fields import splice, with_first
from sidecar.ext_proc.request import Dialects, HttpHead, HttpRequest, Passed, Understood
from tests.ext_proc.dialects.requests import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    PROPERTY,
    RESPONSES,
    head,
    request,
    understood,
)

DIALECTS: Dialects = LlmDialects()
ASK: dict[str, object] = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}]}

RECOGNISED: dict[str, tuple[HttpHead, str]] = {
    "chat": (head(CHAT), "openai-chat"),
    "responses": (head(RESPONSES), "openai-responses"),
    "completions": (head(COMPLETIONS), "openai-completions"),
    "messages": (head(MESSAGES), "anthropic-messages"),
    "tokens counted": (head(MESSAGES + "/count_tokens"), "anthropic-messages"),
    "tokens counted of responses": (head(RESPONSES + "/input_tokens"), "openai-responses"),
    "history compacted": (head(RESPONSES + "/compact"), "openai-responses"),
    "below a prefix": (head("/gateway" + MESSAGES), "anthropic-messages"),
    "query": (head(MESSAGES + "?beta=true"), "anthropic-messages"),
    "charset": (head(content_type="application/json; charset=utf-8"), "openai-chat"),
    "JSON of another name": (head(content_type="application/vnd.x+JSON"), "openai-chat"),
    "no content type": (HttpHead("POST", CHAT, "", {}), "openai-chat"),
    "another method": (head(method="GET"), "not_an_llm_request"),
    "another path": (head("/v1/embeddings"), "not_an_llm_request"),
    "below the path": (head(RESPONSES + "/resp_1/cancel"), "not_an_llm_request"),
    "path in the query": (head("/x?y=/v1/messages"), "not_an_llm_request"),
    "form": (head(content_type="multipart/form-data; boundary=x"), "not_json"),
    "JSON lines": (head(content_type="application/jsonl"), "not_json"),
}


@pytest.mark.parametrize(("given_head", "expected"), RECOGNISED.values(), ids=RECOGNISED.keys())
def test_recognised_by_the_head(given_head: HttpHead, expected: str) -> None:
    found = DIALECTS.recognise(given_head)

    assert (found.reason if isinstance(found, Passed) else found).value == expected


KEEPS = {
    CHAT: False,
    COMPLETIONS: False,
    MESSAGES: False,
    "/gateway" + MESSAGES + "/count_tokens?beta=true": False,
    RESPONSES: True,
    RESPONSES + "?x": True,
    RESPONSES + "/resp_1": True,
    "/v1/conversations": True,
    "/by-shape": True,
}


@pytest.mark.parametrize(("path", "keeps"), KEEPS.items())
def test_what_may_be_kept_by_a_provider(path: str, keeps: bool) -> None:
    dialects = LlmDialects(DialectOptions(paths={**DialectOptions().paths, "/by-shape": BY_SHAPE}))

    assert dialects.keeps(head(path)) is keeps


PASSED: dict[str, tuple[HttpRequest, str]] = {
    "path": (request(ASK, "/v1/models"), "not_an_llm_request"),
    "no body": (request(None), "no_body"),
    "empty body": (request(b""), "no_body"),
    "cut off": (request(ASK, complete=False), "incomplete_body"),
    "not JSON": (request(b"model=auto"), "malformed_body"),
    "half": (request(json.dumps(ASK).encode()[:-2]), "malformed_body"),
    "UTF-16": (request(json.dumps(ASK).encode("utf-16")), "malformed_body"),
    "text is not UTF-8": (
        request(b'{"messages":[{"role":"user","content":"\xff"}]}'),
        "malformed_body",
    ),
    "nested without end": (
        request(b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "malformed_body",
    ),
    "no object": (request(b"[]"), "unknown_shape"),
    "no messages": (request({"model": "auto"}), "unknown_shape"),
    "no input": (request({"model": "auto"}, RESPONSES), "unknown_shape"),
    "no prompt": (request({"model": "auto"}, COMPLETIONS), "unknown_shape"),
    "messages are text": (request({"messages": "Hi"}), "unknown_shape"),
    "a message is text": (request({"messages": ["Hi"]}), "unknown_shape"),
    "a message without role": (request({"messages": [{"content": "Hi"}]}), "unknown_shape"),
    "a role of nobody": (request({"messages": [{"role": "owner"}]}), "unknown_shape"),
    "content is a number": (
        request({"messages": [{"role": "user", "content": 1}]}),
        "unknown_shape",
    ),
    "an item without type, role and id": (
        request({"input": [{"content": "Hi"}]}, RESPONSES),
        "unknown_shape",
    ),
    "an item of a role of nobody": (
        request({"input": [{"id": "msg_1", "role": "owner"}]}, RESPONSES),
        "unknown_shape",
    ),
    "an item is text": (request({"input": ["Hi"]}, RESPONSES), "unknown_shape"),
    "a model that is no text": (request({**ASK, "model": 1}), "unknown_shape"),
    "unknown encoding": (request(ASK, content_encoding="compress"), "unknown_encoding"),
    "not encoded as said": (request(ASK, content_encoding="gzip"), "unknown_encoding"),
}


@pytest.mark.parametrize(("sent", "reason"), PASSED.values(), ids=PASSED.keys())
def test_passed_with_a_reason(sent: HttpRequest, reason: str) -> None:
    read = DIALECTS.read(sent)

    assert isinstance(read, Passed)
    assert read.reason.value == reason
    assert "Hi" not in read.detail
    assert "auto" not in read.detail


def test_compressed_body_is_read_and_kept_decoded() -> None:
    plain = json.dumps(ASK).encode()

    read = DIALECTS.read(request(gzip.compress(plain), content_encoding="gzip"))

    assert isinstance(read, Understood)
    assert (read.model, read.plain_body) == ("auto", plain)


def test_body_that_decodes_to_too_much_passes() -> None:
    dialects = LlmDialects(DialectOptions(max_decoded_bytes=1000))
    read = dialects.read(
        request(
            gzip.compress(json.dumps({**ASK, "x": "a" * 1000}).encode()), content_encoding="gzip"
        )
    )

    assert isinstance(read, Passed)
    assert read.reason.value == "decoded_too_large"


@pytest.mark.parametrize("more", [0, 1])
def test_body_of_a_million_tiny_items_passes(more: int) -> None:
    """They would hold the event loop for seconds, whatever thread reads them."""
    items = 1_000_000 - json.dumps(ASK).count(",") + more
    body = json.dumps({**ASK, "x": [0] * items}).encode()

    read = DIALECTS.read(request(gzip.compress(body, 1), content_encoding="gzip"))

    if more:
        assert isinstance(read, Passed)
        assert read.detail == "the body has more than 1000000 commas"
    else:
        assert isinstance(read, Understood)


def test_fields_that_nobody_reads_are_no_objects() -> None:
    """A million of them would hold the event loop for a second, whatever thread reads them."""
    more = {f"k{index}": 1 for index in range(100_000)}
    body = json.dumps({**more, **ASK}).encode()

    tracemalloc.start()
    try:
        read = DIALECTS.read(request(body))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert isinstance(read, Understood)
    assert peak < 1_000_000


def test_uncompressed_body_is_not_kept_twice() -> None:
    assert understood(ASK).plain_body is None


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (ASK, {}, "openai-chat"),
        (ASK, {"anthropic_version": "2023-06-01"}, "anthropic-messages"),
        ({**ASK, "system": "Be brief."}, {}, "anthropic-messages"),
        ({"input": "Hi"}, {}, "openai-responses"),
        ({"prompt": "Hi"}, {}, "openai-completions"),
        ({"prompt": {"id": "pmpt_1"}}, {}, "openai-responses"),
        ({"documents": []}, {}, "unknown_shape"),
    ],
)
def test_the_body_tells_the_api_where_the_path_does_not(
    body: dict[str, object], headers: dict[str, str], expected: str
) -> None:
    dialects = LlmDialects(DialectOptions(paths={"/llm": BY_SHAPE}))

    read = dialects.read(HttpRequest(head("/llm", **headers), json.dumps(body).encode()))

    assert (read.reason if isinstance(read, Passed) else read.dialect).value == expected


def test_of_patterns_the_first_that_fits_counts() -> None:
    paths = {"/a/*": ApiDialect.OPENAI_RESPONSES, "*": ApiDialect.OPENAI_CHAT}
    dialects = LlmDialects(DialectOptions(paths=paths))

    assert dialects.recognise(head("/a/b")) is ApiDialect.OPENAI_RESPONSES
    assert dialects.recognise(head("/b")) is ApiDialect.OPENAI_CHAT


@pytest.mark.parametrize(("value", "stream"), [(True, True), (False, False), ("true", False)])
def test_stream(value: object, stream: bool) -> None:
    assert understood({**ASK, "stream": value}).stream is stream
    assert understood(ASK).stream is False


@pytest.mark.parametrize(
    ("path", "more", "awaited"),
    [
        (MESSAGES, {"stream": True}, True),
        (MESSAGES + "/count_tokens", {}, False),
        (MESSAGES + "/count_tokens?beta=true", {}, False),
        (RESPONSES, {"background": False}, True),
        (RESPONSES, {"background": True}, False),
        (RESPONSES + "/compact", {}, True),
        (RESPONSES + "/input_tokens", {}, False),
    ],
)
def test_a_response_that_is_not_the_models_answer_is_told(
    path: str, more: dict[str, object], awaited: bool
) -> None:
    assert understood({"input": "Hi", **ASK, **more}, path).awaited is awaited


def test_model_may_be_absent_or_null() -> None:
    assert understood({"messages": []}).model == ""
    assert understood({"messages": [], "model": None}).model == ""


def test_only_the_newest_messages_are_read() -> None:
    dialects = LlmDialects(DialectOptions(max_messages=2))
    sent = {"messages": [{"role": "user", "content": str(n)} for n in range(4)]}

    assert understood(sent, dialects=dialects).conversation.messages == (
        Message(Role.USER, "2"),
        Message(Role.USER, "3"),
    )


def test_no_estimate_is_made_if_not_wanted() -> None:
    dialects = LlmDialects(DialectOptions(bytes_per_token=0))

    assert understood({**ASK, "max_tokens": 9}, dialects=dialects).needs.context_tokens == 0


LEGACY_SESSION = "user_" + "a" * 64 + "_account_b_session_57a121ec-f78c-48c3-a745-e3036a3ecc33"
SESSION = '{"device_id":"d","account_uuid":"","session_id":"54c1eb09-bc4c-4d2f-98eb-6d2ab2d5e2fe"}'
KEYS: dict[str, tuple[str, dict[str, object], str]] = {
    "none": (MESSAGES, {}, ""),
    "user with a session": (
        MESSAGES,
        {"metadata": {"user_id": LEGACY_SESSION}},
        "57a121ec-f78c-48c3-a745-e3036a3ecc33",
    ),
    "user with a session, in JSON": (
        MESSAGES,
        {"metadata": {"user_id": SESSION}},
        "54c1eb09-bc4c-4d2f-98eb-6d2ab2d5e2fe",
    ),
    "user alone": (MESSAGES, {"metadata": {"user_id": "user_1234"}}, ""),
    "user alone, in JSON": (MESSAGES, {"metadata": {"user_id": '{"device_id":"d"}'}}, ""),
    "half of JSON": (MESSAGES, {"metadata": {"user_id": '{"session_id":'}}, ""),
    "no metadata": (MESSAGES, {"metadata": None}, ""),
    "metadata of another type": (MESSAGES, {"metadata": ["user_id"]}, ""),
    "metadata of chat": (CHAT, {"metadata": {"user_id": LEGACY_SESSION}}, ""),
    "cache key": (CHAT, {"prompt_cache_key": "k"}, ""),
    "conversation": (RESPONSES, {"conversation": "conv_1", "input": []}, "conv_1"),
    "conversation, as an object": (
        RESPONSES,
        {"conversation": {"id": "conv_1"}, "input": []},
        "conv_1",
    ),
}


@pytest.mark.parametrize(("path", "body", "key"), KEYS.values(), ids=KEYS.keys())
def test_conversation_key(path: str, body: dict[str, object], key: str) -> None:
    assert understood({"messages": [], **body}, path).conversation_key == key


def test_text_that_was_cut_within_a_character_is_read() -> None:
    body = rb'{"user":"\ude00","model":"auto","messages":[{"role":"user","content":"Hi \ud83d"}]}'

    read = DIALECTS.read(HttpRequest(head(), body))

    assert isinstance(read, Understood)
    assert read.conversation.messages[0].text == "Hi \ufffd"
    assert read.model_at is not None
    assert splice(body, read.model_at, "m") == body.replace(b'"auto"', b'"m"')


def test_configured_field_is_the_conversation_key() -> None:
    fields = {ApiDialect.OPENAI_CHAT: ("metadata.thread", "prompt_cache_key")}
    dialects = LlmDialects(DialectOptions(key_fields=fields))
    sent = {**ASK, "prompt_cache_key": "cache"}

    assert understood(sent, dialects=dialects).conversation_key == "cache"
    sent["metadata"] = {"thread": "t" * 300}
    # Too long to be kept, so its hash takes its place.
    assert len(understood(sent, dialects=dialects).conversation_key) == 64


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "tool_calls", "function", "output", "input"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@PROPERTY
@given(
    path=st.sampled_from([CHAT, RESPONSES, COMPLETIONS, MESSAGES]),
    body=st.dictionaries(
        st.sampled_from(
            ["messages", "input", "prompt", "model", "system", "tools", "metadata", "stream"]
        ),
        json_values
        | st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant", "tool"]), "content": json_values}
            ),
            max_size=3,
        ),
    ),
)
def test_any_json_is_read_or_passed(path: str, body: dict[str, object]) -> None:
    read = DIALECTS.read(request(body, path))

    assert isinstance(read, Understood | Passed)
    if isinstance(read, Understood):
        data = json.dumps(body).encode()
        at = read.model_at
        assert (at is None) == ("model" not in body)
        changed = with_first(data, "model", "m") if at is None else splice(data, at, "m")
        assert json.loads(changed) == {**body, "model": "m"}


@PROPERTY
@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_passed(body: bytes) -> None:
    assert isinstance(DIALECTS.read(HttpRequest(head(), body)), Understood | Passed)
