"""A sentence encoder's opinion: how near a request is to each route.

Three similarities of normed states are added: of the mean states; of each of the request's tokens
with the nearest of the route's, weighted; and of each of the route's tokens with the nearest of the
request's, weighted (late interaction, arXiv 2004.12832). See the sidecar's
`engines/encoder_graph.py` for the graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov

from cpu_engine.forward import Floats, Ints
from cpu_engine.requests import Opinion

_PASS_TOKENS = 512
"""Of one pass over the graph: attention within it costs the square of its length."""

Text = tuple[Ints, Ints]
"""Ids and types."""


class Encoder:
    """The compiled graph. Not thread-safe: one pass at a time."""

    def __init__(self, graph: Path, *, threads: int = 0, precision: str = "") -> None:
        """See `Forward`. It compiles in a fraction of its time, so nothing is kept of it."""
        options: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        if precision:
            options["INFERENCE_PRECISION_HINT"] = precision
        compiled = ov.Core().compile_model(graph, "CPU", options)
        self._request = compiled.create_infer_request()
        self.passes = 0

    def run(self, texts: Sequence[Text]) -> list[tuple[Floats, Floats]]:
        """States [tokens, hidden] and heads [tokens, 3] of each text."""
        encoded: list[tuple[Floats, Floats]] = []
        for batch in _batches(texts):
            encoded += self._run_pass(batch)
        return encoded

    def _run_pass(self, texts: Sequence[Text]) -> list[tuple[Floats, Floats]]:
        lengths = [len(ids) for ids, _ in texts]
        inputs = {
            "input_ids": np.concatenate([ids for ids, _ in texts]),
            "position_ids": np.concatenate([np.arange(length) for length in lengths]),
            "token_types": np.concatenate([types for _, types in texts]),
            "segments": np.repeat(np.arange(len(texts)), lengths),
        }
        for name, values in inputs.items():
            self._request.set_tensor(name, ov.Tensor(np.ascontiguousarray(values, np.int32)))
        self._request.infer()
        self.passes += 1
        # Output memory belongs to the request and is overwritten by the next pass.
        states, heads = (self._request.get_tensor(name).data.copy() for name in ("states", "heads"))
        ends = np.cumsum(lengths)[:-1]
        return list(zip(np.split(states, ends), np.split(heads, ends), strict=True))


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A text.

    Args:
        states: [tokens, hidden], each of length 1.
        mean: [hidden], of length 1.
        weights: [tokens], of sum 1.
    """

    states: Floats
    mean: Floats
    weights: Floats

    @property
    def nbytes(self) -> int:
        return self.states.nbytes + self.mean.nbytes + self.weights.nbytes


class RouteStates:
    """Encoded routes by their ids; least recently used first out, bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: OrderedDict[bytes, _Encoded] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, ids: Ints) -> _Encoded | None:
        key = ids.tobytes()
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, ids: Ints, entry: _Encoded) -> None:
        """Hold `entry`, which was not held; what exceeds the bound goes, oldest first."""
        self._entries[ids.tobytes()] = entry
        self.nbytes += entry.nbytes
        while self.nbytes > self.max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.nbytes -= dropped.nbytes


@dataclass(frozen=True, slots=True)
class _Policy:
    """Routes of one policy, side by side.

    Args:
        states: [tokens of all routes, hidden]
        weights: [tokens of all routes]
        starts: of each route among them.
        means: [routes, hidden]
    """

    states: Floats
    weights: Floats
    starts: Ints
    means: Floats


class SecondOpinion:
    """Compares requests with routes. Not thread-safe."""

    def __init__(
        self, encoder: Encoder, scales: tuple[float, float, float], max_route_bytes: int
    ) -> None:
        """
        Args:
            scales: of the three similarities.
            max_route_bytes: bound of what is kept of routes.
        """
        self._encoder = encoder
        self._scales = scales
        self._held = RouteStates(max_route_bytes)
        # Requests of one policy mostly follow each other.
        self._last: tuple[tuple[bytes, ...], _Policy] | None = None

    def warm_up(self) -> None:
        """Compute something, so that the first caller does not wait for memory to be laid out."""
        zeros = np.zeros(_PASS_TOKENS // 2, np.int32)
        self._encoder.run([(zeros, zeros)])

    def keep(self, opinion: Opinion) -> None:
        """Compute what is not held of the routes."""
        self._routes(opinion)

    def holds(self, opinion: Opinion) -> bool:
        """True if all of the routes are held."""
        return all(self._held.get(ids) is not None for ids in opinion.routes)

    def opinions(self, wanted: Sequence[Opinion]) -> list[Floats]:
        """Logits [routes + 1] of each request, the last of them for `other`."""
        encoded = self._encoder.run([(each.request_ids, each.request_types) for each in wanted])
        return [
            self._logits(states, heads, self._policy(each))
            for each, (states, heads) in zip(wanted, encoded, strict=True)
        ]

    def _logits(self, states: Floats, heads: Floats, policy: _Policy) -> Floats:
        request = _encoded(states, heads[:, 0])
        alike = request.states @ policy.states.T
        nearest_in_route = np.maximum.reduceat(alike, policy.starts, axis=1)
        nearest_in_request = alike.max(axis=0) * policy.weights
        by_mean, by_request, by_route = self._scales
        logits = (
            by_mean * (policy.means @ request.mean)
            + by_request * (request.weights @ nearest_in_route)
            + by_route * np.add.reduceat(nearest_in_request, policy.starts)
        )
        return np.append(logits, heads[:, 2].mean()).astype(np.float32)

    def _policy(self, opinion: Opinion) -> _Policy:
        key = tuple(ids.tobytes() for ids in opinion.routes)
        if self._last is None or self._last[0] != key:
            routes = self._routes(opinion)
            lengths = [len(route.weights) for route in routes]
            policy = _Policy(
                states=np.concatenate([route.states for route in routes]),
                weights=np.concatenate([route.weights for route in routes]),
                starts=np.cumsum([0, *lengths[:-1]], dtype=np.int32),
                means=np.stack([route.mean for route in routes]),
            )
            self._last = key, policy
        return self._last[1]

    def _routes(self, opinion: Opinion) -> list[_Encoded]:
        found = {ids.tobytes(): self._held.get(ids) for ids in opinion.routes}
        new = {ids.tobytes(): ids for ids in opinion.routes if found[ids.tobytes()] is None}
        texts = [(ids, np.zeros_like(ids)) for ids in new.values()]
        for ids, (states, heads) in zip(new.values(), self._encoder.run(texts), strict=True):
            found[ids.tobytes()] = entry = _encoded(states, heads[:, 1])
            self._held.put(ids, entry)
        routes = [found[ids.tobytes()] for ids in opinion.routes]
        return [route for route in routes if route is not None]


def _encoded(states: Floats, gate: Floats) -> _Encoded:
    mean = states.mean(axis=0)
    weights = np.exp(gate - gate.max())
    return _Encoded(
        states / np.linalg.norm(states, axis=1, keepdims=True),
        mean / np.linalg.norm(mean),
        weights / weights.sum(),
    )


def _batches(texts: Sequence[Text]) -> Iterator[list[Text]]:
    batch: list[Text] = []
    room = _PASS_TOKENS
    for text in texts:
        if batch and len(text[0]) > room:
            yield batch
            batch, room = [], _PASS_TOKENS
        batch.append(text)
        room -= len(text[0])
    if batch:
        yield batch
