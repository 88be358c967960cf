"""Draws as token ids: the very prompts that the sidecar will send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_training.cases import Draw, Request, RouteText
from router_training.packing import Pack, pack_prompts
from sidecar.core.conversation import Conversation, Message, Role
from sidecar.core.errors import SidecarError
from sidecar.core.model import LabelAnswer, Tokenizer
from sidecar.core.policy import ModelList, Policy, Route, WeightedModel
from sidecar.prompts import get_format

_ANY_MODEL = ModelList((WeightedModel("any"),))


@dataclass(frozen=True, slots=True)
class EncodedDraw:
    """One pack with its answers.

    Args:
        names: route names and `other`, in the order of `labels`.
        labels: token id of each candidate, int64 [candidates].
        right: True where the candidate is a right answer, bool [requests, candidates].
    """

    family: str
    pack: Pack
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    right: NDArray[np.bool_]


def policy_of(routes: Sequence[RouteText]) -> Policy:
    return Policy(
        name="training",
        routes=tuple(Route(r.name, r.description, _ANY_MODEL) for r in routes),
        default=_ANY_MODEL,
    )


def conversation_of(request: Request) -> Conversation:
    return Conversation(tuple(Message(Role(role), text) for role, text in request.turns))


@dataclass(frozen=True, slots=True)
class Encoder:
    """Args:
    prompt_format: a format of `sidecar.prompts` with label answers.
    max_prompt: token budget of one prompt; a sidecar's is the context of its model.
    max_pack: requests are added to a pack while its prompts come to so many tokens, what they
        share counted once.
    """

    tokenizer: Tokenizer
    prompt_format: str = "compact-v1"
    max_prompt: int = 2048
    max_pack: int = 768

    @property
    def limit(self) -> str:
        return (
            f"the routes leave no room for a conversation in the {self.max_prompt} tokens that are "
            "trained on, or have no words for labels; shorten descriptions, remove routes"
        )

    def encode(self, draw: Draw) -> EncodedDraw | None:
        """None if the routes leave no room for a conversation."""
        try:
            compiled = get_format(self.prompt_format).compile(
                policy_of(draw.routes), self.tokenizer, self.max_prompt
            )
        except SidecarError:
            return None
        form = compiled.answer_form
        if not isinstance(form, LabelAnswer):
            raise ValueError(f"prompt format {self.prompt_format} does not answer with labels")
        names = (*(route.name for route in draw.routes), "other")
        suffixes: list[tuple[int, ...]] = []
        right = []
        length = len(compiled.prefix_ids)
        for request in draw.requests:
            suffix = compiled.render(conversation_of(request)).suffix_ids
            length += len(suffix) - max((common_prefix(suffix, s) for s in suffixes), default=0)
            if suffixes and length > self.max_pack:
                break
            suffixes.append(suffix)
            right.append([name in request.right for name in names])
        pack = pack_prompts([(*compiled.prefix_ids, *suffix) for suffix in suffixes])
        return EncodedDraw(
            draw.family, pack, names, np.array(form.token_ids), np.array(right, dtype=np.bool_)
        )


def common_prefix(one: Sequence[int], two: Sequence[int]) -> int:
    count = 0
    for a, b in zip(one, two, strict=False):
        if a != b:
            break
        count += 1
    return count
