"""What is done to a request, whatever Envoy's mode is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.ext_proc.messages import MetadataValue


@dataclass(frozen=True, slots=True, eq=False)
class Common:
    """What is done alike to many requests. Made once for them, so that what is made of it can be
    kept, too; equal to itself alone. Args: as those of `Effect`."""

    headers: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()
    reroute: bool = False
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    clusters: tuple[str, ...] = ()


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
        model: id of the model whose answer the response is; empty where nothing was decided, or the
            response says nothing of how fast the model answers.
        whole_answer: the client does not want the answer as a stream.
        common: what is done besides; None: nothing.
    """

    headers: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()
    reroute: bool = False
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    clusters: tuple[str, ...] = ()
    body: bytes | None = None
    model: str = ""
    whole_answer: bool = False
    common: Common | None = None

    def whole(self) -> Effect:
        """The same with what is common in it."""
        common = self.common
        if common is None:
            return self
        return Effect(
            headers=common.headers + self.headers,
            remove=common.remove + self.remove,
            reroute=common.reroute or self.reroute,
            metadata={**common.metadata, **self.metadata},
            clusters=common.clusters or self.clusters,
            body=self.body,
            model=self.model,
            whole_answer=self.whole_answer,
        )
