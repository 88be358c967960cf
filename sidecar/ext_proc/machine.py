"""One HTTP exchange in Envoy's external processing protocol, without I/O.

What Envoy sends is fed in; what comes out is the answers, or the request that a decision is needed
for. How Envoy is set up is read from the first message of each stream (`protocol_config`), so that
one sidecar works behind differently configured gateways at the same time:

- BUFFERED: the headers are answered at once, the body with the decision.
- NONE, STREAMED, BUFFERED_PARTIAL: BUFFERED is asked for by an override of the mode, for bodies
  that are known to fit. In STREAMED Envoy chooses the route when the headers are answered, before
  it shows the body; in BUFFERED_PARTIAL it sets the headers that the answer to the body has, but
  has chosen the route before. What cannot be buffered goes on unrouted.
- FULL_DUPLEX_STREAMED: nothing is answered before the end of the body, then headers and body.
  Trailers are refused where Envoy says so.
- Observability mode: nothing is answered.

In all but FULL_DUPLEX_STREAMED there is exactly one answer of the same kind to each message;
anything else fails the request (`spurious_message`).
Protocol: envoy/service/ext_proc/v3/external_processor.proto.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache

from sidecar._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from sidecar.core.errors import ErrorCode
from sidecar.ext_proc import messages
from sidecar.ext_proc.effect import Common, Effect
from sidecar.ext_proc.messages import BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX, NONE, STREAMED, Mode
from sidecar.ext_proc.request import HttpHead, HttpRequest, Passed, PassReason

METADATA_NAMESPACE = "llm_router"
FAILOVER_NAMESPACE = "llm_router_failover"

Answers = tuple[pb.ProcessingResponse, ...]
Step = Answers | HttpRequest
"""What to do next: send answers, or decide on a request and give the effect to `decided`."""

_NO_HEAD = HttpHead("", "", "", {})


@dataclass(frozen=True, slots=True)
class Rules:
    """What an exchange is told by its surroundings.

    Args:
        max_body_bytes: larger bodies are refused with 413.
        owned: names of headers that only the sidecar may set; removed from every request.
        recognise: by the head alone, whether the body is wanted; Passed if it is not.
        passing: the effect on a request that goes on without a decision.
        stamp: set the decision on the response as well, where Envoy shows its headers.
        decided: header that says that a request has been decided on; where requests are observed,
            it was by another filter, and what is to be seen is the response. Empty: there is none.
        timed_response: wait for the headers of the response, to see when they come.
        bufferable_bytes: longest body that Envoy can be told to buffer where it is set up
            otherwise.
    """

    max_body_bytes: int
    owned: tuple[str, ...]
    recognise: Callable[[HttpHead], Passed | None]
    passing: Callable[[Passed], Effect]
    stamp: bool = False
    bufferable_bytes: int = 32 * 1024
    timed_response: bool = False
    decided: str = ""


class _State(Enum):
    START = auto()
    COLLECTING = auto()
    """The body is wanted and has not come, or not to its end."""
    DECIDING = auto()
    PASSING = auto()
    """What comes of the request is left as it is."""
    ENDED = auto()
    """The request has been answered to its end."""


class Exchange:
    """One HTTP request and its response; made for each stream.

    Args:
        no_trailers: refuse trailers in FULL_DUPLEX_STREAMED.
    """

    def __init__(self, rules: Rules, *, no_trailers: bool = False) -> None:
        self._rules = rules
        self._no_trailers = no_trailers
        self._state = _State.START
        self._mode: Mode.ValueType = NONE
        self._response_mode: Mode.ValueType = NONE
        self._observed = False
        self._head = _NO_HEAD
        self._head_seen = False
        self._head_answered = False
        self._chunks: list[bytes] = []
        self._size = 0
        self._trailers = False
        self._effect = Effect()
        self._given_up = False
        self._responded = False
        self._watching = False

    @property
    def watched(self) -> HttpHead | None:
        """The request, where Envoy shows nothing but it and its response; None where it shows more,
        or that is not known yet."""
        return self._head if self._watching else None

    @property
    def timed(self) -> bool:
        """True while Envoy waits for an answer no longer than its `message_timeout`."""
        return not self._observed and self._mode != FULL_DUPLEX

    @property
    def collecting(self) -> bool:
        """True while a body is held back here, as it comes."""
        held = self._mode == FULL_DUPLEX or (self._observed and bool(self._chunks))
        return self._state is _State.COLLECTING and held

    @property
    def finished(self) -> bool:
        """True when nothing is left to say, so that the stream may be closed.

        Never before the end in FULL_DUPLEX_STREAMED: a stream that is closed early loses the body,
        which the upstream then takes for an empty one.
        """
        if self._given_up:
            return True
        # Chunks that Envoy holds for an answer are lost likewise.
        passing = self._state is _State.PASSING and self._mode != STREAMED
        ended = self._state is _State.ENDED or passing
        if self._observed:
            # Envoy would keep it open until the response has ended, and opens so many at most.
            return ended and not self._watching
        awaited = self._response_awaited and not self._responded
        return ended and self.timed and not awaited and self._response_mode == NONE

    @property
    def _response_awaited(self) -> bool:
        return self._rules.stamp or (self._rules.timed_response and self._effect.model != "")

    @property
    def settled(self) -> bool:
        """True when nothing is left to be done about the request, whatever follows of it or of its
        response."""
        unanswered = self._observed and self._state is _State.PASSING
        return self._state is _State.ENDED or unanswered or self.finished

    def feed(self, message: pb.ProcessingRequest) -> Step:
        """Takes the next message."""
        if self._state is _State.START:
            self._set_up(message)
        match message.WhichOneof("request"):
            case "request_headers":
                return self._request_headers(message.request_headers)
            case "request_body":
                return self._request_body(message.request_body)
            case "request_trailers":
                return self._request_trailers()
            case "response_headers":
                if self._observed and self._state is _State.COLLECTING and not self._chunks:
                    # It has a body, since it does not end with its headers; only it is not shown.
                    return self._watch()
                return self._unless_observed(self._response_headers())
            case "response_body":
                return self._unless_observed(
                    messages.passed_chunk(
                        "response_body", message.response_body, self._response_mode
                    )
                )
            case "response_trailers":
                return self._unless_observed(
                    pb.ProcessingResponse(response_trailers=pb.TrailersResponse())
                )
        # A kind of part that came after this was written. There is no answer to it that Envoy would
        # take; where nothing is lost by it, the end of the stream lets the request go on.
        self._given_up = self.timed
        return ()

    def decided(self, effect: Effect) -> Answers:
        """The answers that carry out what was decided on the request that `feed` returned."""
        assert self._state is _State.DECIDING, "a decision was asked for"
        self._state = _State.ENDED
        self._effect = effect
        if self._observed:
            return ()
        if self._mode == FULL_DUPLEX:
            return self._full_duplex(effect.whole())
        return (self._buffered(effect),)

    def pass_on(self, reason: PassReason) -> Answers:
        """Stops waiting for the body: what has come goes on unrouted, and so does the rest."""
        if self._state is not _State.COLLECTING:
            return ()
        return self._passing(Passed(reason))

    # --- Request ----------------------------------------------------------------------------------

    def _set_up(self, message: pb.ProcessingRequest) -> None:
        self._state = _State.COLLECTING
        self._observed = message.observability_mode
        if message.HasField("protocol_config"):
            self._mode = message.protocol_config.request_body_mode
            self._response_mode = message.protocol_config.response_body_mode

    def _request_headers(self, headers: pb.HttpHeaders) -> Step:
        self._head = messages.read_head(headers.headers)
        self._head_seen = True
        if self._observed and self._rules.decided in self._head.headers:
            return self._watch()
        unwanted = self._rules.recognise(self._head)
        if headers.end_of_stream:
            # No message of a body follows, so in FULL_DUPLEX_STREAMED, too, this is the time.
            passed = unwanted or Passed(PassReason.NO_BODY)
            self._state = _State.ENDED
            self._effect = self._rules.passing(passed)
            return self._unless_observed(self._head_answer(self._effect))
        if unwanted is not None:
            return self._passing(unwanted)
        if self._observed or self._mode == FULL_DUPLEX:
            return ()
        if self._mode != BUFFERED and not self._bufferable():
            return self._passing(Passed(PassReason.BODY_NOT_SHOWN))
        return (self._ask_for_body(),)

    def _watch(self) -> Answers:
        self._watching = True
        self._state = _State.ENDED
        return ()

    def _bufferable(self) -> bool:
        """Told to buffer a body beyond its limit, Envoy 1.40 neither refuses it, as it does where
        it is set up to buffer, nor goes on: the request hangs without any time limit."""
        length = self._head.header("content-length")
        return length.isdecimal() and int(length) <= self._rules.bufferable_bytes

    def _ask_for_body(self) -> pb.ProcessingResponse:
        self._head_answered = True
        spoofed = [name for name in self._rules.owned if name in self._head.headers]
        if self._mode == BUFFERED and not spoofed:
            return _CONTINUE
        answer = messages.headers_answer(
            pb.CommonResponse(
                header_mutation=messages.header_mutation((), spoofed),
                clear_route_cache=bool(spoofed),
            )
        )
        if self._mode != BUFFERED:
            messages.override_body_mode(answer, BUFFERED, self._response_mode)
        return answer

    def _request_body(self, body: pb.HttpBody) -> Step:
        if self._state is not _State.COLLECTING:
            return self._passed_chunk(body)
        if not self._head_seen and not self._observed:
            # Envoy applies no header of the answer where it does not send the headers.
            return self._passing_chunk(body, PassReason.NO_HEADERS)
        # Each reading of the field is a copy.
        chunk = body.body
        self._size += len(chunk)
        if self._size > self._rules.max_body_bytes:
            return self._too_large()
        self._chunks.append(chunk)
        if self._observed or self._mode == FULL_DUPLEX:
            return self._ask(complete=True) if body.end_of_stream else ()
        if not body.end_of_stream and self._mode == STREAMED:
            # The override is not allowed: the route may have been chosen, and Envoy would send the
            # request with another provider's model to it. A buffered body comes with its end.
            return self._passing_chunk(body, PassReason.STREAMED_BODY)
        # Elsewhere a buffered body without the end of the stream has trailers behind it.
        whole = body.end_of_stream or self._mode != BUFFERED_PARTIAL or self._is_whole()
        return self._ask(complete=whole)

    def _is_whole(self) -> bool:
        return self._head.header("content-length") == str(self._size)

    def _ask(self, complete: bool) -> HttpRequest:
        self._state = _State.DECIDING
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = [body]
        return HttpRequest(self._head, body, complete)

    def _request_trailers(self) -> Step:
        if self._no_trailers and self._mode == FULL_DUPLEX and not self._observed:
            self._state = _State.ENDED
            self._chunks.clear()
            return (_NO_TRAILERS,)
        if self._state is _State.COLLECTING and (self._observed or self._mode == FULL_DUPLEX):
            # They end the body in place of a last chunk.
            self._trailers = True
            return self._ask(complete=True)
        self._state = _State.ENDED
        return self._unless_observed(_TRAILERS)

    def _too_large(self) -> Answers:
        self._state = _State.ENDED
        self._chunks.clear()
        if self._observed:
            return ()
        message = (
            f"the request body is larger than the {self._rules.max_body_bytes} bytes "
            "that can be routed; send less"
        )
        return (messages.refusal(ErrorCode.REQUEST_TOO_LARGE, message),)

    # --- Passing on -------------------------------------------------------------------------------

    def _passing(self, passed: Passed) -> Answers:
        """The effect of `passed` on the headers, if they are still there to be changed, and what
        has been held back of the body."""
        self._state = _State.PASSING
        self._effect = self._rules.passing(passed)
        if self._observed:
            self._chunks.clear()
            return ()
        answers: list[pb.ProcessingResponse] = []
        if not self._head_answered:
            answers.append(self._head_answer(self._effect))
            if self._mode in (BUFFERED, BUFFERED_PARTIAL, STREAMED):
                # One round trip less, and no body that nobody reads.
                messages.override_body_mode(answers[0], NONE, self._response_mode)
        if self._mode == FULL_DUPLEX:
            held = b"".join(self._chunks)
            answers.extend(messages.streamed_chunks(held, end=False) if held else ())
        self._chunks.clear()
        return tuple(answers)

    def _passing_chunk(self, body: pb.HttpBody, reason: PassReason) -> Answers:
        """Too late for the headers: the first chunk goes on, and the rest will."""
        self._state = _State.PASSING
        self._chunks.clear()
        self._effect = self._rules.passing(Passed(reason))
        return self._passed_chunk(body)

    def _passed_chunk(self, body: pb.HttpBody) -> Answers:
        if self._observed:
            return ()
        if self._state is _State.ENDED and self._mode == FULL_DUPLEX:
            # The last chunk of a large body can come twice
            # (https://github.com/envoyproxy/envoy/issues/46237).
            return ()
        if body.end_of_stream:
            self._state = _State.ENDED
        return (messages.passed_chunk("request_body", body, self._mode),)

    # --- Answers ----------------------------------------------------------------------------------

    def _unless_observed(self, answer: pb.ProcessingResponse) -> Answers:
        return () if self._observed else (answer,)

    def _head_answer(self, effect: Effect) -> pb.ProcessingResponse:
        self._head_answered = True
        answer = messages.headers_answer()
        _carry_out(effect, effect.headers, answer.request_headers.response)
        _add_metadata(answer, effect, self._kept_length(effect))
        return answer

    def _kept_length(self, effect: Effect) -> str:
        """The length that Envoy forgets in FULL_DUPLEX_STREAMED; a filter behind this one can set
        it from the metadata. Empty for requests that came without a length."""
        came = self._head.header("content-length")
        if self._mode != FULL_DUPLEX or not came:
            return ""
        return came if effect.body is None else str(len(effect.body))

    def _full_duplex(self, effect: Effect) -> Answers:
        body = self._chunks[0] if effect.body is None else effect.body
        self._chunks.clear()
        answers = [self._head_answer(effect)]
        answers.extend(messages.streamed_chunks(body, end=not self._trailers))
        if self._trailers:
            answers.append(_TRAILERS)
        return tuple(answers)

    def _buffered(self, effect: Effect) -> pb.ProcessingResponse:
        headers = effect.headers
        body = effect.body
        if body is not None and "content-length" in self._head.headers:
            # Envoy answers 500 if it is not that of the new body.
            headers = (*headers, ("content-length", str(len(body))))
        answer = pb.ProcessingResponse()
        if effect.common is not None:
            answer.ParseFromString(_body_answer(effect.common))
        common = answer.request_body.response
        _carry_out(effect, headers, common)
        if body is not None:
            common.body_mutation.body = body
        self._chunks.clear()
        _add_metadata(answer, effect)
        return answer

    # --- Response ---------------------------------------------------------------------------------

    def _response_headers(self) -> pb.ProcessingResponse:
        self._responded = True
        common = pb.CommonResponse()
        if self._rules.stamp:
            stamp = self._effect.whole().headers
            # What a provider has sent under one of these names is no decision of ours.
            foreign = set(self._rules.owned).difference(name for name, _ in stamp)
            messages.mutate_headers(common, stamp, sorted(foreign))
        return pb.ProcessingResponse(response_headers=pb.HeadersResponse(response=common))


_CONTINUE = messages.headers_answer()
_TRAILERS = pb.ProcessingResponse(request_trailers=pb.TrailersResponse())
_NO_TRAILERS = messages.refusal(
    ErrorCode.INVALID_REQUEST,
    "the request has trailers, which the gateway cannot send on in Envoy's mode "
    "FULL_DUPLEX_STREAMED; send it without them",
)


@lru_cache(maxsize=1024)
def _body_answer(effect: Common) -> bytes:
    """Encoded: to decode it takes a fraction of the time that it takes to put it together."""
    answer = messages.body_answer()
    _carry_out(effect, effect.headers, answer.request_body.response)
    _add_metadata(answer, effect)
    return answer.SerializeToString()


def _carry_out(
    effect: Effect | Common, headers: tuple[tuple[str, str], ...], common: pb.CommonResponse
) -> None:
    messages.mutate_headers(common, headers, effect.remove)
    if effect.reroute:
        common.clear_route_cache = True


def _add_metadata(
    answer: pb.ProcessingResponse, effect: Effect | Common, content_length: str = ""
) -> None:
    values = effect.metadata
    if content_length:
        values = {**values, "content_length": content_length}
    if values:
        messages.set_metadata(answer, METADATA_NAMESPACE, values)
    if effect.clusters:
        messages.set_failover(answer, FAILOVER_NAMESPACE, effect.clusters)
