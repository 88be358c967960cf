"""An HTTP request to an LLM, as Envoy shows it, and what it says once it is read.

These types stand between the two halves of this package: the state machine, which knows Envoy and
nothing of LLMs, and `sidecar.ext_proc.dialects`, which knows the LLM APIs and nothing of Envoy.
Everything here is pure; reading a request neither blocks nor raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from sidecar.core.conversation import Conversation
from sidecar.core.decision import Needs
from sidecar.core.policy import ApiDialect


@dataclass(frozen=True, slots=True)
class HttpHead:
    """A request before its body.

    Args:
        method: as sent, e.g. `POST`.
        path: of the request line, query included.
        authority: the `Host` of HTTP/1.1.
        headers: lower-case name -> values in the order of arrival, pseudo headers (`:path`)
            left out. Values are text by latin-1, so that any bytes are kept.
    """

    method: str
    path: str
    authority: str
    headers: Mapping[str, tuple[str, ...]]

    def header(self, name: str) -> str:
        """The first value of the lower-case name; empty if there is none."""
        values = self.headers.get(name)
        return values[0] if values else ""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request with its body.

    Args:
        body: as it came, still compressed where `content-encoding` says so; None: the request has
            none, or Envoy does not show it.
        complete: False if Envoy showed the beginning alone (BUFFERED_PARTIAL with a body beyond
            its buffer); such a body is passed on.
    """

    head: HttpHead
    body: bytes | None
    complete: bool = True


class PassReason(StrEnum):
    """Why a request goes on as it came, without a decision; the value of a header and a label."""

    NOT_AN_LLM_REQUEST = "not_an_llm_request"
    """Neither path nor shape is that of a known API, or the method is not POST."""
    NO_BODY = "no_body"
    NOT_JSON = "not_json"
    """The content type says so."""
    MALFORMED_BODY = "malformed_body"
    UNKNOWN_SHAPE = "unknown_shape"
    """JSON, but not a request of the API."""
    UNKNOWN_ENCODING = "unknown_encoding"
    """Compressed in a way that cannot be read, or not what `content-encoding` says."""
    DECODED_TOO_LARGE = "decoded_too_large"
    """Compressed, and larger than the cap when it is decoded; or larger than Envoy takes, with the
    model's name in it."""
    INCOMPLETE_BODY = "incomplete_body"
    """Cut off by Envoy before the parts that are needed."""
    STREAMED_BODY = "streamed_body"
    """Envoy streams the body, and has sent the headers on, although it was told to buffer it."""
    BODY_NOT_SHOWN = "body_not_shown"
    """Envoy shows the body too late or not at all, and cannot be told to buffer one of this length
    (or of unknown length)."""
    NO_HEADERS = "no_headers"
    """Envoy is set up to send the body alone."""
    SLOW_BODY = "slow_body"
    """The body did not arrive within its time."""
    SLOW_READING = "slow_reading"
    """The body is large, and too many others were to be read before it."""
    UNKNOWN_MODEL = "unknown_model"
    """The client asked for a concrete model that the catalog does not have."""
    NO_ELIGIBLE_MODEL = "no_eligible_model"
    """No model of the policy speaks the client's API."""
    UNKNOWN_POLICY = "unknown_policy"
    """The client, or Envoy's route, named a policy that there is not."""
    INTERNAL_ERROR = "internal_error"
    """A defect of the sidecar; see its log."""


@dataclass(frozen=True, slots=True)
class Passed:
    """The request is none to route. `detail`: one sentence for the log; no request content."""

    reason: PassReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Understood:
    """A request of an LLM API.

    Args:
        dialect: the API it speaks.
        model: the body's `model`; empty if it has none, or an empty one.
        conversation: messages of system and developer included (they are not shown to the router),
            harness text removed from the user's.
        needs: images, tools, context length.
        stream: the client asked for a streamed answer.
        awaited: the response is the model's answer, and comes when the model has made it; not where
            tokens are counted, or the answer is made in the background.
        conversation_key: the client's own id of the conversation, from a field of the body that is
            configured to be one; empty if there is none.
        previous_response_id: what the request goes on from that the provider keeps: a response or
            a conversation of the Responses API; empty if there is none.
        refers_to, sealed: see `RoutingRequest`.
        model_at: where the value of `model` begins and ends in the body, which is decoded; of a key
            that is there twice, the one that counts. None if there is no such key.
        plain_body: the body decoded; None if it came uncompressed. A body that is rewritten goes on
            like this, without `content-encoding`.
    """

    dialect: ApiDialect
    model: str
    conversation: Conversation
    needs: Needs = field(default_factory=Needs)
    model_at: tuple[int, int] | None = None
    stream: bool = False
    awaited: bool = True
    conversation_key: str = ""
    previous_response_id: str = ""
    refers_to: str = ""
    sealed: bool = False
    plain_body: bytes | None = None


class Dialects(Protocol):
    """Reads the requests of the LLM APIs. Made once, with its options;
    called from several threads at once."""

    def recognise(self, head: HttpHead) -> ApiDialect | Passed:
        """By method, path and content type, before the body has come: a request that is passed
        here is spared the transfer of its body."""
        ...

    def keeps(self, head: HttpHead) -> bool:
        """Whether what answers the request may be kept by its provider, for later requests to go
        on from by its id."""
        ...

    def read(self, request: HttpRequest) -> Understood | Passed:
        """What the request says; never raises, whatever the body is."""
        ...
