"""Policies whose routes the model server holds, and such that it does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

from sidecar._generated.llmrouter.v1 import policy_pb2, routing_pb2
from sidecar.bench import traffic
from sidecar.bench.measuring import Measured, Sample, closed_loop, numbers
from sidecar.bench.own import Subject
from sidecar.bench.rows import Row, percentile, row

COLD_AND_WARM = "Cold and warm policy"
MANY = "Many policies"

_COLD_SHARE = 10
"""Calls of another row for each cold policy: one takes as long as several of them."""

_SEED = 5000
"""Of the first cold policy: others have lower ones."""

_PATIENCE_S, _PAUSE_S = 60.0, 0.02


def inline_request(number: int, words: int, count: int, seed: int) -> routing_pb2.RouteRequest:
    """Conversation `number` under a policy of `count` routes that comes along."""
    made = traffic.request(number, words, "")
    policy = made.inline_policy
    policy.default_models.models.add(model=traffic.DEFAULT)
    policy.routes.extend(
        policy_pb2.Route(
            name=str(each["name"]),
            description=str(each["description"]),
            models=policy_pb2.ModelList(models=[policy_pb2.WeightedModel(model=traffic.MODEL)]),
        )
        for each in traffic.routes(count, seed)
    )
    return made


async def cold_and_warm(subject: Subject) -> AsyncIterator[Row]:
    """The first call under a policy that nobody sent before, and calls under one that is known."""
    scale = subject.scale
    routes, words = scale.standard_routes, scale.standard_words

    async def call(number: int, seed: int = _SEED) -> Sample:
        return await subject.tcp.route(inline_request(number, words, routes, seed))

    async def until_decided(seed: int) -> None:
        end = time.perf_counter() + _PATIENCE_S
        while time.perf_counter() < end:
            if (await call(next(numbers), seed)).by_model:
                return
            await asyncio.sleep(_PAUSE_S)

    cold, waits_ms = Measured(), []
    for seed in range(_SEED, _SEED + max(scale.samples // _COLD_SHARE, 1)):
        begun = time.perf_counter()
        cold.samples.append(await call(next(numbers), seed))
        if not cold.samples[-1].by_model:
            await until_decided(seed)
        waits_ms.append((time.perf_counter() - begun) * 1000)
    size = inline_request(1, words, routes, _SEED).ByteSize()
    note = f"decided by the model after {percentile(sorted(waits_ms), 50):,.0f} ms, the median"
    name = f"of {routes} routes, inline"
    yield row(COLD_AND_WARM, f"cold, {name}", cold, message_bytes=size, concurrency=1, note=note)
    warm = await closed_loop(call, 1, scale.samples)
    yield row(COLD_AND_WARM, f"warm, {name}", warm, message_bytes=size, concurrency=1)


async def many_policies(subject: Subject, prefix_bytes: int) -> AsyncIterator[Row]:
    """One policy to thousands by Zipf's law: some are asked for often, most hardly ever.

    Args:
        prefix_bytes: of the keys and values of one policy.
    """
    words = subject.scale.words[0]
    draws = max(subject.scale.samples * 2, 4)
    for count in subject.scale.policy_counts:
        drawn = traffic.zipf(count, draws)
        order = iter(drawn)

        async def call(number: int, order: Iterator[int] = order) -> Sample:
            return await subject.tcp.route(traffic.request(number, words, f"many-{next(order)}"))

        measured = await closed_loop(call, 1, draws)
        cold = sum(each.source == "fallback:warming" for each in measured.samples) / draws
        asked = len(set(drawn))
        yield row(
            MANY,
            f"{count} of 6 routes, Zipf",
            measured,
            message_bytes=traffic.request(1, words, "many-0").ByteSize(),
            concurrency=1,
            note=f"cold {cold:.0%}; {asked} asked for, "
            f"{asked * prefix_bytes / 2**20:,.0f} MiB of keys and values if all were held",
        )
