"""Which provider has issued a response, seen in the response.

What the Responses API keeps at a provider (`previous_response_id`) is of use nowhere else. Envoy
shows responses to a second filter in observability mode, which costs a client nothing: Envoy does
not wait for it. The stream is closed at the id, so that no more of the response is sent here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from sidecar._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from sidecar.core.policy import ApiDialect, Catalog
from sidecar.ext_proc.dialects.issued import IssuedId
from sidecar.ext_proc.messages import header_of
from sidecar.ext_proc.options import OwnedHeader
from sidecar.ext_proc.request import HttpHead

_CLUSTER = "xds.cluster_name"
"""Envoy's attribute with the cluster that has answered, which can be that of a fallback."""


class IssuedObserver(Protocol):
    """Remembers who has issued what."""

    def watching(self) -> None:
        """A response will be watched."""
        ...

    def issued(self, response_id: str, caller: str, model: str, route: str) -> None:
        """The provider of that model (id) has issued the id to the caller."""
        ...


class ResponseWatch:
    """Watches the response to one request, until its id is known or will not be.

    Args:
        head: the request, with the headers of its decision, if there was one.
        names: of these headers.
        caller: who sent it.
    """

    def __init__(
        self,
        head: HttpHead,
        names: Mapping[OwnedHeader, str],
        caller: str,
        catalog: Catalog,
        observer: IssuedObserver,
    ) -> None:
        self._head = head
        self._names = names
        self._caller = caller
        self._catalog = catalog
        self._observer = observer
        self._cluster = ""
        self._reading: IssuedId | None = None
        self.ended = False
        observer.watching()

    def heard(self, message: pb.ProcessingRequest) -> None:
        """Envoy's next message."""
        match message.WhichOneof("request"):
            case "response_headers":
                self._headers(message)
            case "response_body":
                self._body(message.response_body)

    def _headers(self, message: pb.ProcessingRequest) -> None:
        headers = message.response_headers.headers
        status = header_of(headers, ":status")
        if status.startswith("1"):
            return
        self._cluster = _attribute(message, _CLUSTER) or self._said(OwnedHeader.CLUSTER)
        self._reading = IssuedId(
            header_of(headers, "content-type"), header_of(headers, "content-encoding")
        )
        readable = status.startswith("2") and self._reading.wants_more
        self.ended = not readable or message.response_headers.end_of_stream

    def _body(self, body: pb.HttpBody) -> None:
        if self._reading is None:
            self.ended = True
            return
        self._reading.feed(body.body)
        self.ended = body.end_of_stream or not self._reading.wants_more
        if self._reading.id:
            self._issued(self._reading.id)

    def _issued(self, response_id: str) -> None:
        model = next(self._models(), "")
        if not model:
            return
        decided = model in (self._said(OwnedHeader.MODEL), *self._fallbacks())
        route = self._said(OwnedHeader.ROUTE) if decided else ""
        self._observer.issued(response_id, self._caller, model, route)

    def _models(self) -> Iterator[str]:
        """Those of the cluster that has answered: the decision's first, for the same cluster can
        have several; then those that go on from a response, for others have files alone."""
        others = sorted(
            self._catalog,
            key=lambda id: ApiDialect.OPENAI_RESPONSES not in self._catalog[id].dialects,
        )
        for id in (self._said(OwnedHeader.MODEL), *self._fallbacks(), *others):
            model = self._catalog.get(id)
            if model is not None and model.cluster and model.cluster == self._cluster:
                yield id

    def _fallbacks(self) -> list[str]:
        return self._said(OwnedHeader.FALLBACKS).split(",")

    def _said(self, header: OwnedHeader) -> str:
        return self._head.header(self._names[header])


def _attribute(message: pb.ProcessingRequest, name: str) -> str:
    """Envoy sends attributes under the name of the filter, which is the operator's to choose."""
    for values in message.attributes.values():
        if name in values.fields:
            return values.fields[name].string_value
    return ""
