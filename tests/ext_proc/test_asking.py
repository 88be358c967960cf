"""Who asks for routing, by which policy; and what becomes of a concrete model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import PolicyName, RoutingRequest
from sidecar.core.naming import PolicyRule, PolicySelection
from sidecar.core.policy import ApiDialect, Model
from sidecar.ext_proc.asking import RouteSays, asked, policy_name
from sidecar.ext_proc.options import Asking
from sidecar.ext_proc.request import HttpHead, Passed, PassReason, Understood

CATALOG = {
    "openai/big": Model("openai/big", "big-1", dialects=frozenset({ApiDialect.OPENAI_CHAT})),
    "bedrock/claude": Model(
        "bedrock/claude", "claude", dialects=frozenset({ApiDialect.OPENAI_CHAT})
    ),
    "anthropic/claude": Model(
        "anthropic/claude", "claude", dialects=frozenset({ApiDialect.ANTHROPIC_MESSAGES})
    ),
}
OPTIONS = Asking(
    selection=PolicySelection(rules=(PolicyRule("x-team", "search", "search"),)),
    paths={"/travel/": "travel", "/travel/eu/": "travel-eu"},
    authorities={"support.internal": "support"},
    aliases={"auto": "", "trip": "travel"},
)
TALK = Conversation((Message(Role.USER, "hello"),))


def ask(
    model: str = "auto",
    *,
    path: str = "/v1/messages",
    authority: str = "gateway",
    headers: Mapping[str, str] | None = None,
    route: str = "",
    options: Asking = OPTIONS,
    key: str = "",
) -> RoutingRequest | Passed:
    shown = {name: (value,) for name, value in (headers or {}).items()}
    head = HttpHead("POST", path, authority, shown)
    understood = Understood(ApiDialect.ANTHROPIC_MESSAGES, model, TALK, conversation_key=key)
    return asked(head, understood, RouteSays(route), options, CATALOG)


@pytest.mark.parametrize(
    ("case", "policy"),
    [
        ({"model": "auto"}, ""),
        ({"model": "trip"}, "travel"),
        ({"model": ""}, ""),
        ({"headers": {"x-llm-policy": "support"}}, "support"),
        ({"headers": {"x-team": "search"}}, "search"),
        ({"headers": {"x-team": "ads"}}, ""),
        ({"headers": {"x-team": "search", "x-llm-policy": "support"}}, "support"),
        ({"headers": {"x-team": "search"}, "path": "/travel/"}, "search"),
        ({"path": "/travel/v1/messages"}, "travel"),
        ({"path": "/travel/eu/v1/messages"}, "travel-eu"),
        ({"authority": "Support.Internal:8080"}, "support"),
        ({"route": "travel", "headers": {"x-llm-policy": "support"}}, "travel"),
        ({"headers": {"x-llm-policy": "support"}, "path": "/travel/"}, "support"),
        ({"path": "/travel/", "authority": "support.internal"}, "travel"),
        ({"path": "/travel/", "model": "auto"}, "travel"),
        ({"headers": {"x-llm-policy": "support"}, "model": "trip"}, "support"),
    ],
    ids=str,
)
def test_policy_that_a_request_asks_for(case: dict[str, str], policy: str) -> None:
    request = ask(**case)  # type: ignore[arg-type]

    assert isinstance(request, RoutingRequest)
    assert request.policy == PolicyName(policy)
    assert request.model == ""


@pytest.mark.parametrize("case", [{"route": "travel"}, {"path": "/travel/x"}], ids=str)
def test_asking_by_other_means_than_the_model_routes_whatever_the_model_is(
    case: dict[str, str],
) -> None:
    request = ask("gpt-unknown", **case)  # type: ignore[arg-type]

    assert isinstance(request, RoutingRequest)
    assert request.model == ""


@pytest.mark.parametrize(
    ("name", "kept"),
    [("openai/big", "openai/big"), ("big-1", "openai/big"), ("claude", "anthropic/claude")],
)
def test_concrete_model_is_kept(name: str, kept: str) -> None:
    """Of two that are called the same, the one that speaks the client's API."""
    request = ask(name)

    assert isinstance(request, RoutingRequest)
    assert request.model == kept


def test_concrete_model_that_the_catalog_lacks_is_passed() -> None:
    assert ask("gpt-unknown") == Passed(PassReason.UNKNOWN_MODEL)


def test_concrete_model_is_routed_where_that_is_set() -> None:
    request = ask("gpt-unknown", options=Asking(route_concrete=True))

    assert isinstance(request, RoutingRequest)
    assert request.model == ""


def test_policy_header_can_be_switched_off() -> None:
    headers = {"x-llm-policy": "support"}
    request = ask(headers=headers, options=Asking(selection=PolicySelection("")))

    assert isinstance(request, RoutingRequest)
    assert request.policy == PolicyName()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", PolicyName()),
        ("travel", PolicyName("travel")),
        ("namespaces/team-a/policies/travel", PolicyName("travel", "team-a")),
        ("Travel", None),
        ("a/b", None),
        ("x" * 3 + "\n", None),
    ],
)
def test_policy_names(text: str, name: PolicyName | None) -> None:
    assert policy_name(text) == name


def test_policy_that_is_no_name_is_passed() -> None:
    assert ask(headers={"x-llm-policy": "Not a name"}) == Passed(PassReason.UNKNOWN_POLICY)


def test_key_of_the_header_goes_before_that_of_the_body() -> None:
    request = ask(headers={"x-llm-conversation": "mine"}, key="of the body")

    assert isinstance(request, RoutingRequest)
    assert request.conversation_key == "mine"


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"x-openwebui-chat-id": "of the chat", "session-id": "of the session"}, "of the session"),
        ({"x-openwebui-chat-id": "of the chat", "session-id": ""}, "of the chat"),
        ({"x-llm-conversation": "not asked for"}, "of the body"),
    ],
)
def test_of_several_headers_the_first_that_a_request_has_is_its_key(
    headers: dict[str, str], key: str
) -> None:
    options = Asking(key_headers=("session-id", "x-openwebui-chat-id"))
    request = ask(headers=headers, key="of the body", options=options)

    assert isinstance(request, RoutingRequest)
    assert request.conversation_key == key


def test_key_that_is_too_long_is_bounded() -> None:
    request = ask(headers={"x-llm-conversation": "k" * 1000})

    assert isinstance(request, RoutingRequest)
    assert 0 < len(request.conversation_key) <= 256


def test_a_task_keeps_its_route_without_the_client_knowing_of_it() -> None:
    request = ask()

    assert isinstance(request, RoutingRequest)
    assert request.keep_task
    assert request.caller == ""


def test_caller_is_who_envoy_says() -> None:
    options = Asking(caller_header="x-client")
    request = ask(headers={"x-client": "team-a"}, options=options)

    assert isinstance(request, RoutingRequest)
    assert request.caller == "team-a"


@pytest.mark.parametrize("stream", [True, False])
def test_answer_that_is_not_streamed_comes_as_a_whole(stream: bool) -> None:
    understood = Understood(ApiDialect.OPENAI_CHAT, "auto", TALK, stream=stream)
    request = asked(HttpHead("POST", "/", "", {}), understood, RouteSays(), OPTIONS, CATALOG)

    assert isinstance(request, RoutingRequest)
    assert request.whole_answer is not stream


def test_what_the_provider_keeps_and_has_sealed_is_told() -> None:
    head = HttpHead("POST", "/v1/responses", "gateway", {})
    understood = Understood(
        ApiDialect.OPENAI_RESPONSES,
        "auto",
        TALK,
        previous_response_id="resp_1",
        refers_to="file_1",
        sealed=True,
    )
    request = asked(head, understood, RouteSays(), OPTIONS, CATALOG)

    assert isinstance(request, RoutingRequest)
    assert (request.continues, request.refers_to) == ("resp_1", "file_1")
    assert request.sealed


def test_what_the_variant_sends_has_trailers_refused() -> None:
    """Its routes retry."""
    variant = Path(__file__).parents[2] / "docker/envoy/variants/full_duplex.yaml"
    ext_proc, _ = YAML(typ="safe").load(variant)
    metadata = [
        (each["key"], each["value"])
        for each in ext_proc["typed_config"]["grpc_service"]["initial_metadata"]
    ]

    assert RouteSays.of(metadata, OPTIONS).no_trailers
    assert not RouteSays.of([("x-llm-policy", "default")], OPTIONS).no_trailers
