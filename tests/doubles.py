"""Stand-ins for the routing model, its prompt and the clock, for faults and for tests of the walk
alone."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import Candidate, Decision, RoutingRequest
from sidecar.core.model import (
    Answer,
    AnswerForm,
    Enough,
    InferenceError,
    InferenceFailure,
    LabelAnswer,
    LabelLogits,
    ModelOutput,
    Prompt,
    RouteTexts,
    SecondOpinionIds,
)
from sidecar.core.policy import OTHER, Policy


@dataclass
class Clock:
    """Seconds, monotonic; the test moves them on."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def talk(*texts: str) -> Conversation:
    """A conversation of alternating user and assistant messages."""
    roles = (Role.USER, Role.ASSISTANT)
    return Conversation(tuple(Message(roles[n % 2], text) for n, text in enumerate(texts)))


class StubModel:
    """A served model whose answers and faults the test sets. Logits by position of the route."""

    def __init__(self, logits: Sequence[float] = (3.0, 0.0, 0.0)) -> None:
        self.logits = tuple(logits)
        self.fault: InferenceError | None = None
        self.frozen = False
        """Nothing is answered, readiness included."""
        self.slow = False
        """Decisions alone are not answered."""
        self.warmed: list[tuple[int, ...]] = []
        self.calls = 0
        self.cancelled = 0
        self.opinion: tuple[float, ...] = ()
        """What its encoder says; alone where it is asked alone."""
        self.encoder_lost = False
        self.encoder_apart = False

    def break_with(self, failure: InferenceFailure) -> None:
        self.fault = InferenceError(failure, f"stub: {failure.name}")

    async def infer(self, prompt: Prompt, answer_form: AnswerForm, timeout_s: float) -> ModelOutput:
        self.calls += 1
        await self._obey(timeout_s, self.slow)
        second = prompt.second_opinion
        if second is not None and second.alone:
            return LabelLogits((), self.opinion)
        if tuple(prompt.prefix_ids) not in self.warmed:
            # As any server, it computes what it does not hold.
            self.warmed.append(tuple(prompt.prefix_ids))
        return LabelLogits(self.logits, () if self.encoder_lost else None)

    async def warm(
        self, prefix_ids: Sequence[int], timeout_s: float, routes: RouteTexts = ()
    ) -> None:
        await self._obey(timeout_s)
        self.warmed.append(tuple(prefix_ids))

    async def check_ready(self, timeout_s: float) -> None:
        await self._obey(timeout_s)

    async def close(self) -> None:
        pass

    async def _obey(self, timeout_s: float, slow: bool = False) -> None:
        if self.fault:
            raise self.fault
        try:
            if self.frozen or slow:
                await asyncio.sleep(timeout_s)
                raise InferenceError(InferenceFailure.DEADLINE, "stub: frozen")
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@dataclass(frozen=True)
class StubPrompt:
    """Answers with the route whose logit is highest; the last position is `other`.

    Args:
        enough: when an encoder beside the model decides alone; None: there is no encoder.
    """

    policy: Policy
    prefix_ids: tuple[int, ...] = (1, 2, 3)
    route_texts: RouteTexts = ()
    enough: Enough | None = None

    @property
    def answer_form(self) -> AnswerForm:
        return LabelAnswer(tuple(range(len(self.policy.routes) + 1)))

    def render(self, conversation: Conversation) -> Prompt:
        shown = conversation.shown_to_router()
        second = SecondOpinionIds((1,), (0,), (), self.enough) if self.enough else None
        # Not `hash`, which is another in each process: in some, two texts would be one.
        asked = tuple(zlib.crc32(m.text.encode()) for m in shown)
        return Prompt(self.prefix_ids, asked, second_opinion=second)

    def read(self, output: ModelOutput) -> Answer:
        assert isinstance(output, LabelLogits)
        names = [*(route.name for route in self.policy.routes), OTHER]
        logits = output.logits or output.second_opinion or ()
        total = sum(logits)
        ranked = sorted(
            (Candidate(n, x / total) for n, x in zip(names, logits, strict=True)),
            key=lambda candidate: -candidate.probability,
        )
        lost = output.logits and output.second_opinion == ()
        missing = "the encoder" if lost else ""
        return Answer(ranked[0].name, tuple(ranked), text=ranked[0].name, missing=missing)


@dataclass
class ListSink:
    """Keeps what is recorded."""

    decisions: list[Decision] = field(default_factory=list)

    def record(self, request: RoutingRequest, decision: Decision) -> None:
        self.decisions.append(decision)
