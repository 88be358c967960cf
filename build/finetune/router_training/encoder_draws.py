"""Draws and cases as the ids that the second opinion's encoder reads in the sidecar."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from router_training.cases import OTHER, Case, Draw, Request, RouteText
from router_training.encoder_model import SecondOpinionModel, Text
from router_training.encoding import conversation_of
from sidecar.prompts.second_opinion import EncoderTexts


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Requests over one route list.

    Args:
        right: True where the candidate (the routes, then `other`) is a right answer, bool
            [requests, routes + 1].
    """

    family: str
    requests: list[Text]
    routes: list[Text]
    right: NDArray[np.bool_]

    @property
    def tokens(self) -> int:
        return sum(len(ids) for ids, _ in (*self.requests, *self.routes))


@dataclass(frozen=True, slots=True)
class TextsEncoder:
    """Args:
    max_requests: of one draw; the rest are left out.
    max_routes: a draw with more is not encoded: comparing every token with every other takes
        memory.
    """

    texts: EncoderTexts
    max_requests: int = 24
    max_routes: int = 60

    @property
    def limit(self) -> str:
        return f"more than {self.max_routes} routes; give more with --routes-per-draw"

    def encode(self, draw: Draw) -> EncodedTexts | None:
        """None if the draw has too many routes."""
        if len(draw.routes) > self.max_routes:
            return None
        requests = draw.requests[: self.max_requests]
        names = (*(route.name for route in draw.routes), OTHER)
        right = [[name in request.right for name in names] for request in requests]
        return EncodedTexts(
            draw.family,
            [self._request(request) for request in requests],
            [self._route(route) for route in draw.routes],
            np.array(right, np.bool_),
        )

    def _request(self, request: Request) -> Text:
        return self.texts.request(conversation_of(request).messages)

    def _route(self, route: RouteText) -> Text:
        ids = self.texts.route(route.name, route.description)
        return ids, (0,) * len(ids)


def logits_of(
    model: SecondOpinionModel, encoder: TextsEncoder, cases: Sequence[Case]
) -> Iterator[tuple[Case, NDArray[np.float64]]]:
    """The encoder's logits (routes, `other`) of every case that it encodes."""
    groups: dict[Any, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.routes].append(case)
    for routes, group in groups.items():
        for start in range(0, len(group), encoder.max_requests):
            batch = group[start : start + encoder.max_requests]
            encoded = encoder.encode(Draw("", routes, tuple(case.request for case in batch)))
            if encoded is None:
                break
            with torch.inference_mode():
                logits = model(encoded.requests, encoded.routes).double().cpu().numpy()
            yield from zip(batch, logits, strict=True)
