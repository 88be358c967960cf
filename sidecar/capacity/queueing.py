"""How long decisions wait when many sidecars share some GPUs: a simulation.

Decisions arrive at random moments (Poisson) and go to the replica of their policy, so that its
routes are in that replica's cache, or to the least busy one. A replica takes up what waits, as much
as fits a batch, and computes it together. Real in-flight batching can do more, requests may join a
running batch, so that real waits should be shorter.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HEADROOM = 0.8
"""Of what full batches could carry; a plan that needs more has nothing left for a busier minute."""

_DECISIONS = 8_000
_SECONDS = 4.0
"""Of arrivals that a plan is made for, at least: until batches have grown to what they will be."""

BatchMs = Callable[[int], float]
"""Decisions in a batch -> milliseconds of the GPU."""


@dataclass(frozen=True, slots=True)
class Load:
    """What arrives.

    Args:
        per_second: decisions, of all sidecars together.
        replicas: GPUs.
        max_batch: decisions computed together.
        policies: each belongs to one replica, all are asked equally often; 0: any replica.
        decisions: to simulate; the first tenth is not counted.
    """

    per_second: float
    replicas: int
    max_batch: int = 64
    policies: int = 0
    decisions: int = _DECISIONS
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """Milliseconds from arrival to answer, without the network; share of the time that the GPUs
    compute; mean decisions in a batch."""

    p50_ms: float
    p99_ms: float
    busy: float
    mean_batch: float


def simulate(load: Load, batch_ms: BatchMs, request_ms: float = 0.0) -> Outcome:
    """Deterministic for a seed.

    Args:
        request_ms: added to every decision, without keeping the GPU busy.
    """
    rng = random.Random(load.seed)  # noqa: S311
    owner = _owners(load)
    waiting: list[deque[float]] = [deque() for _ in range(load.replicas)]
    free_at = [0.0] * load.replicas
    running: list[int] = [0] * load.replicas
    ends: list[tuple[float, int, tuple[float, ...]]] = []
    times: list[float] = []
    computed = batches = 0.0
    now = arrived = 0.0
    left = load.decisions

    def start(replica: int, moment: float) -> None:
        nonlocal computed, batches
        queue = waiting[replica]
        taken = tuple(queue.popleft() for _ in range(min(len(queue), load.max_batch)))
        took = batch_ms(len(taken))
        running[replica] = len(taken)
        free_at[replica] = moment + took
        computed += took
        batches += 1
        heapq.heappush(ends, (moment + took, replica, taken))

    while left or ends:
        if left and (not ends or arrived <= ends[0][0]):
            now = arrived
            replica = owner(rng, [len(q) + r for q, r in zip(waiting, running, strict=True)])
            waiting[replica].append(now)
            if not running[replica]:
                start(replica, now)
            left -= 1
            arrived += rng.expovariate(load.per_second) * 1000
            continue
        now, replica, done = heapq.heappop(ends)
        times.extend(now - begun + request_ms for begun in done)
        running[replica] = 0
        if waiting[replica]:
            start(replica, now)
    return _outcome(times, computed / (now * load.replicas), load.decisions / batches)


def replicas_needed(
    per_second: float,
    batch_ms: BatchMs,
    p99_ms: float,
    *,
    max_batch: int = 64,
    request_ms: float = 0.0,
    most: int = 128,
) -> tuple[int, Outcome] | None:
    """The fewest replicas with which 99 % of the decisions take less than `p99_ms`, with `HEADROOM`
    left, and what they make of it; None if `most` are too few."""
    decisions = max(_DECISIONS, math.ceil(_SECONDS * per_second))
    known: dict[int, Outcome] = {}

    def holds(replicas: int) -> bool:
        load = Load(per_second, replicas, max_batch, decisions=decisions)
        known[replicas] = simulate(load, batch_ms, request_ms)
        return known[replicas].p99_ms <= p99_ms

    needed = per_second * batch_ms(max_batch) / 1000 / max_batch
    low = high = max(1, math.ceil(needed / HEADROOM))
    if high > most:
        return None
    # With more replicas it takes less time, but for chance.
    while not holds(high):
        if high == most:
            return None
        low, high = high + 1, min(most, 2 * high)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high, known[high]


def _owners(load: Load) -> Callable[[random.Random, Sequence[int]], int]:
    if load.policies:
        return lambda rng, busy: rng.randrange(load.policies) % load.replicas
    return lambda rng, busy: min(range(load.replicas), key=busy.__getitem__)


def _outcome(times: list[float], busy: float, mean_batch: float) -> Outcome:
    counted = sorted(times[len(times) // 10 :])
    return Outcome(
        p50_ms=counted[len(counted) // 2],
        p99_ms=counted[int(len(counted) * 0.99)],
        busy=busy,
        mean_batch=mean_batch,
    )
