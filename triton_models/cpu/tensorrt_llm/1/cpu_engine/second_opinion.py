"""A sentence encoder's opinion: how near a request is to each route.

Three similarities of normed states are added: of the mean states; of each of the request's tokens
with the nearest of the route's, weighted; and of each of the route's tokens with the nearest of the
request's, weighted (late interaction, arXiv 2004.12832). See the sidecar's
`engines/encoder_graph.py` for the graph.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov

from cpu_engine.forward import Floats, Ints
from cpu_engine.requests import Opinion

_PASS_TOKENS = 128
"""Of one pass over the graph, which is waited for by everyone in it and who comes after it. On two
CPU cores more cost no less for each."""

Text = tuple[Ints, Ints]
"""Ids and types."""

Routes = tuple[Ints, ...]

Key = tuple[bytes, ...]
"""What tells routes of one policy from those of another."""


class Encoder:
    """The compiled graph. Of two threads that use it neither waits for more than one pass of the
    other."""

    def __init__(self, graph: Path, *, threads: int = 0, precision: str = "") -> None:
        """See `Forward`. It compiles in a fraction of its time, so nothing is kept of it."""
        options: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        if precision:
            options["INFERENCE_PRECISION_HINT"] = precision
        compiled = ov.Core().compile_model(graph, "CPU", options)
        self._request = compiled.create_infer_request()
        self._next, self._pass = threading.Lock(), threading.Lock()
        self.passes = 0

    def run(self, texts: Sequence[Text]) -> Iterator[tuple[Floats, Floats]]:
        """States [tokens, hidden] and heads [tokens, 3] of each text, pass by pass."""
        for batch in _batches(texts):
            with self._turn():
                encoded = self._run_pass(batch)
            yield from encoded

    @contextmanager
    def _turn(self) -> Iterator[None]:
        # One lock alone may go to the thread that has just released it, again and again.
        with self._next:
            self._pass.acquire()
        try:
            yield
        finally:
            self._pass.release()

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
class Encoded:
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
    """Encoded routes by their ids; least recently used first out, bounded in bytes. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: OrderedDict[bytes, Encoded] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, ids: Ints) -> Encoded | None:
        key = ids.tobytes()
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
        return entry

    def put(self, ids: Ints, entry: Encoded) -> None:
        """Hold `entry`, unless it is held; what exceeds the bound goes, oldest first."""
        key = ids.tobytes()
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = entry
            self.nbytes += entry.nbytes
            while self.nbytes > self.max_bytes:
                _, dropped = self._entries.popitem(last=False)
                self.nbytes -= dropped.nbytes


@dataclass(frozen=True, slots=True)
class Policy:
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
    """Compares requests with routes. One thread may ask while another has routes read."""

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
        self._last: tuple[Key, Policy] | None = None

    def warm_up(self) -> None:
        """Compute something, so that the first caller does not wait for memory to be laid out."""
        zeros = np.zeros(_PASS_TOKENS // 2, np.int32)
        list(self._encoder.run([(zeros, zeros)] * 2))

    def holds(self, routes: Routes) -> bool:
        """True if nothing of the routes is to be read."""
        held = all(self._held.get(ids) is not None for ids in routes)
        return held or self._latest(routes) is not None

    def opinions(self, wanted: Sequence[Opinion], policy: Policy | None = None) -> Iterator[Floats]:
        """Logits [routes + 1] of each request, the last of them for `other`, as they come.

        Args:
            policy: of all of them; None: each one's is put together, what is not held read first.
        """
        encoded = self._encoder.run([(each.request_ids, each.request_types) for each in wanted])
        for each, (states, heads) in zip(wanted, encoded, strict=True):
            yield self._logits(states, heads, policy or self._policy(each.routes))

    def read(self, routes: Routes, found: dict[bytes, Encoded]) -> Policy | None:
        """Read some of those that are not held, in one pass; None until nothing is left.

        Args:
            found: what was so far, since all need not be held at the same time; added to.
        """
        new = self._not_held(routes, found)
        encoded = self._encoder.run([(ids, np.zeros_like(ids)) for ids in new.values()])
        for (key, ids), (states, heads) in zip(new.items(), encoded, strict=True):
            found[key] = entry = _encoded(states, heads[:, 1])
            self._held.put(ids, entry)
        key_of_all = key_of(routes)
        if not found.keys() >= set(key_of_all):
            return None
        policy = _side_by_side([found[key] for key in key_of_all])
        self._last = key_of_all, policy
        return policy

    def _not_held(self, routes: Routes, found: dict[bytes, Encoded]) -> dict[bytes, Ints]:
        """As many as one pass reads; what is held is added to `found`."""
        new: dict[bytes, Ints] = {}
        room = _PASS_TOKENS
        for ids in routes:
            key = ids.tobytes()
            if key in found or key in new:
                continue
            # For another policy it may have been read meanwhile.
            held = self._held.get(ids)
            if held is not None:
                found[key] = held
            elif not new or len(ids) <= room:
                new[key] = ids
                room -= len(ids)
        return new

    def _logits(self, states: Floats, heads: Floats, policy: Policy) -> Floats:
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

    def _policy(self, routes: Routes) -> Policy:
        policy = self._latest(routes)
        found: dict[bytes, Encoded] = {}
        while policy is None:
            policy = self.read(routes, found)
        return policy

    def _latest(self, routes: Routes) -> Policy | None:
        last = self._last
        return last[1] if last is not None and last[0] == key_of(routes) else None


def key_of(routes: Routes) -> Key:
    return tuple(ids.tobytes() for ids in routes)


def _side_by_side(routes: Sequence[Encoded]) -> Policy:
    lengths = [len(route.weights) for route in routes]
    return Policy(
        states=np.concatenate([route.states for route in routes]),
        weights=np.concatenate([route.weights for route in routes]),
        starts=np.cumsum([0, *lengths[:-1]], dtype=np.int32),
        means=np.stack([route.mean for route in routes]),
    )


def _encoded(states: Floats, gate: Floats) -> Encoded:
    mean = states.mean(axis=0)
    weights = np.exp(gate - gate.max())
    return Encoded(
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
