"""Settings of the Envoy edge: what each does, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sidecar.app_ext_proc import dialect_options
from sidecar.config_ext_proc import ExtProcSettings
from sidecar.core.policy import ApiDialect
from sidecar.ext_proc.dialects import BY_SHAPE, CODING_AGENTS, DialectOptions, HarnessBlock, tag


def test_defaults_are_those_of_the_dialects() -> None:
    assert dialect_options(ExtProcSettings()) == DialectOptions()


def test_each_setting_of_the_dialects() -> None:
    section = ExtProcSettings(
        llm_paths=("/llm=by-body", "/a=b/*=openai-chat"),
        conversation_fields=(
            "openai-chat=metadata.thread",
            "openai-chat=prompt_cache_key",
            "openai-responses=conversation",
        ),
        harness=("note", "[[=>]]", "coding-agents"),
        max_decoded_bytes=2048,
        bytes_per_token=0,
    )

    assert dialect_options(section) == DialectOptions(
        paths={"/llm": BY_SHAPE, "/a=b/*": ApiDialect.OPENAI_CHAT},
        key_fields={
            ApiDialect.OPENAI_CHAT: ("metadata.thread", "prompt_cache_key"),
            ApiDialect.OPENAI_RESPONSES: ("conversation",),
        },
        harness=(tag("note"), HarnessBlock("[[", "]]"), *CODING_AGENTS),
        max_decoded_bytes=2048,
        bytes_per_token=0,
    )


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("llm_paths", "/llm", "is not PATTERN=API"),
        ("llm_paths", "=openai-chat", "is not PATTERN=API"),
        ("llm_paths", "/llm=grpc", "the APIs are openai-chat"),
        ("conversation_fields", "conversation", "is not API=FIELD"),
        ("conversation_fields", "by-body=conversation", "is not API=FIELD"),
        ("conversation_fields", "openai-chat=", "is not API=FIELD"),
        ("harness", "x" * 61, "at most 60 characters"),
        ("harness", "=>]]", "BEGIN=>END"),
        ("aliases", "auto=My policy", '"My policy" is not a policy'),
        ("paths", "/travel=Travel", '"Travel" is not a policy'),
        ("authorities", "travel.example=namespaces/eu", "is not a policy"),
        ("caller_header", "Content-Type", "lower case"),
        ("caller_header", "x-envoy-peer", "has a meaning of its own"),
        ("caller_header", "te", "has a meaning of its own"),
        ("conversation_header", "Chat-Id", '"Chat-Id" is not the name of a header'),
    ],
)
def test_refused_with_the_value_and_what_to_write(field: str, value: str, said: str) -> None:
    given = value if field == "caller_header" else (value,)
    with pytest.raises(ValidationError) as caught:
        ExtProcSettings.model_validate({field: given})

    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["tenant-id", "team", "hostname", "connection-id"])
def test_header_whose_name_only_begins_like_one_of_http_is_taken(name: str) -> None:
    assert ExtProcSettings(caller_header=name).caller_header == name
