"""Envoy's messages as Envoy sends them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sidecar._generated.envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from sidecar._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from sidecar.ext_proc.effect import Effect
from sidecar.ext_proc.machine import Answers, Exchange, Rules
from sidecar.ext_proc.messages import BUFFERED, NONE, Mode
from sidecar.ext_proc.request import HttpHead, HttpRequest, Passed, PassReason

HEAD = {":method": "POST", ":path": "/v1/chat/completions", ":authority": "gateway"}
OWNED = ("x-llm-model", "x-llm-route")

ROUTED = Effect(
    headers=(("x-llm-model", "big/coder"),),
    remove=("x-llm-route",),
    reroute=True,
    metadata={"model": "big/coder"},
)
REWRITTEN = Effect(headers=ROUTED.headers, reroute=True, body=b'{"model": "coder-1"}')


def rules(max_body_bytes: int = 1000, stamp: bool = False, bufferable_bytes: int = 100) -> Rules:
    """Wants the body of everything but `/other`."""

    def recognise(head: HttpHead) -> Passed | None:
        return Passed(PassReason.NOT_AN_LLM_REQUEST) if head.path == "/other" else None

    def passing(passed: Passed) -> Effect:
        return Effect(headers=(("x-llm-reason", passed.reason.value),), remove=OWNED, reroute=True)

    return Rules(
        max_body_bytes,
        OWNED,
        recognise,
        passing,
        stamp,
        bufferable_bytes,
        decided="x-llm-source",
    )


def header_map(headers: Mapping[str, str]) -> HeaderMap:
    """As Envoy sends it: values as bytes."""
    values = [HeaderValue(key=k, raw_value=v.encode("latin-1")) for k, v in headers.items()]
    return HeaderMap(headers=values)


def request_headers(
    headers: Mapping[str, str] | None = None, end: bool = False
) -> pb.ProcessingRequest:
    shown = header_map({**HEAD, **(headers or {})})
    return pb.ProcessingRequest(request_headers=pb.HttpHeaders(headers=shown, end_of_stream=end))


def request_body(body: bytes, end: bool = True) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=end))


def request_trailers() -> pb.ProcessingRequest:
    return pb.ProcessingRequest(request_trailers=pb.HttpTrailers())


class Conversation:
    """An exchange that is fed and remembers what it answered.

    Args:
        mode: of the request's body; on the first message, as Envoy sends it.
    """

    def __init__(
        self,
        mode: Mode.ValueType = BUFFERED,
        response_mode: Mode.ValueType = NONE,
        used: Rules | None = None,
        observing: bool = False,
        no_trailers: bool = False,
    ) -> None:
        self.exchange = Exchange(used or rules(), no_trailers=no_trailers)
        self._first = pb.ProcessingRequest(observability_mode=observing)
        if not observing:
            self._first.protocol_config.request_body_mode = mode
            self._first.protocol_config.response_body_mode = response_mode
        self._begun = False

    def say(self, message: pb.ProcessingRequest) -> Answers:
        """Feeds a message that is answered without a decision."""
        step = self.exchange.feed(self._framed(message))
        assert not isinstance(step, HttpRequest), "no decision was expected"
        return step

    def ask(self, message: pb.ProcessingRequest) -> HttpRequest:
        """Feeds a message that needs a decision."""
        step = self.exchange.feed(self._framed(message))
        assert isinstance(step, HttpRequest), "a decision was expected"
        return step

    def _framed(self, message: pb.ProcessingRequest) -> pb.ProcessingRequest:
        if not self._begun:
            self._begun = True
            message.MergeFrom(self._first)
        return message


def kinds(answers: Answers) -> list[str | None]:
    """Which part each answers."""
    return [answer.WhichOneof("response") for answer in answers]


def set_headers(common: pb.CommonResponse) -> dict[str, bytes]:
    return {o.header.key: o.header.raw_value for o in common.header_mutation.set_headers}


def removed(common: pb.CommonResponse) -> set[str]:
    return set(common.header_mutation.remove_headers)


def streamed(answers: Sequence[pb.ProcessingResponse]) -> list[tuple[bytes, bool]]:
    """Body and end of each full-duplex chunk."""
    parts = [a.request_body.response.body_mutation for a in answers if a.HasField("request_body")]
    assert all(part.HasField("streamed_response") for part in parts)
    return [(p.streamed_response.body, p.streamed_response.end_of_stream) for p in parts]
