"""An application that calls a provider: by itself, with a sidecar, and with the routing model.

The provider answers at once (`provider.py`), so a row's times are the application's HTTP request
and what routing adds to it; a real one takes its seconds on top in every row alike.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable

import aiohttp

from sidecar._generated.llmrouter.v1 import routing_pb2
from sidecar.bench import traffic
from sidecar.bench.measuring import Call, Sample, open_loop
from sidecar.bench.own import Subject
from sidecar.bench.rows import Row, row

GROUP = "An application and its provider"

_RATES = (1.0, 5.0)
_RATE_WITHOUT_MODEL = 50.0


async def application(subject: Subject, provider: str) -> AsyncIterator[Row]:
    """Rows at fixed rates.

    Args:
        provider: its URL.
    """
    routes, words = subject.scale.standard_routes, subject.scale.standard_words
    policy = f"routes-{routes}"
    await subject.warm(policy)
    known = await subject.known(routes, words)
    body = json.dumps(_chat(known)).encode()
    async with aiohttp.ClientSession() as session:
        known_only = _routed(subject, session, provider, lambda _: known)
        always_new = _routed(
            subject, session, provider, lambda n: traffic.request(n, words, policy)
        )
        ways: tuple[tuple[str, Call, bool], ...] = (
            ("app only", _alone(session, provider, body), False),
            ("+ sidecar, known conversation", known_only, False),
            ("+ sidecar and model", always_new, True),
        )
        for name, call, by_model in ways:
            for rate in _RATES if by_model else (*_RATES, _RATE_WITHOUT_MODEL):
                measured = await open_loop(call, rate, subject.scale.seconds)
                yield row(GROUP, name, measured, message_bytes=len(body), offered=rate)


def _alone(session: aiohttp.ClientSession, provider: str, body: bytes) -> Call:
    async def call(_: int) -> Sample:
        started = time.perf_counter()
        failure = await _post(session, provider, body)
        return Sample(time.perf_counter() - started, failure or "no decision")

    return call


def _routed(
    subject: Subject,
    session: aiohttp.ClientSession,
    provider: str,
    request: Callable[[int], routing_pb2.RouteRequest],
) -> Call:
    async def call(number: int) -> Sample:
        asked = request(number)
        body = json.dumps(_chat(asked)).encode()
        started = time.perf_counter()
        decided = await subject.tcp.route(asked)
        failure = await _post(session, provider, body)
        took = time.perf_counter() - started
        return Sample(took, failure or decided.source, decided.by_model, decided.model_s)

    return call


async def _post(session: aiohttp.ClientSession, provider: str, body: bytes) -> str:
    """Empty, or the sample's source for a request that failed."""
    headers = {"content-type": "application/json"}
    try:
        async with session.post(provider, data=body, headers=headers) as answer:
            await answer.read()
            return "" if answer.status == 200 else f"failed:{answer.status}"
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"failed:{type(error).__name__}"


def _chat(request: routing_pb2.RouteRequest) -> dict[str, object]:
    names = {routing_pb2.ROLE_USER: "user", routing_pb2.ROLE_ASSISTANT: "assistant"}
    return {
        "model": traffic.MODEL,
        "messages": [
            {
                "role": names[message.role],
                "content": " ".join(part.text for part in message.parts),
            }
            for message in request.messages
        ],
    }
