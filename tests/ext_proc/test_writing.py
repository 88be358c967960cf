"""What a decision does to a request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import Decision, Reason, RoutingRequest, Source
from sidecar.core.policy import ApiDialect
from sidecar.ext_proc.effect import Effect
from sidecar.ext_proc.options import OwnedHeader, Writing
from sidecar.ext_proc.request import HttpHead, HttpRequest, Passed, PassReason, Understood
from sidecar.ext_proc.writing import Writer
from tests.ext_proc.standins import chat, decision_of, model_at

BODY = chat("code")
HEAD = HttpHead("POST", "/v1/chat/completions", "gateway", {})
TALK = Conversation((Message(Role.USER, "code"),))
DECISION = decision_of(RoutingRequest(TALK))


def writer(options: Writing | None = None) -> Writer:
    return Writer(options or Writing())


def effect(
    options: Writing | None = None,
    *,
    model: str = "auto",
    plain: bytes | None = None,
    body: bytes = BODY,
    decision: Decision = DECISION,
    longest: int | None = None,
) -> Effect:
    at = model_at(plain or body)
    understood = Understood(ApiDialect.OPENAI_CHAT, model, TALK, model_at=at, plain_body=plain)
    request = HttpRequest(HEAD, body)
    return writer(options).decided(decision, request, understood, longest).whole()


def test_all_headers_of_a_decision() -> None:
    assert dict(effect().headers) == {
        "x-llm-route": "coding",
        "x-llm-model": "big/coder",
        "x-llm-cluster": "big",
        "x-llm-fallbacks": "small/mini",
        "x-llm-decision-id": "d-big/coder",
        "x-llm-source": "model",
        "x-llm-reason": "matched",
        "x-llm-confidence": "0.50",
    }


@pytest.mark.parametrize(("awaited", "timed"), [(True, "big/coder"), (False, "")])
def test_only_a_response_that_is_the_models_answer_is_timed(awaited: bool, timed: str) -> None:
    at = model_at(BODY)
    understood = Understood(ApiDialect.OPENAI_CHAT, "auto", TALK, model_at=at, awaited=awaited)

    done = writer().decided(DECISION, HttpRequest(HEAD, BODY), understood)

    assert done.model == timed
    assert ("x-llm-model", "big/coder") in done.whole().headers


def test_owned_headers_without_a_value_are_removed_not_set_empty() -> None:
    decision = replace(DECISION, route="", fallbacks=(), confidence=None)
    understood = Understood(ApiDialect.OPENAI_CHAT, "auto", TALK, model_at=model_at(BODY))

    done = writer().decided(decision, HttpRequest(HEAD, BODY), understood).whole()

    empty = {"x-llm-route", "x-llm-fallbacks", "x-llm-confidence"}
    assert set(done.remove) == empty
    assert not empty & dict(done.headers).keys()


def test_only_chosen_headers_are_set_and_all_are_removed() -> None:
    options = Writing(prefix="x-route-", headers=frozenset({OwnedHeader.CLUSTER}))

    done = effect(options)

    assert dict(done.headers) == {"x-route-cluster": "big"}
    assert len(done.remove) == len(OwnedHeader) - 1


def test_metadata_tells_the_decision_to_envoys_log() -> None:
    metadata = effect().metadata

    assert metadata["model"] == "big/coder"
    assert metadata["upstream_model"] == "coder-1"
    assert metadata["fallback_upstream_models"] == ["mini-2"]
    assert metadata["confidence"] == 0.5
    assert metadata["policy_digest"] == DECISION.policy.digest
    assert metadata["routing_model"] == DECISION.routing_model


def test_clusters_are_those_of_the_model_and_its_fallbacks() -> None:
    assert effect().clusters == ("big", "small")
    assert effect(Writing(metadata=False)).clusters == ()


def test_model_without_a_cluster_is_not_for_envoy_to_try() -> None:
    decision = replace(DECISION, model=replace(DECISION.model, cluster=""))
    understood = Understood(ApiDialect.OPENAI_CHAT, "auto", TALK, model_at=model_at(BODY))

    assert writer().decided(decision, HttpRequest(HEAD, BODY), understood).whole().clusters == ()


def test_metadata_can_be_switched_off() -> None:
    assert effect(Writing(metadata=False)).metadata == {}


def test_fallback_without_a_cluster_is_not_for_envoy_to_try() -> None:
    nowhere = replace(DECISION.fallbacks[0], cluster="")
    decision = replace(DECISION, fallbacks=(nowhere, *DECISION.fallbacks))
    understood = Understood(ApiDialect.OPENAI_CHAT, "auto", TALK, model_at=model_at(BODY))

    done = writer().decided(decision, HttpRequest(HEAD, BODY), understood).whole()

    assert done.clusters == ("big", "small")
    assert done.metadata["fallback_upstream_models"] == ["mini-2"]


def test_model_of_the_body_is_replaced() -> None:
    assert effect().body == BODY.replace(b'"auto"', b'"coder-1"')


MODELS: dict[str, tuple[bytes, bytes]] = {
    "empty": (b'{"model": "", "n": 1}', b'{"model": "coder-1", "n": 1}'),
    "null": (b'{"model": null, "n": 1}', b'{"model": "coder-1", "n": 1}'),
    "no such key": (b'{"n": 1}', b'{"model": "coder-1","n": 1}'),
}


@pytest.mark.parametrize(("body", "expected"), MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
def test_body_without_a_model_gets_one(body: bytes, expected: bytes, compressed: bool) -> None:
    if compressed:
        done = effect(model="", plain=body, body=b"compressed")
    else:
        done = effect(model="", body=body)

    assert done.body == expected
    assert ("content-encoding" in done.remove) == compressed


def test_body_goes_on_as_it_came_where_the_model_is_right_already() -> None:
    assert effect(model="coder-1").body is None


@pytest.mark.parametrize("model", ["auto", ""])
def test_body_goes_on_as_it_came_where_rewriting_is_switched_off(model: str) -> None:
    assert effect(Writing(rewrite_model=False), model=model).body is None


def test_compressed_body_that_is_rewritten_goes_on_uncompressed() -> None:
    done = effect(plain=BODY, body=b"compressed")

    assert done.body == BODY.replace(b'"auto"', b'"coder-1"')
    assert "content-encoding" in done.remove


FALLBACK = DECISION.fallbacks[0]
RIGHT = chat("code", model="coder-1")
FALLBACKS: dict[str, tuple[Decision, int | None, bool]] = {
    "none": (replace(DECISION, fallbacks=()), None, False),
    "of another name": (DECISION, None, True),
    "of another name, too long for Envoy": (DECISION, len(RIGHT) - 1, False),
    "of the same name elsewhere": (
        replace(DECISION, fallbacks=(replace(FALLBACK, upstream_model="coder-1"),)),
        None,
        False,
    ),
    "that Envoy does not reach": (
        replace(DECISION, fallbacks=(replace(FALLBACK, cluster=""),)),
        None,
        False,
    ),
}


@pytest.mark.parametrize(
    ("decision", "longest", "uncompressed"), FALLBACKS.values(), ids=FALLBACKS.keys()
)
def test_compressed_body_that_is_right_already_goes_on_as_it_came_unless_a_fallback_needs_another(
    decision: Decision, longest: int | None, uncompressed: bool
) -> None:
    done = effect(
        plain=RIGHT, body=b"compressed", model="coder-1", decision=decision, longest=longest
    )

    assert done.body == (RIGHT if uncompressed else None)
    assert ("content-encoding" in done.remove) == uncompressed


LIKE_IT = {
    "another request": replace(DECISION, id="d-2"),
    "another revision": replace(DECISION, policy=replace(DECISION.policy, revision=2)),
    "another text of the revision": replace(
        DECISION, policy=replace(DECISION.policy, digest="sha256:1")
    ),
    "another routing model": replace(DECISION, routing_model="another"),
    "another reason": replace(DECISION, reason=Reason.DOMAIN),
    "another source": replace(DECISION, source=Source.CACHE),
    "less sure": replace(DECISION, confidence=0.25),
    "other fallbacks": replace(DECISION, fallbacks=()),
    "the model was changed": replace(
        DECISION, model=replace(DECISION.model, upstream_model="coder-2", cluster="new")
    ),
}


@pytest.mark.parametrize("after", LIKE_IT.values(), ids=LIKE_IT.keys())
def test_decision_after_one_much_like_it_is_written_as_its_own(after: Decision) -> None:
    understood = Understood(ApiDialect.OPENAI_CHAT, "auto", TALK, model_at=model_at(BODY))
    request = HttpRequest(HEAD, BODY)
    both = writer()
    both.decided(DECISION, request, understood)

    second = both.decided(after, request, understood).whole()

    assert second == writer().decided(after, request, understood).whole()
    assert second.metadata["decision_id"] == after.id
    assert dict(second.headers)["x-llm-decision-id"] == after.id


def test_what_is_kept_of_decisions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.ext_proc.writing._MAX_KNOWN", 4)
    understood = Understood(ApiDialect.OPENAI_CHAT, "auto", TALK, model_at=model_at(BODY))
    all_of_them = writer()
    for number in range(20):
        decision = replace(DECISION, route=f"route {number}")
        done = all_of_them.decided(decision, HttpRequest(HEAD, BODY), understood).whole()

        assert dict(done.headers)["x-llm-route"] == decision.route
        assert len(all_of_them._known) <= 4


def test_passed_request_says_why_and_loses_what_only_the_sidecar_sets() -> None:
    done = writer().passing(Passed(PassReason.MALFORMED_BODY))

    assert dict(done.headers) == {"x-llm-source": "none", "x-llm-reason": "malformed_body"}
    assert set(done.remove) == {
        "x-llm-route",
        "x-llm-model",
        "x-llm-cluster",
        "x-llm-fallbacks",
        "x-llm-decision-id",
        "x-llm-confidence",
    }
    assert done.body is None
    assert done.reroute
