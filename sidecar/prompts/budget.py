"""Which messages are shown when not all fit, and how a long one is cut.

Sizes are real tokens of the routing model. A message can be megabytes long, so its ends are taken
by characters before anything is tokenized: the work is bounded by the budget, not by the message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import CompiledPrompt, Tokenizer
from sidecar.core.policy import ModelList, Policy, Route, WeightedModel

GAP = "\n…\n"
"""Stands for what was cut out of the middle of a message."""

MIN_CONVERSATION_TOKENS = 64
"""A policy that leaves less for the conversation is too large."""

# More than prose (4 to 5) and code have. A text with more, such as long runs of blanks, which merge
# into few tokens, is cut although it might just have fitted.
_CHARS_PER_TOKEN = 8

_SAMPLE_CHARS, _SAMPLE_MARGIN = 500, 1.25

_ROUTE_FRAME = 64
"""Bytes around a route's name and description: its label, the keys of a JSON object. More than any
format has."""

_SEAM_TOKENS = 32
"""Where texts are joined, a word can take a few tokens more than it takes alone."""

Encode = Callable[[str], list[int]]


def by_importance(messages: Sequence[Message]) -> list[int]:
    """Indices of `messages`, the one to keep longest first.

    The newest user message holds the intent to route. What the assistant said after it comes next,
    then everything older, newest first. Without a user message the newest one takes its place.
    """
    newest = len(messages) - 1
    request = next((i for i in range(newest, -1, -1) if messages[i].role is Role.USER), newest)
    return [request, *range(newest, request, -1), *range(request - 1, -1, -1)]


def may_fit(chars: int, room: int) -> bool:
    """False if a text of so many characters is not worth tokenizing: `room` tokens are too few."""
    return chars <= _CHARS_PER_TOKEN * room


def cut_to_fit(tokenizer: Tokenizer, text: str, room: int, encode: Encode) -> list[int]:
    """Ids of `text` with its middle cut out: the head takes three fifths of what is left.

    Args:
        room: the most tokens to return; not less than `encode(GAP)` has.
        encode: ids of a text in its place in the prompt, with the escapes and the frame of a
            message.
    """
    head, tail = _ends(tokenizer, text, room)
    # Most of it would be tokenized in vain if the frame and the gap were not taken off at once.
    budget = min(max(0, room - len(encode(GAP))), len(head) + len(tail))
    while True:
        first = min(len(head), budget - min(len(tail), budget * 2 // 5))
        last = min(len(tail), budget - first)
        ids = encode(_around_gap(tokenizer, head[:first], tail[len(tail) - last :]))
        if len(ids) <= room or budget == 0:
            return ids
        # In its place a text can take several times the tokens it takes alone (JSON escapes).
        budget = min(budget - 1, budget * room // len(ids))


def _ends(tokenizer: Tokenizer, text: str, room: int) -> tuple[list[int], list[int]]:
    """Tokens of both ends of `text`: three fifths and two fifths of `room` or more, where that is
    not more than is read. How many characters that takes, a sample tells."""
    most = min(len(text), _CHARS_PER_TOKEN * room)
    chars = min(_SAMPLE_CHARS, most // 16)
    sampled = len(tokenizer.encode(text[:chars]) + tokenizer.encode(text[len(text) - chars :]))
    readable = min(most, int(_SAMPLE_MARGIN * room * 2 * chars / sampled)) if sampled else most
    while True:
        ahead = readable * 3 // 5
        head = tokenizer.encode(text[:ahead])
        tail = tokenizer.encode(text[len(text) - (readable - ahead) :])
        if readable == most or (len(head) >= room * 3 // 5 and len(tail) >= room * 2 // 5):
            return head, tail
        readable = min(most, 2 * readable + 1)


def _around_gap(tokenizer: Tokenizer, head: Sequence[int], tail: Sequence[int]) -> str:
    # A cut inside a character leaves bytes that decode to U+FFFD.
    return tokenizer.decode(head).rstrip("\ufffd") + GAP + tokenizer.decode(tail).lstrip("\ufffd")


def check_room(
    policy: Policy, prompt_format: str, max_tokens: int, static: int, closing: int
) -> int:
    """Tokens left for the conversation; a policy that leaves no useful room is refused.

    Args:
        static: tokens before the conversation, the routes included.
        closing: tokens after it.

    Raises:
        SidecarError: POLICY_TOO_LARGE, with the numbers.
    """
    left = max_tokens - static - closing
    if left >= MIN_CONVERSATION_TOKENS:
        return left
    raise SidecarError(
        ErrorCode.POLICY_TOO_LARGE,
        f"policy {policy.name!r} is too large for the routing model: with its "
        f"{len(policy.routes)} routes the prompt format {prompt_format} takes {static + closing} "
        f"of {max_tokens} tokens and leaves {max(left, 0)} for the conversation, which needs "
        f"{MIN_CONVERSATION_TOKENS}: shorten descriptions, remove routes, or use a routing model "
        f"with a longer context",
    )


def fixed_tokens(compile_prompt: Callable[[Policy], CompiledPrompt]) -> int:
    """What a prompt takes beside its routes, or a little more: all that the smallest one takes.
    Raises SidecarError as `compile_prompt` does."""
    models = ModelList((WeightedModel("any"),))
    smallest = compile_prompt(Policy("smallest", (Route("a", "b", models),), models))
    prompt = smallest.render(Conversation((Message(Role.USER, "c"),)))
    return len(prompt.prefix_ids) + len(prompt.suffix_ids)


def _json_length(text: str) -> int:
    """Of `json.dumps(text)`."""
    if text.isascii() and text.isprintable():
        return len(text) + text.count('"') + text.count("\\") + 2
    return len(json.dumps(text))


def surely_fits(policy: Policy, fixed: int, max_tokens: int) -> bool:
    """True only if `check_room` would not refuse the policy; known without tokenizing it.

    Tokenizers of the models here take at least one byte for a token, and no format writes a text
    in more bytes than JSON with its non-ASCII characters escaped.

    Args:
        fixed: what the prompt takes beside the routes and the conversation.
    """
    # All at once, with two blanks in the place of each one's quotes.
    texts = "".join([f"{route.name}  {route.description}  " for route in policy.routes])
    # A `</` may be escaped as well.
    routes = _json_length(texts) + texts.count("</")
    most = fixed + _SEAM_TOKENS + routes + _ROUTE_FRAME * len(policy.routes)
    return max_tokens - most >= MIN_CONVERSATION_TOKENS
