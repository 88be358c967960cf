"""Shared calls: one deadline per waiter, cancelled with the last."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.core.model import InferenceError, InferenceFailure, LabelLogits, ModelOutput
from sidecar.routing.coalescing import Coalescer

OUTPUT = LabelLogits((1.0,))


class Call:
    """A call that ends when told to, and counts."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.release = asyncio.Event()
        self.error: InferenceError | None = None

    async def __call__(self) -> ModelOutput:
        self.started += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        return OUTPUT


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_equal_keys_share_one_call_and_different_keys_do_not() -> None:
    coalescer, call = Coalescer[str](), Call()
    waiters = [
        asyncio.create_task(coalescer.join(key, "here", call, 60)) for key in ("a", "a", "b")
    ]
    await settle()
    call.release.set()

    assert await asyncio.gather(*waiters) == [OUTPUT] * 3
    assert call.started == 2
    assert len(coalescer) == 0


async def test_a_waiter_leaves_by_its_own_deadline_and_the_call_goes_on() -> None:
    coalescer, call = Coalescer[str](), Call()
    patient = asyncio.create_task(coalescer.join("a", "here", call, 60))
    with pytest.raises(InferenceError) as caught:
        await coalescer.join("a", "here", call, 0.01)
    call.release.set()

    assert caught.value.failure is InferenceFailure.DEADLINE
    assert await patient == OUTPUT
    assert (call.started, call.cancelled) == (1, 0)


@pytest.mark.parametrize("by", ["deadline", "cancellation"])
async def test_the_call_is_cancelled_with_its_last_waiter(by: str) -> None:
    coalescer, call = Coalescer[str](), Call()
    waiters = [
        asyncio.create_task(coalescer.join("a", "here", call, 0.01 if by == "deadline" else 60))
        for _ in range(2)
    ]
    await settle()
    if by == "cancellation":
        waiters[0].cancel()
        await settle()
        assert call.cancelled == 0
        waiters[1].cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    await settle()

    assert call.cancelled == 1
    assert len(coalescer) == 0


async def test_nobody_joins_a_call_that_is_being_cancelled() -> None:
    coalescer, call = Coalescer[str](), Call()
    with pytest.raises(InferenceError):
        await coalescer.join("a", "here", call, 0.001)
    late = asyncio.create_task(coalescer.join("a", "here", call, 60))
    await settle()
    # The end of the one before is not the end of this one.
    assert coalescer.place("a") == "here"
    call.release.set()

    assert await late == OUTPUT
    assert call.started == 2


async def test_a_failure_reaches_every_waiter() -> None:
    coalescer, call = Coalescer[str](), Call()
    call.error = InferenceError(InferenceFailure.UNAVAILABLE, "gone")
    waiters = [asyncio.create_task(coalescer.join("a", "here", call, 60)) for _ in range(2)]
    await settle()
    call.release.set()

    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert results == [call.error, call.error]


async def test_the_place_of_a_call_is_known_while_it_is_in_flight() -> None:
    coalescer, call = Coalescer[str](), Call()
    waiter = asyncio.create_task(coalescer.join("a", "here", call, 60))
    await settle()
    during = coalescer.place("a")
    call.release.set()
    await waiter

    assert (during, coalescer.place("a"), coalescer.place("b")) == ("here", None, None)


async def test_a_call_that_somebody_else_cancels_is_no_cancellation_of_who_waits() -> None:
    """As a channel does that is closed under its calls."""
    coalescer = Coalescer[str]()

    async def closed() -> ModelOutput:
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    with pytest.raises(InferenceError) as caught:
        await coalescer.join("a", "here", closed, 60)

    assert caught.value.failure is InferenceFailure.UNAVAILABLE
