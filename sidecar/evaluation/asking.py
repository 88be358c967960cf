"""Puts cases to a router, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from sidecar.core.decision import Decision, RoutingRequest
from sidecar.core.errors import SidecarError
from sidecar.evaluation.cases import Case
from sidecar.evaluation.outcomes import Outcome, outcome_of
from sidecar.evaluation.policies import MODEL_ID, Presentation, Question, plain, policy_of

Decide = Callable[[RoutingRequest], Awaitable[Decision]]
"""`Router.decide`, or a call of a running sidecar. A SidecarError is about the one request."""


async def ask(
    cases: Sequence[Case],
    decide: Decide,
    took: Callable[[Outcome], None],
    *,
    concurrency: int = 1,
    presentation: Presentation = plain,
    model_id: str = MODEL_ID,
    explain: bool = False,
) -> None:
    """Asks every case once, those with the same routes one after another.

    Args:
        took: called with each outcome as it comes, which is not the order of `cases`; what it was
            called with is done, should this be cancelled or fail.
        concurrency: questions in flight at once, >= 1.
        presentation: how cases are shown.
        model_id: a model that the router's catalog has.
        explain: ask for explanations, by which an outcome knows whether it was decided `alone`.
    """
    questions = iter(_by_routes(map(presentation, cases)))
    # Whether a prefix is shared is known when it is asked: then all before are at least under way.
    seen: set[object] = set()

    async def work() -> None:
        for question in questions:
            shared = question.routes in seen
            seen.add(question.routes)
            request = RoutingRequest(
                question.case.conversation,
                policy=policy_of(question.routes, model_id),
                explain=explain,
            )
            try:
                took(outcome_of(question, await decide(request), shared))
            except SidecarError as refused:
                took(Outcome(question.case, "", source="error", reason=refused.code.label))

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(concurrency):
                workers.create_task(work())
    except BaseExceptionGroup as failures:
        # Workers fail for the same reason; the first tells it.
        raise failures.exceptions[0] from None


def _by_routes(questions: Iterable[Question]) -> list[Question]:
    """Those with the same routes together, so that the model server computes their prefix once;
    within a route list, and between first uses, in the order given."""
    groups: dict[object, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.routes, []).append(question)
    return [question for group in groups.values() for question in group]
