"""The second opinion: what a small sentence encoder reads, and how its logits join the model's.

A language model of this size reads a policy as a whole and misses what single words say; a sentence
encoder compares the request with each route by itself and sees little else. Their logits are added
with fitted weights. The texts are described in `docs/prompt-formats.md`; the encoder is trained on
these exact ids.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.decision import ENCODER_ALONE, LANGUAGE_MODEL_ALONE
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import (
    Answer,
    CompiledPrompt,
    Enough,
    LabelAnswer,
    LabelLogits,
    ModelOutput,
    Prompt,
    RouteTexts,
    SecondOpinionIds,
    Tokenizer,
)
from sidecar.core.policy import Policy
from sidecar.prompts.answers import read_labels, softmax
from sidecar.prompts.compact import CompactPrompt

REQUEST_TOKENS = 64
"""Most tokens of the newest request; a longer one loses what is behind its first three quarters and
before its last."""

EARLIER_TOKENS = 48
"""Most tokens of what was said before, ends of messages included."""

EARLIER_MESSAGE_TOKENS = 24
ROUTE_TOKENS = 64

_END_CHARS = 2000
"""Read of either end of a message or route: bounds the time for a text of megabytes."""

_MISSING = "the sentence encoder's second opinion"

_NAME_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_]+")


def name_words(name: str) -> list[str]:
    """`codeReview_v2` -> `code`, `Review`, `v`, `2`."""
    return _NAME_WORD.findall(name)


@dataclass(frozen=True, slots=True)
class EncoderTexts:
    """Requests and routes as ids of the encoder, a BERT.

    Args:
        start, end: its ids of `[CLS]` and `[SEP]`.
    """

    tokenizer: Tokenizer
    start: int
    end: int

    def request(self, messages: Sequence[Message]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids and types of the newest user message and what was said before it: as many messages
        as fit, the newest of them last.

        Args:
            messages: at least one; without a user message the newest takes its place.
        """
        newest = len(messages) - 1
        asked = next((i for i in range(newest, -1, -1) if messages[i].role is Role.USER), newest)
        request = [self.start, *self._cut(messages[asked].text, REQUEST_TOKENS), self.end]
        earlier: list[int] = []
        for message in reversed(messages[:asked]):
            ids = self._cut(message.text, EARLIER_MESSAGE_TOKENS)
            if len(earlier) + len(ids) + 1 > EARLIER_TOKENS:
                break
            earlier = [*ids, self.end, *earlier]
        types = (0,) * len(request) + (1,) * len(earlier)
        return (*request, *earlier), types

    def route(self, name: str, description: str) -> tuple[int, ...]:
        text = f"{' '.join(name_words(name))}: {description}"
        return (self.start, *self._cut(text, ROUTE_TOKENS), self.end)

    def _cut(self, text: str, tokens: int) -> list[int]:
        if len(text) > 2 * _END_CHARS:
            # What is asked for often stands behind all that was pasted before it.
            text = text[:_END_CHARS] + text[-_END_CHARS:]
        ids = self.tokenizer.encode(text)
        if len(ids) <= tokens:
            return ids
        head = tokens * 3 // 4
        return ids[:head] + ids[head - tokens :]


def encoder_texts(tokenizer: Tokenizer) -> EncoderTexts:
    """Raises SidecarError UNSUPPORTED if the tokenizer is none of a BERT."""
    try:
        return EncoderTexts(tokenizer, tokenizer.special("[CLS]"), tokenizer.special("[SEP]"))
    except KeyError as error:
        raise SidecarError(
            ErrorCode.UNSUPPORTED,
            f"the tokenizer of the second opinion has no token {error}; build the model again",
        ) from None


@dataclass(frozen=True, slots=True)
class Fusion:
    """How two opinions become one, fitted on cases that neither was trained on.

    Args:
        language_model: factor of the language model's log-probabilities.
        encoder: factor of the encoder's logits.
        other_bias: added to `other`.
        temperature: divides the sum; > 0.
    """

    language_model: float
    encoder: float
    other_bias: float = 0.0
    temperature: float = 1.0

    def fuse(self, language_model: Sequence[float], encoder: Sequence[float]) -> tuple[float, ...]:
        """Logits of the routes and `other`, which is the last."""
        log_probs = _log_softmax(language_model)
        fused = [
            self.language_model * one + self.encoder * other
            for one, other in zip(log_probs, encoder, strict=True)
        ]
        fused[-1] += self.other_bias
        return tuple(fused)


@dataclass(frozen=True, slots=True)
class FusedPrompt:
    """A policy compiled for a language model and an encoder; implements
    `core.model.CompiledPrompt`.

    Where the model server sends no second opinion, the language model decides alone, at its own
    temperature, and the answer says that something is missing. Where the encoder is `enough`, it
    decides alone.
    """

    alone: CompactPrompt
    route_texts: RouteTexts
    fusion: Fusion
    enough: Enough | None
    _texts: EncoderTexts

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        return self.alone.prefix_ids

    @property
    def answer_form(self) -> LabelAnswer:
        return self.alone.answer_form

    def render(self, conversation: Conversation) -> Prompt:
        ids, types = self._texts.request(conversation.shown_to_router())
        second = SecondOpinionIds(ids, types, self.route_texts, self.enough)
        return replace(self.alone.render(conversation), second_opinion=second)

    def read(self, output: ModelOutput) -> Answer:
        if not isinstance(output, LabelLogits):
            return self.alone.read(output)
        if not output.logits and self.enough is not None:
            return self._by_encoder(output.second_opinion or (), self.enough)
        second, names = output.second_opinion, self.alone.names
        if second is None or len(second) != len(names) or not all(map(math.isfinite, second)):
            alone = self.alone.read(output)
            if not alone.name:
                return alone
            return replace(alone, text=f"{alone.text} {LANGUAGE_MODEL_ALONE}", missing=_MISSING)
        if len(output.logits) != len(names) or not math.isfinite(max(output.logits)):
            # It says what is wrong.
            return self.alone.read(output)
        fused = LabelLogits(self.fusion.fuse(output.logits, second))
        answer = read_labels(fused, names, self.alone.labels, self.fusion.temperature)
        if not answer.name:
            return self.alone.read(output)
        model = _top(names, output.logits, self.alone.temperature)
        encoder = _top(names, second, 1.0)
        return replace(answer, text=f"{answer.text} (language model {model}, encoder {encoder})")

    def _by_encoder(self, logits: Sequence[float], enough: Enough) -> Answer:
        last = len(logits) - 1
        by_encoder = LabelLogits(
            tuple(
                enough.factor * logit + (enough.other_bias if place == last else 0.0)
                for place, logit in enumerate(logits)
            )
        )
        answer = read_labels(by_encoder, self.alone.names, self.alone.labels, 1.0)
        return replace(answer, text=f"{answer.text} {ENCODER_ALONE}") if answer.name else answer


def with_second_opinion(
    compiled: CompiledPrompt,
    policy: Policy,
    texts: EncoderTexts,
    fusion: Fusion,
    enough: Enough | None = None,
) -> CompiledPrompt:
    """`compiled` with an encoder beside it; as it is where its answers have no logits to fuse."""
    if not isinstance(compiled, CompactPrompt):
        return compiled
    routes = tuple(texts.route(route.name, route.description) for route in policy.routes)
    return FusedPrompt(compiled, routes, fusion, enough, texts)


def _log_softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    normal = top + math.log(math.fsum(math.exp(logit - top) for logit in logits))
    return [logit - normal for logit in logits]


def _top(names: Sequence[str], logits: Sequence[float], temperature: float) -> str:
    """The first choice alone, without an order of the others."""
    probabilities = softmax(logits, temperature)
    best = max(range(len(names)), key=probabilities.__getitem__)
    return f"{names[best]} {probabilities[best]:.2f}"
