"""The rules of Envoy's external processing protocol, one by one, without Envoy.

`test_matrix.py` holds them against a real Envoy.
"""

from __future__ import annotations

import pytest
from google.protobuf.json_format import MessageToDict

from sidecar._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from sidecar.ext_proc.effect import Effect
from sidecar.ext_proc.messages import (
    BUFFERED,
    BUFFERED_PARTIAL,
    CHUNK_BYTES,
    FULL_DUPLEX,
    NONE,
    STREAMED,
    Mode,
)
from sidecar.ext_proc.request import PassReason
from tests.ext_proc.parts import (
    REWRITTEN,
    ROUTED,
    Conversation,
    header_map,
    kinds,
    removed,
    request_body,
    request_headers,
    request_trailers,
    rules,
    set_headers,
    streamed,
)

LENGTH = {"content-length": "4"}
WAITING_MODES = [BUFFERED, BUFFERED_PARTIAL, STREAMED, NONE]
"""Those in which Envoy waits for one answer to each message."""


def by_name(mode: Mode.ValueType) -> str:
    return Mode.Name(mode)


# --- Headers --------------------------------------------------------------------------------------


def test_header_values_are_read_from_raw_value() -> None:
    talk = Conversation()
    talk.say(request_headers({"x-a": "caf\xe9"}))

    head = talk.ask(request_body(b"{}")).head

    assert head.headers["x-a"] == ("caf\xe9",)
    assert (head.method, head.path, head.authority) == ("POST", "/v1/chat/completions", "gateway")


def test_header_values_are_read_from_value_where_a_server_of_the_protocol_uses_it() -> None:
    message = request_headers()
    message.request_headers.headers.headers.add(key="x-a", value="b")
    talk = Conversation()
    talk.say(message)

    assert talk.ask(request_body(b"{}")).head.header("x-a") == "b"


def test_every_header_that_is_set_has_a_raw_value_and_overwrites() -> None:
    talk = Conversation()
    talk.say(request_headers(LENGTH))
    talk.ask(request_body(b"1234"))

    (answer,) = talk.exchange.decided(REWRITTEN)

    options = answer.request_body.response.header_mutation.set_headers
    assert {o.header.key for o in options} == {"x-llm-model", "content-length"}
    assert all(o.header.raw_value and not o.header.value for o in options)
    assert {o.append_action for o in options} == {o.OVERWRITE_IF_EXISTS_OR_ADD for o in options}


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("plain name", b"plain name"),
        ("a\nb: c", b"a%0Ab: c"),
        ("caf\xe9", b"caf%C3%A9"),
        ("100%\t", b"100%25%09"),
        ("100%", b"100%"),
    ],
)
def test_values_that_cannot_stand_in_a_header_are_percent_encoded(value: str, sent: bytes) -> None:
    talk = Conversation()
    talk.say(request_headers())
    talk.ask(request_body(b"{}"))

    (answer,) = talk.exchange.decided(Effect(headers=(("x-llm-route", value),)))

    assert set_headers(answer.request_body.response) == {"x-llm-route": sent}


def test_header_that_only_the_sidecar_sets_is_removed_before_the_body_comes() -> None:
    answers = Conversation().say(request_headers({"x-llm-model": "mine"}))

    common = answers[0].request_headers.response
    assert removed(common) == {"x-llm-model"}
    assert common.clear_route_cache
    assert not answers[0].HasField("mode_override")


# --- One answer of the same kind ------------------------------------------------------------------


@pytest.mark.parametrize("mode", WAITING_MODES, ids=by_name)
def test_each_message_has_one_answer_of_its_kind(mode: Mode.ValueType) -> None:
    talk = Conversation(mode)

    assert kinds(talk.say(request_headers(LENGTH))) == ["request_headers"]
    talk.ask(request_body(b"1234"))
    assert kinds(talk.exchange.decided(ROUTED)) == ["request_body"]
    assert kinds(talk.say(request_trailers())) == ["request_trailers"]
    for message in (
        pb.ProcessingRequest(response_headers=pb.HttpHeaders()),
        pb.ProcessingRequest(response_body=pb.HttpBody()),
        pb.ProcessingRequest(response_trailers=pb.HttpTrailers()),
    ):
        assert kinds(talk.say(message)) == [message.WhichOneof("request")]


@pytest.mark.parametrize("mode", WAITING_MODES, ids=by_name)
def test_message_of_an_unknown_kind_is_not_answered_and_ends_the_stream(
    mode: Mode.ValueType,
) -> None:
    talk = Conversation(mode)
    talk.say(request_headers(LENGTH))

    assert talk.say(pb.ProcessingRequest()) == ()
    assert talk.exchange.finished


def test_full_duplex_message_of_an_unknown_kind_does_not_end_the_stream() -> None:
    talk = Conversation(FULL_DUPLEX)
    talk.say(request_headers())

    assert talk.say(pb.ProcessingRequest()) == ()
    assert not talk.exchange.finished
    assert talk.ask(request_body(b"{}")).body == b"{}"


@pytest.mark.parametrize("mode", [*WAITING_MODES, FULL_DUPLEX], ids=by_name)
def test_request_without_a_body_is_answered_at_its_headers(mode: Mode.ValueType) -> None:
    talk = Conversation(mode)

    (answer,) = talk.say(request_headers(end=True))

    reason = set_headers(answer.request_headers.response)["x-llm-reason"]
    assert reason == PassReason.NO_BODY.value.encode()


def test_request_without_a_body_that_is_none_to_route_says_so() -> None:
    (answer,) = Conversation().say(request_headers({":path": "/other"}, end=True))

    reason = set_headers(answer.request_headers.response)["x-llm-reason"]
    assert reason == PassReason.NOT_AN_LLM_REQUEST.value.encode()


# --- Buffered -------------------------------------------------------------------------------------


def test_buffered_body_carries_headers_route_and_metadata() -> None:
    talk = Conversation()
    talk.say(request_headers(LENGTH))

    assert talk.ask(request_body(b"1234")).body == b"1234"
    (answer,) = talk.exchange.decided(ROUTED)

    common = answer.request_body.response
    assert set_headers(common) == {"x-llm-model": b"big/coder"}
    assert removed(common) == {"x-llm-route"}
    assert common.clear_route_cache
    assert not common.HasField("body_mutation")
    assert MessageToDict(answer.dynamic_metadata) == {"llm_router": {"model": "big/coder"}}


def test_clusters_to_try_are_groups_of_envoys_cluster_specifier() -> None:
    talk = Conversation()
    talk.say(request_headers())
    talk.ask(request_body(b"1234"))

    (answer,) = talk.exchange.decided(Effect(clusters=("big", "small")))

    groups = MessageToDict(answer.dynamic_metadata)["llm_router_failover"]["priority_groups"]
    assert [each["clusters"] for each in groups] == [
        [{"cluster_name": "big", "weight": 1}],
        [{"cluster_name": "small", "weight": 1}],
    ]


def test_rewritten_body_has_the_content_length_that_envoy_compares() -> None:
    talk = Conversation()
    talk.say(request_headers(LENGTH))
    talk.ask(request_body(b"1234"))

    (answer,) = talk.exchange.decided(REWRITTEN)

    common = answer.request_body.response
    assert common.body_mutation.body == REWRITTEN.body
    assert set_headers(common)["content-length"] == b"20"


def test_rewritten_chunked_body_stays_without_content_length() -> None:
    talk = Conversation()
    talk.say(request_headers())
    talk.ask(request_body(b"1234"))

    (answer,) = talk.exchange.decided(REWRITTEN)

    assert "content-length" not in set_headers(answer.request_body.response)


def test_buffered_body_with_trailers_behind_it_is_complete() -> None:
    talk = Conversation()
    talk.say(request_headers())

    assert talk.ask(request_body(b"1234", end=False)).complete


def test_buffered_stream_is_closed_after_the_answer() -> None:
    """Nothing is lost by it, and a response that takes minutes does not keep it open."""
    talk = Conversation()
    talk.say(request_headers())
    talk.ask(request_body(b"1234"))
    assert not talk.exchange.finished

    talk.exchange.decided(ROUTED)

    assert talk.exchange.finished


# --- Bodies that are not wanted -------------------------------------------------------------------


@pytest.mark.parametrize("mode", [BUFFERED, BUFFERED_PARTIAL, STREAMED], ids=by_name)
def test_body_that_is_not_wanted_is_switched_off(mode: Mode.ValueType) -> None:
    talk = Conversation(mode, response_mode=STREAMED)

    (answer,) = talk.say(request_headers({":path": "/other", **LENGTH}))

    assert answer.mode_override.request_body_mode == NONE
    assert not answer.HasField("dynamic_metadata")
    # DEFAULT leaves headers and trailers as they are; bodies have no such value.
    assert answer.mode_override.response_body_mode == STREAMED
    assert answer.mode_override.response_header_mode == 0
    assert removed(answer.request_headers.response) == {"x-llm-model", "x-llm-route"}


@pytest.mark.parametrize("mode", [BUFFERED, STREAMED], ids=by_name)
def test_body_that_comes_although_it_was_switched_off_is_left_as_it_is(
    mode: Mode.ValueType,
) -> None:
    talk = Conversation(mode)
    talk.say(request_headers({":path": "/other"}))

    (answer,) = talk.say(request_body(b"1234", end=False))

    assert not answer.request_body.response.HasField("body_mutation")


@pytest.mark.parametrize("mode", [NONE, STREAMED, BUFFERED_PARTIAL], ids=by_name)
def test_body_that_fits_is_asked_for_buffered(mode: Mode.ValueType) -> None:
    talk = Conversation(mode, response_mode=STREAMED)

    (answer,) = talk.say(request_headers({"content-length": "100"}))

    assert answer.mode_override.request_body_mode == BUFFERED
    assert answer.mode_override.response_body_mode == STREAMED


@pytest.mark.parametrize("mode", [NONE, STREAMED, BUFFERED_PARTIAL], ids=by_name)
@pytest.mark.parametrize("length", [{"content-length": "101"}, {}], ids=["longer", "unknown"])
def test_body_that_may_not_fit_goes_on_unrouted(
    mode: Mode.ValueType, length: dict[str, str]
) -> None:
    """Told to buffer beyond its limit, Envoy hangs."""
    talk = Conversation(mode)

    (answer,) = talk.say(request_headers(length))

    assert answer.mode_override.request_body_mode == NONE
    reason = set_headers(answer.request_headers.response)["x-llm-reason"]
    assert reason == PassReason.BODY_NOT_SHOWN.value.encode()


# --- Streamed -------------------------------------------------------------------------------------


def test_streamed_chunk_in_spite_of_the_override_is_passed_with_all_that_follow() -> None:
    talk = Conversation(STREAMED)
    talk.say(request_headers({"content-length": "8"}))

    for chunk, end in ((b"1234", False), (b"5678", False), (b"", True)):
        (answer,) = talk.say(request_body(chunk, end))
        assert answer == pb.ProcessingResponse(request_body=pb.BodyResponse())


def test_streamed_body_in_one_piece_without_its_end_goes_on_unrouted() -> None:
    """Envoy does so where the override is not allowed, and may have chosen the route before."""
    talk = Conversation(STREAMED)
    talk.say(request_headers(LENGTH))

    for chunk, end in ((b"1234", False), (b"", True)):
        assert talk.say(request_body(chunk, end)) == (
            pb.ProcessingResponse(request_body=pb.BodyResponse()),
        )


def test_streamed_body_that_comes_buffered_is_decided_on() -> None:
    talk = Conversation(STREAMED)
    talk.say(request_headers(LENGTH))

    assert talk.ask(request_body(b"1234")).body == b"1234"


def test_streamed_stream_stays_open_while_chunks_are_passed() -> None:
    """Envoy holds chunks until they are answered, and loses them when the stream ends."""
    talk = Conversation(STREAMED)
    talk.say(request_headers({":path": "/other"}))
    talk.say(request_body(b"1234", end=False))
    assert not talk.exchange.finished

    talk.say(request_body(b"", end=True))

    assert talk.exchange.finished


# --- Partial --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "end", "complete"),
    [("4", True, True), ("4", False, True), ("9", False, False)],
)
def test_partial_body_is_complete_at_its_end_or_its_length(
    length: str, end: bool, complete: bool
) -> None:
    talk = Conversation(BUFFERED_PARTIAL)
    talk.say(request_headers({"content-length": length}))

    assert talk.ask(request_body(b"1234", end)).complete is complete


# --- Full duplex ----------------------------------------------------------------------------------


def test_full_duplex_answers_nothing_before_the_end_of_the_body() -> None:
    talk = Conversation(FULL_DUPLEX)

    assert talk.say(request_headers()) == ()
    assert talk.say(request_body(b"12", end=False)) == ()
    assert talk.exchange.collecting
    assert talk.ask(request_body(b"34")).body == b"1234"


def test_full_duplex_end_of_body_in_an_empty_chunk() -> None:
    talk = Conversation(FULL_DUPLEX)
    talk.say(request_headers())
    talk.say(request_body(b"1234", end=False))

    assert talk.ask(request_body(b"")).body == b"1234"


def test_full_duplex_answers_headers_then_body() -> None:
    talk = Conversation(FULL_DUPLEX)
    talk.say(request_headers())
    talk.ask(request_body(b"1234"))

    answers = talk.exchange.decided(ROUTED)

    assert kinds(answers) == ["request_headers", "request_body"]
    assert answers[0].request_headers.response.clear_route_cache
    assert streamed(answers) == [(b"1234", True)]


def test_full_duplex_body_is_sent_in_chunks_below_64_kib() -> None:
    body = b"x" * (2 * CHUNK_BYTES + 1)
    talk = Conversation(FULL_DUPLEX, used=rules(max_body_bytes=10**6))
    talk.say(request_headers())
    talk.ask(request_body(body))

    chunks = streamed(talk.exchange.decided(ROUTED))

    assert b"".join(chunk for chunk, _ in chunks) == body
    assert [len(chunk) for chunk, _ in chunks] == [CHUNK_BYTES, CHUNK_BYTES, 1]
    assert [end for _, end in chunks] == [False, False, True]


def test_full_duplex_end_of_stream_that_comes_twice_is_ignored() -> None:
    """https://github.com/envoyproxy/envoy/issues/46237"""
    talk = Conversation(FULL_DUPLEX)
    talk.say(request_headers())
    talk.ask(request_body(b"1234"))
    talk.exchange.decided(ROUTED)

    assert talk.say(request_body(b"1234")) == ()


def test_full_duplex_trailers_end_the_body() -> None:
    talk = Conversation(FULL_DUPLEX)
    talk.say(request_headers())
    talk.say(request_body(b"1234", end=False))

    assert talk.ask(request_trailers()).body == b"1234"
    answers = talk.exchange.decided(ROUTED)

    assert kinds(answers) == ["request_headers", "request_body", "request_trailers"]
    assert streamed(answers) == [(b"1234", False)]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/other"])
@pytest.mark.parametrize("body", [b"", b"1234"], ids=["no body", "body"])
def test_full_duplex_trailers_are_refused_where_the_route_says_so(path: str, body: bytes) -> None:
    talk = Conversation(FULL_DUPLEX, no_trailers=True)
    talk.say(request_headers({":path": path}))
    if body:
        talk.say(request_body(body, end=False))

    (refusal,) = talk.say(request_trailers())

    assert refusal.immediate_response.status.code == 400
    assert b"trailers" in refusal.immediate_response.body
    assert talk.exchange.settled


def test_full_duplex_body_that_is_not_wanted_is_echoed_as_it_comes() -> None:
    talk = Conversation(FULL_DUPLEX)

    (answer,) = talk.say(request_headers({":path": "/other"}))
    assert not answer.HasField("mode_override")
    assert streamed(talk.say(request_body(b"12", end=False))) == [(b"12", False)]
    assert streamed(talk.say(request_body(b"", end=True))) == [(b"", True)]


def test_full_duplex_stream_is_never_closed_from_here() -> None:
    """Closed early, Envoy gives the upstream an empty body."""
    talk = Conversation(FULL_DUPLEX)
    talk.say(request_headers())
    talk.ask(request_body(b"1234"))
    talk.exchange.decided(ROUTED)

    assert talk.exchange.settled
    assert not talk.exchange.finished


@pytest.mark.parametrize(("effect", "length"), [(ROUTED, "4"), (REWRITTEN, "20")])
def test_full_duplex_length_that_envoy_forgets_is_given_as_metadata(
    effect: Effect, length: str
) -> None:
    talk = Conversation(FULL_DUPLEX)
    talk.say(request_headers(LENGTH))
    talk.ask(request_body(b"1234"))

    (headers, _) = talk.exchange.decided(effect)

    assert MessageToDict(headers.dynamic_metadata)["llm_router"]["content_length"] == length


def test_full_duplex_slow_body_goes_on_unrouted() -> None:
    talk = Conversation(FULL_DUPLEX)
    talk.say(request_headers())
    talk.say(request_body(b"12", end=False))

    answers = talk.exchange.pass_on(PassReason.SLOW_BODY)

    reason = set_headers(answers[0].request_headers.response)["x-llm-reason"]
    assert reason == b"slow_body"
    assert streamed(answers) == [(b"12", False)]
    assert streamed(talk.say(request_body(b"34"))) == [(b"34", True)]


# --- Sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [BUFFERED, FULL_DUPLEX], ids=by_name)
def test_body_over_the_cap_is_refused_with_413(mode: Mode.ValueType) -> None:
    talk = Conversation(mode, used=rules(max_body_bytes=3))
    talk.say(request_headers())

    (answer,) = talk.say(request_body(b"secret", end=False))

    refusal = answer.immediate_response
    assert refusal.status.code == 413
    assert b"3 bytes" in refusal.body
    assert b"secret" not in refusal.body
    assert refusal.details == "llm_router_request_too_large"
    content_type = {o.header.key: o.header.raw_value for o in refusal.headers.set_headers}
    assert content_type == {"content-type": b"application/json"}


@pytest.mark.parametrize("mode", [BUFFERED, FULL_DUPLEX], ids=by_name)
def test_body_of_the_cap_is_decided_on(mode: Mode.ValueType) -> None:
    talk = Conversation(mode, used=rules(max_body_bytes=3))
    talk.say(request_headers())

    assert talk.ask(request_body(b"123")).body == b"123"


def test_body_over_the_cap_is_counted_over_all_chunks() -> None:
    talk = Conversation(FULL_DUPLEX, used=rules(max_body_bytes=3))
    talk.say(request_headers())
    talk.say(request_body(b"12", end=False))

    assert kinds(talk.say(request_body(b"34", end=False))) == ["immediate_response"]
    assert talk.say(request_body(b"56", end=True)) == ()


# --- What Envoy does not show ---------------------------------------------------------------------


def test_body_without_headers_is_passed() -> None:
    """Envoy sets no header of the answer then, so a rewritten model would go to a wrong cluster."""
    talk = Conversation()

    (answer,) = talk.say(request_body(b"1234"))

    assert answer == pb.ProcessingResponse(request_body=pb.BodyResponse())


# --- Observability mode ---------------------------------------------------------------------------


def test_observed_request_is_decided_on_and_never_answered() -> None:
    talk = Conversation(observing=True)

    assert talk.say(request_headers()) == ()
    assert talk.say(request_body(b"12", end=False)) == ()
    assert talk.ask(request_body(b"34")).body == b"1234"
    assert talk.exchange.decided(ROUTED) == ()
    assert talk.say(pb.ProcessingRequest(response_headers=pb.HttpHeaders())) == ()


def test_observed_request_is_not_refused() -> None:
    talk = Conversation(observing=True, used=rules(max_body_bytes=3))
    talk.say(request_headers())

    assert talk.say(request_body(b"123456")) == ()


def test_observed_request_that_is_not_decided_on_is_not_waited_for() -> None:
    """A server that stops would else wait for a stream that Envoy holds open with the response."""
    talk = Conversation(observing=True)
    talk.say(request_headers({":path": "/other"}))

    assert talk.exchange.settled
    assert talk.say(request_body(b"1234")) == ()


def test_observed_response_to_a_request_that_was_decided_on_is_watched() -> None:
    talk = Conversation(observing=True)

    assert talk.say(request_headers({"x-llm-source": "model"})) == ()

    assert talk.exchange.settled
    assert not talk.exchange.finished
    assert talk.exchange.watched is not None


def test_observed_response_is_watched_where_the_body_is_not_shown() -> None:
    """The sidecar was dead when the request came, or another processor has decided."""
    talk = Conversation(observing=True)
    talk.say(request_headers())
    assert not talk.exchange.settled
    assert not talk.exchange.collecting

    talk.say(pb.ProcessingRequest(response_headers=pb.HttpHeaders()))

    assert talk.exchange.settled
    assert talk.exchange.watched is not None


def test_header_of_a_decision_means_nothing_where_envoy_waits() -> None:
    """A client can have sent it."""
    talk = Conversation()

    answers = talk.say(request_headers({"x-llm-source": "model"}))

    assert kinds(answers) == ["request_headers"]
    assert talk.exchange.watched is None
    assert talk.ask(request_body(b"{}")).body == b"{}"


# --- Response -------------------------------------------------------------------------------------


def test_response_is_stamped_where_that_is_wanted() -> None:
    talk = Conversation(used=rules(stamp=True))
    talk.say(request_headers())
    talk.ask(request_body(b"1234"))
    talk.exchange.decided(ROUTED)
    assert not talk.exchange.finished

    headers = pb.HttpHeaders(headers=header_map({":status": "200"}))
    (answer,) = talk.say(pb.ProcessingRequest(response_headers=headers))

    assert set_headers(answer.response_headers.response) == {"x-llm-model": b"big/coder"}
    # A provider's own is taken away where the decision has none.
    assert removed(answer.response_headers.response) == {"x-llm-route"}


def test_response_is_left_alone_otherwise() -> None:
    talk = Conversation(response_mode=STREAMED)
    talk.say(request_headers())
    talk.ask(request_body(b"1234"))
    talk.exchange.decided(ROUTED)

    (answer,) = talk.say(pb.ProcessingRequest(response_headers=pb.HttpHeaders()))

    assert answer == pb.ProcessingResponse(
        response_headers=pb.HeadersResponse(response=pb.CommonResponse())
    )


@pytest.mark.parametrize(
    ("mode", "echoed"), [(STREAMED, False), (BUFFERED, False), (FULL_DUPLEX, True)]
)
def test_response_body_is_passed_as_its_mode_wants(mode: Mode.ValueType, echoed: bool) -> None:
    talk = Conversation(response_mode=mode)
    talk.say(request_headers({":path": "/other"}))

    part = pb.HttpBody(body=b"data: 1", end_of_stream=False)
    (answer,) = talk.say(pb.ProcessingRequest(response_body=part))

    mutation = answer.response_body.response.body_mutation
    assert mutation.streamed_response.body == (b"data: 1" if echoed else b"")
    assert not talk.exchange.finished
