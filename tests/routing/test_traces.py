"""Which calls to the routing model are told of a decision's trace. The model is a stub."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sidecar.core.model import AnswerForm, ModelOutput, Prompt, RouteTexts
from sidecar.inference.calls import decision_trace
from sidecar.routing import DecisionCache
from tests.doubles import StubModel, talk
from tests.routing.warming import POLICIES, warmth
from tests.routing.worlds import a_world, request


class Trace:
    def begin_call(self, address: str, method: str, model: str) -> None:
        raise AssertionError("the stub calls nobody")


class Seeing(StubModel):
    """Sees which trace its calls are part of."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    async def infer(self, prompt: Prompt, answer_form: AnswerForm, timeout_s: float) -> ModelOutput:
        self.seen.append(decision_trace.get())
        return await super().infer(prompt, answer_form, timeout_s)

    async def warm(
        self, prefix_ids: Sequence[int], timeout_s: float, routes: RouteTexts = ()
    ) -> None:
        self.seen.append(decision_trace.get())
        await super().warm(prefix_ids, timeout_s, routes)


async def test_a_call_is_in_the_trace_of_the_decision_that_began_it() -> None:
    begun: list[Trace] = []

    def begin() -> Trace:
        begun.append(Trace())
        return begun[-1]

    async with a_world(DecisionCache(0, 60), begin_trace=begin) as world:
        model = world.guard._model = Seeing()
        model.warmed.append((1, 2, 3))
        for texts in (("a",), ("b",)):
            same = request(conversation=talk(*texts))
            await asyncio.gather(*(world.router.decide(same) for _ in range(2)))

    assert len(begun) == 4
    assert model.seen == [begun[0], begun[2]]


async def test_a_prefix_is_computed_in_the_trace_of_no_decision() -> None:
    model, prefixes = Seeing(), warmth()
    decision_trace.set(Trace())
    prefixes.request(POLICIES["default"], model)
    await asyncio.gather(*prefixes._tasks.values())

    assert model.seen == [None]
