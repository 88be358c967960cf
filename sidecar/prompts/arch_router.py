"""The prompts that Arch-Router-1.5B was trained and published with, byte for byte.

Two layouts are official and differ in blanks and escapes; which one the model likes better is
unpublished, so both are named formats:

* `arch-router/archgw-v1`: katanemo/archgw `crates/brightstaff/src/router/router_model_v1.rs`,
  releases 0.3.1 to 0.4.18.
* `arch-router/model-card`: the quickstart of the model's card.

The caller of the model sends the prompt as the only message, so the Qwen2.5 chat template adds its
default system message, and the model expects to see it.

Modes, by suffixes of the name:

* `+hardened` writes `</` as `<\\/` inside the JSON strings. It means the same to a JSON reader, and
  no text can close `</conversation>` or `</routes>`.
* `+skeleton` begins the assistant's turn with what every answer begins with, and has the model say
  no more than what tells the names apart. The model was trained to write that beginning itself:
  that it decides alike has not been shown.
* `+upstream-trim` first drops messages by archgw's own rule (bytes / 4, at most 2,048, routes not
  counted), to reproduce its decisions. The token budget holds all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.model import Answer, ModelOutput, Prompt, RouteTexts, TextAnswer, Tokenizer
from sidecar.core.policy import OTHER, Policy
from sidecar.prompts.answers import literal_guide, read_text
from sidecar.prompts.budget import by_importance, check_room, cut_to_fit, may_fit
from sidecar.prompts.chat import chat_tokens
from sidecar.prompts.skeleton import Skeleton, find_skeleton

UPSTREAM_TOKEN_LIMIT = 2048
_UPSTREAM_BYTES_PER_TOKEN = 4

_SYSTEM = "system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_ASK = "assistant\n"

# Longer than the JSON around the text of a message, in either layout.
_FRAME_CHARS = 40


class AnswerStyle(Enum):
    """How the model writes its answer."""

    PYTHON = "python"
    """`{'route': 'name'}`. The prompts show JSON, yet this is what the served model was seen to
    answer (archgw's production monitor and demo log)."""
    JSON = "json"
    """`{"route": "name"}`, as in the prompts."""

    def write(self, name: str) -> str:
        answer = {"route": name}
        return repr(answer) if self is AnswerStyle.PYTHON else json.dumps(answer)

    @property
    def opening(self) -> str:
        """What answers begin with, unless a name wants other quotes."""
        return self.write("").removesuffix(self.write("")[-2:])


@dataclass(frozen=True, slots=True)
class Layout:
    """The fixed parts of a prompt and how the JSON between them is written."""

    before_routes: str
    before_conversation: str
    before_closing: str
    """White space: it ends a pre-token, so what follows is tokenized once."""
    closing: str
    separators: tuple[str, str]
    ascii_only: bool

    def json(self, value: object, hardened: bool) -> str:
        text = json.dumps(value, separators=self.separators, ensure_ascii=self.ascii_only)
        return text.replace("</", "<\\/") if hardened else text

    @property
    def upstream_bytes(self) -> int:
        """Size of upstream's template, its two placeholders included."""
        parts = (self.before_routes, self.before_conversation, self.before_closing, self.closing)
        return len("".join(parts) + "{routes}{conversation}")


def _layout(blank: str, trailing: str, separators: tuple[str, str], ascii_only: bool) -> Layout:
    """Args: blank: extra lines around the JSON; trailing: blanks at the end of two lines."""
    return Layout(
        before_routes=(
            "\nYou are a helpful assistant designed to find the best suited route.\n"
            "You are provided with route description within <routes></routes> XML tags:\n"
            f"<routes>\n{blank}"
        ),
        before_conversation=f"{blank}\n</routes>\n\n<conversation>\n{blank}",
        before_closing=f"{blank}\n",
        closing=(
            "</conversation>\n\n"
            "Your task is to decide which route is best suit with user intent on the conversation "
            "in <conversation></conversation> XML tags.  Follow the instruction:\n"
            "1. If the latest intent from user is irrelevant or user intent is full filled, "
            'response with other route {"route": "other"}.\n'
            "2. You must analyze the route descriptions and find the best match route for user "
            f"latest intent.{trailing}\n"
            "3. You only response the name of the route that best matches the user's request, use "
            "the exact name in the <routes></routes>.\n\n"
            "Based on your analysis, provide your response in the following JSON formats if you "
            f'decide to match any route:\n{{"route": "route_name"}}{trailing}\n'
        ),
        separators=separators,
        ascii_only=ascii_only,
    )


ARCHGW_V1 = _layout(blank="", trailing="", separators=(",", ":"), ascii_only=False)
MODEL_CARD = _layout(blank="\n", trailing=" ", separators=(", ", ": "), ascii_only=True)


@dataclass(frozen=True, slots=True)
class ArchRouterFormat:
    """One named way to prompt Arch-Router.

    Args:
        upstream_limit: archgw's trimming rule with this limit; None: the token budget alone.
        skeleton: put the beginning of the answer into the prompt.
    """

    name: str
    layout: Layout
    hardened: bool = False
    upstream_limit: int | None = None
    answer_style: AnswerStyle = AnswerStyle.PYTHON
    skeleton: bool = False

    def compile(
        self,
        policy: Policy,
        tokenizer: Tokenizer,
        max_tokens: int,
        temperature: float = 1.0,
        max_conversation_tokens: int | None = None,
    ) -> ArchRouterPrompt:
        """See `core.model.PromptFormat`. `temperature` has no meaning for an answer in words.

        Raises:
            SidecarError: POLICY_TOO_LARGE if fewer than 64 tokens are left for the conversation;
                UNSUPPORTED if the tokenizer lacks the ChatML tokens.
        """
        start, end = chat_tokens(self.name, tokenizer)
        layout, encode = self.layout, tokenizer.encode
        routes = [{"name": route.name, "description": route.description} for route in policy.routes]
        opening = (
            f"user\n{layout.before_routes}{layout.json(routes, self.hardened)}"
            f"{layout.before_conversation}"
        )
        newline = encode("\n")
        prefix = (start, *encode(_SYSTEM), end, *newline, start, *encode(opening))
        closing = (*encode(layout.closing), end, *newline, start, *encode(_ASK))
        names = (*(route.name for route in policy.routes), OTHER)
        answers = {self.answer_style.write(name): name for name in names}
        skeleton = (
            find_skeleton(self.answer_style.opening, answers, tokenizer) if self.skeleton else None
        )
        closing += skeleton.ids if skeleton else ()
        room = check_room(policy, self.name, max_tokens, static=len(prefix), closing=len(closing))
        return ArchRouterPrompt(
            prefix_ids=prefix,
            answer_form=_answer_form(answers, skeleton),
            names=names,
            _written=MappingProxyType(
                {style.write(name): name for style in AnswerStyle for name in names}
            ),
            _format=self,
            _tokenizer=tokenizer,
            _room=room if max_conversation_tokens is None else min(room, max_conversation_tokens),
            _closing=closing,
            _skeleton=skeleton,
        )


def _answer_form(answers: Iterable[str], skeleton: Skeleton | None) -> TextAnswer:
    if skeleton is not None:
        return TextAnswer(literal_guide(list(skeleton.rests)), skeleton.max_tokens)
    guided = list(answers)
    # A guided model may spell a name in other tokens than the tokenizer would; none of them is
    # shorter than a byte.
    longest = max(len(answer.encode()) for answer in guided)
    return TextAnswer(literal_guide(guided), max_tokens=1 + longest)


@dataclass(frozen=True, slots=True)
class ArchRouterPrompt:
    """A policy compiled for Arch-Router; implements `core.model.CompiledPrompt`.

    Args:
        names: route names in declared order, then `other`.
    """

    prefix_ids: tuple[int, ...]
    answer_form: TextAnswer
    names: tuple[str, ...]
    _written: Mapping[str, str] = field(repr=False)
    _format: ArchRouterFormat
    _tokenizer: Tokenizer = field(repr=False)
    _room: int
    _closing: tuple[int, ...]
    _skeleton: Skeleton | None = None
    route_texts: RouteTexts = ()

    def render(self, conversation: Conversation) -> Prompt:
        shown = conversation.shown_to_router()
        messages: Sequence[Message] = shown
        if self._format.upstream_limit is not None:
            template = self._format.layout.upstream_bytes
            messages = upstream_trim(shown, self._format.upstream_limit, template)
        ids, complete = self._within_room(messages)
        return Prompt(
            prefix_ids=self.prefix_ids,
            suffix_ids=(*ids, *self._closing),
            truncated=not complete or len(messages) < len(shown),
        )

    def read(self, output: ModelOutput) -> Answer:
        return read_text(output, self.names, self._written, self._tokenizer, self._skeleton)

    def _within_room(self, messages: Sequence[Message]) -> tuple[list[int], bool]:
        """Ids of the conversation's JSON, and whether it holds all of `messages`."""
        if may_fit(sum(len(message.text) + _FRAME_CHARS for message in messages), self._room):
            ids = self._encode(messages)
            if len(ids) <= self._room:
                return ids, True
        order = by_importance(messages)
        kept = order[: self._affordable(messages, order)]
        while kept:
            ids = self._encode([messages[index] for index in sorted(kept)])
            if len(ids) <= self._room:
                return ids, len(kept) == len(messages)
            kept.pop()  # joined, the messages took more tokens than one by one
        request = messages[order[0]]
        ids = cut_to_fit(
            self._tokenizer,
            request.text,
            self._room,
            lambda text: self._encode([replace(request, text=text)]),
        )
        return ids, False

    def _affordable(self, messages: Sequence[Message], order: Sequence[int]) -> int:
        """How many of `order` fit, counted one by one."""
        left = self._room
        for count, index in enumerate(order):
            if not may_fit(len(messages[index].text), left):
                return count
            left -= len(self._encode([messages[index]]))
            if left < 0:
                return count
        return len(order)

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        layout = self._format.layout
        turns = [{"role": message.role.value, "content": message.text} for message in messages]
        text = layout.json(turns, self._format.hardened)
        return self._tokenizer.encode(text + layout.before_closing)


def upstream_trim(
    messages: Sequence[Message], limit: int, template_bytes: int
) -> Sequence[Message]:
    """The messages that archgw keeps.

    From the newest back, a quarter of the UTF-8 bytes of each, rounded down, is added to a quarter
    of the template's. The first message that goes over `limit` ends the walk; a user message is
    kept all the same, whole. Source: archgw `RouterModelV1::generate_request`.
    """
    count = template_bytes // _UPSTREAM_BYTES_PER_TOKEN
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        count += len(message.text.encode("utf-8", "replace")) // _UPSTREAM_BYTES_PER_TOKEN
        if count > limit:
            first = index if message.role is Role.USER else index + 1
            return messages[min(first, len(messages) - 1) :]
    return messages


def arch_router_formats() -> tuple[ArchRouterFormat, ...]:
    """Every layout in every mode. Trimming belongs to archgw; the card has no such rule. Beginning
    the answer belongs to neither, and goes with one mode of each."""
    archgw = ArchRouterFormat("arch-router/archgw-v1", ARCHGW_V1)
    card = ArchRouterFormat("arch-router/model-card", MODEL_CARD)
    plain = (
        archgw,
        replace(archgw, name=f"{archgw.name}+upstream-trim", upstream_limit=UPSTREAM_TOKEN_LIMIT),
        card,
    )
    hardened = tuple(replace(one, name=_hardened_name(one.name), hardened=True) for one in plain)
    begun = tuple(
        replace(one, name=f"{one.name}+skeleton", skeleton=True)
        for one in (*plain, *hardened)
        if one.upstream_limit is None
    )
    return (*plain, *hardened, *begun)


def _hardened_name(name: str) -> str:
    base, plus, mode = name.partition("+")
    return f"{base}+hardened{plus}{mode}"
