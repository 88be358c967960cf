"""What is done to a request, whatever Envoy's mode is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.ext_proc.messages import MetadataValue


@dataclass(frozen=True, slots=True)
class Effect:
    """The outcome for one request.

    Args:
        headers: set over whatever is there.
        remove: removed; headers that only the sidecar may set, and `content-encoding` of a body
            that goes on uncompressed.
        reroute: have Envoy choose the route anew, by these headers.
        metadata: dynamic metadata of the namespace `llm_router`.
        clusters: Envoy's clusters to try, in this order; empty: left to Envoy's route.
        body: takes the place of the body; None leaves it as it came.
        stamp: set on the response as well.
        model: id of the model that the request goes to; empty where nothing was decided.
        whole_answer: the client does not want the answer as a stream.
    """

    headers: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()
    reroute: bool = False
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    clusters: tuple[str, ...] = ()
    body: bytes | None = None
    stamp: tuple[tuple[str, str], ...] = ()
    model: str = ""
    whole_answer: bool = False
