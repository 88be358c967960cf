"""The routing model and its tokenizer, as the router sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from sidecar.core.conversation import Conversation
from sidecar.core.decision import Candidate, Reason
from sidecar.core.policy import Policy


class Tokenizer(Protocol):
    """Text to token ids and back. Thread-safe."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as plain text: the spelling of a special token is not that token, and
        nothing (no begin-of-sequence) is added."""
        ...

    def special(self, token: str) -> int:
        """Id of a special token such as `<|im_start|>`; KeyError if the model has none so named."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens spelled out."""
        ...


@dataclass(frozen=True, slots=True)
class LabelAnswer:
    """The answer is one token out of `token_ids`, one per candidate; one forward pass gives the
    exact softmax over them."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """The answer is text within `guide`.

    Args:
        guide: EBNF of the xgrammar kind: `root ::= ` and an alternation of quoted literals,
            nothing else.
        max_tokens: enough for the longest literal however it is split into tokens, plus one for
            the end token; or what tells the literals apart, where the prompt has begun the answer.
    """

    guide: str
    max_tokens: int


AnswerForm = LabelAnswer | TextAnswer


RouteTexts = tuple[tuple[int, ...], ...]
"""Of each route of a policy, in declared order, the ids that a sentence encoder reads."""


@dataclass(frozen=True, slots=True)
class Enough:
    """When the sentence encoder decides by itself and the language model is not computed: one
    candidate's probability, the softmax of `factor` times the encoder's logits with `other_bias`
    added to `other`, is `probability` or more.

    Args:
        in_place: likewise, where the language model cannot be asked in time; at most
            `probability`. None: the same.
    """

    factor: float
    other_bias: float
    probability: float
    in_place: float | None = None


@dataclass(frozen=True, slots=True)
class SecondOpinionIds:
    """What the sentence encoder of a second opinion reads, in ids of its own tokenizer.

    Args:
        request_ids: the newest request, and what was said before it.
        request_types: 0 or 1 for each of them: the request, what was said before.
        routes: shared by all requests of a policy.
        enough: when the encoder decides by itself; None: never.
        alone: the language model is not asked in any case, so that no prefix has to be read.
    """

    request_ids: tuple[int, ...]
    request_types: tuple[int, ...]
    routes: RouteTexts
    enough: Enough | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of one routing prompt. `prefix_ids` is shared by all requests of a policy.

    Args:
        second_opinion: None where the routing model has no sentence encoder beside it.
    """

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    truncated: bool = False
    second_opinion: SecondOpinionIds | None = None

    @property
    def asked(self) -> tuple[int, ...]:
        """What tells this prompt from another of the same policy."""
        if self.second_opinion is None:
            return self.suffix_ids
        # No id is negative; the types follow from the ids.
        return (*self.suffix_ids, -1, *self.second_opinion.request_ids)


def encoder_alone(prompt: Prompt) -> Prompt | None:
    """`prompt` for the sentence encoder alone; None if that never decides by itself."""
    second = prompt.second_opinion
    if second is None or second.enough is None:
        return None
    return replace(prompt, second_opinion=replace(second, alone=True))


@dataclass(frozen=True, slots=True)
class LabelLogits:
    """Logits of the label tokens, in the order of `LabelAnswer.token_ids`.

    Args:
        logits: empty where the sentence encoder was `Enough`, or asked alone.
        second_opinion: the sentence encoder's, of the same candidates; None if the model server
            sent none.
    """

    logits: tuple[float, ...]
    second_opinion: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class TextOutput:
    """Generated ids without the end token, with natural-log probabilities where given (else
    empty)."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...] = ()


ModelOutput = LabelLogits | TextOutput


def by_language_model(output: ModelOutput) -> bool:
    """False where the sentence encoder answered alone: the prefix has not been read then."""
    return not isinstance(output, LabelLogits) or bool(output.logits)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the output means for the policy.

    Args:
        name: the chosen route or `other`; empty if the output names nothing (see `problem`).
        candidates: probabilities, most probable first; of the chosen one alone where the answer
            form gives no more; empty where it gives none. Domains not yet summed.
        problem: why `name` is empty: `UNPARSABLE_ANSWER` or `UNKNOWN_ROUTE`.
        text: the answer as written, for the explanation.
        missing: what the answer should be made of, too, and did not come; empty if nothing. Such an
            answer is not kept for later requests.
    """

    name: str
    candidates: tuple[Candidate, ...] = ()
    problem: Reason | None = None
    text: str = ""
    missing: str = ""


def is_sure(answer: Answer, prompt: Prompt) -> bool:
    """True if `answer`, of the sentence encoder alone, is one that it decides by itself."""
    enough = _enough(prompt)
    return enough is not None and _has(answer, enough.probability)


def stands_in(answer: Answer, prompt: Prompt) -> bool:
    """True if `answer`, of the sentence encoder alone, is good enough where the language model
    cannot be asked in time."""
    enough = _enough(prompt)
    if enough is None:
        return False
    return _has(answer, enough.probability if enough.in_place is None else enough.in_place)


def _enough(prompt: Prompt) -> Enough | None:
    return prompt.second_opinion.enough if prompt.second_opinion is not None else None


def _has(answer: Answer, probability: float) -> bool:
    return bool(answer.candidates) and answer.candidates[0].probability >= probability


class CompiledPrompt(Protocol):
    """The prompt of one policy for one routing model, ready for conversations. Immutable."""

    @property
    def prefix_ids(self) -> tuple[int, ...]: ...

    @property
    def answer_form(self) -> AnswerForm: ...

    @property
    def route_texts(self) -> RouteTexts:
        """What a second opinion's encoder reads of the routes; empty without one."""
        ...

    def render(self, conversation: Conversation) -> Prompt:
        """The prompt for `conversation`, never longer than the token budget it was compiled for.

        The conversation must have at least one message in `shown_to_router()`.
        """
        ...

    def read(self, output: ModelOutput) -> Answer:
        """What `output` says; never raises for what a model may say."""
        ...


class PromptFormat(Protocol):
    """A named, versioned way to write prompts, e.g. `compact-v1`."""

    @property
    def name(self) -> str: ...

    def compile(
        self,
        policy: Policy,
        tokenizer: Tokenizer,
        max_tokens: int,
        temperature: float = 1.0,
        max_conversation_tokens: int | None = None,
    ) -> CompiledPrompt:
        """Render and tokenize the static part.

        Args:
            max_tokens: limit of prefix and suffix together, the answer not included.
            temperature: divides label logits before the softmax (calibration of the engine).
            max_conversation_tokens: limit of the messages alone, whatever room is left beside the
                routes: what the model reads anew for each request, and so what a decision costs.

        Raises:
            SidecarError: POLICY_TOO_LARGE if no useful conversation would fit beside the routes.
        """
        ...


class InferenceFailure(Enum):
    """Why the routing model gave no output."""

    DEADLINE = Reason.DEADLINE_EXCEEDED
    UNAVAILABLE = Reason.MODEL_UNAVAILABLE
    OVERLOADED = Reason.OVERLOADED
    ERROR = Reason.MODEL_ERROR
    BREAKER_OPEN = Reason.BREAKER_OPEN


class InferenceError(Exception):
    """No output from the routing model. Never reaches a caller: it becomes a fallback."""

    def __init__(self, failure: InferenceFailure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


class RoutingModel(Protocol):
    """A served routing model."""

    async def infer(self, prompt: Prompt, answer_form: AnswerForm, timeout_s: float) -> ModelOutput:
        """One inference; cancelling the task cancels it in the model server.

        Raises:
            InferenceError: no output, for a reason that the caller turns into a fallback.
        """
        ...

    async def warm(
        self, prefix_ids: Sequence[int], timeout_s: float, routes: RouteTexts = ()
    ) -> None:
        """Have the model server compute and keep the prefix. Raises InferenceError.

        Args:
            routes: for a second opinion: what its encoder reads of them is kept, too.
        """
        ...
