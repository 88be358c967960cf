"""`compact-v1`: the format of the sidecar's own routing model.

The long static part (instructions, routes) comes first and its KV is shared by all requests of a
policy; each route has a one-token word as its label and the answer is that token. The layout is in
`docs/prompt-formats.md`. The model is trained on these exact bytes: a change of wording is a new
format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sidecar.core.conversation import Conversation, Message
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import Answer, LabelAnswer, ModelOutput, Prompt, RouteTexts, Tokenizer
from sidecar.core.policy import OTHER, Policy
from sidecar.prompts.answers import read_labels
from sidecar.prompts.budget import (
    by_importance,
    check_room,
    cut_to_fit,
    may_fit,
)
from sidecar.prompts.chat import chat_tokens
from sidecar.prompts.labels import assign_labels, label_token

_INSTRUCTIONS = (
    "system\nChoose the route for the user's latest request. Answer with its word.\nRoutes:"
)
_OTHER_LINE = f"\n- {OTHER}: no route fits, or the request is finished"
_ASK = "assistant\nRoute:"


@dataclass(frozen=True, slots=True)
class CompactFormat:
    """The prompt format `compact-v1`."""

    name: str = "compact-v1"

    def compile(
        self,
        policy: Policy,
        tokenizer: Tokenizer,
        max_tokens: int,
        temperature: float = 1.0,
        max_conversation_tokens: int | None = None,
    ) -> CompactPrompt:
        """See `core.model.PromptFormat`.

        Raises:
            SidecarError: POLICY_TOO_LARGE if fewer than 64 tokens are left for the conversation;
                UNSUPPORTED if the tokenizer lacks the ChatML tokens or one-token words.
        """
        start, end = chat_tokens(self.name, tokenizer)
        labels = assign_labels(policy, tokenizer)
        words = (*labels.values(), OTHER)
        tokens = tuple(label_token(word, tokenizer) for word in words)
        if tokens[-1] is None:
            raise SidecarError(
                ErrorCode.UNSUPPORTED,
                f"prompt format {self.name} needs a tokenizer in which ' {OTHER}' is one token",
            )
        lines = "".join(
            f"\n- {labels[route.name]} ({_one_line(route.name)}): {_one_line(route.description)}"
            for route in policy.routes
        )
        prefix = (start, *tokenizer.encode(_INSTRUCTIONS + lines + _OTHER_LINE), end)
        newline = tokenizer.encode("\n")
        closing = (*newline, start, *tokenizer.encode(_ASK))
        room = check_room(policy, self.name, max_tokens, static=len(prefix), closing=0)
        room -= len(closing)
        return CompactPrompt(
            prefix_ids=prefix,
            answer_form=LabelAnswer(tuple(token for token in tokens if token is not None)),
            names=(*labels, OTHER),
            labels=words,
            temperature=temperature,
            _tokenizer=tokenizer,
            _room=room if max_conversation_tokens is None else min(room, max_conversation_tokens),
            _opening=(*newline, start),
            _end=end,
            _closing=closing,
        )


@dataclass(frozen=True, slots=True)
class CompactPrompt:
    """A policy compiled by `compact-v1`; implements `core.model.CompiledPrompt`.

    Args:
        names: route names in declared order, then `other`.
        labels: their labels, in the same order.
    """

    prefix_ids: tuple[int, ...]
    answer_form: LabelAnswer
    names: tuple[str, ...]
    labels: tuple[str, ...]
    temperature: float
    _tokenizer: Tokenizer = field(repr=False)
    _room: int
    _opening: tuple[int, ...]
    _end: int
    _closing: tuple[int, ...]
    route_texts: RouteTexts = ()

    def render(self, conversation: Conversation) -> Prompt:
        messages = conversation.shown_to_router()
        request, *rest = by_importance(messages)
        room = self._room
        whole = self._whole(messages[request], room)
        shown = {request: whole if whole is not None else self._cut(messages[request], room)}
        room -= len(shown[request])
        for index in rest if whole is not None else ():
            turn = self._whole(messages[index], room)
            if turn is None:
                break
            shown[index] = turn
            room -= len(turn)
        suffix = [token for index in sorted(shown) for token in shown[index]]
        return Prompt(
            prefix_ids=self.prefix_ids,
            suffix_ids=(*suffix, *self._closing),
            truncated=whole is None or len(shown) < len(messages),
        )

    def read(self, output: ModelOutput) -> Answer:
        return read_labels(output, self.names, self.labels, self.temperature)

    def _whole(self, message: Message, room: int) -> Sequence[int] | None:
        """Ids of the turn; None if they are more than `room`."""
        if not may_fit(len(message.text), room):
            return None
        turn = self._turn(message, message.text)
        return turn if len(turn) <= room else None

    def _cut(self, message: Message, room: int) -> Sequence[int]:
        return cut_to_fit(
            self._tokenizer, message.text, room, lambda text: self._turn(message, text)
        )

    def _turn(self, message: Message, text: str) -> list[int]:
        ids = self._tokenizer.encode(f"{message.role.value}\n{text}")
        return [*self._opening, *ids, self._end]


def _one_line(text: str) -> str:
    return " ".join(text.split())
