"""Three forms that a router's answer can take, and the probability of every candidate in each.

`word` is a one-token word per route (`compact-v1`), `letter` a letter per route in order, `name`
the route's own name. Answers are a token tree: a candidate has the product, over the nodes where
answers part on its way, of the softmax over the children of the node. So probabilities are exact,
they sum to one, and an answer of one token is a tree of one node.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router_training.batched import apart_by_length, hidden_states, padded
from router_training.cases import OTHER, Draw, RouteText
from router_training.encoding import common_prefix, conversation_of, policy_of
from router_training.llama import Llama
from router_training.packing import Pack, pack_prompts
from sidecar.core.errors import SidecarError
from sidecar.core.model import LabelAnswer, Tokenizer
from sidecar.prompts.chat import chat_tokens
from sidecar.prompts.compact import CompactFormat, CompactPrompt
from sidecar.prompts.labels import label_token

Answer = Literal["word", "name", "letter"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)

Ids = tuple[int, ...]

_OTHER_LINE = f"\n- {OTHER}: no route fits, or the request is finished"


@dataclass(frozen=True, slots=True)
class Parting:
    """A node of the answers' token tree with more than one child.

    Args:
        path: tokens of the answer so far.
        children: token of each child.
        below: the candidates under each child.
    """

    path: Ids
    children: Ids
    below: tuple[tuple[int, ...], ...]

    @property
    def candidates(self) -> list[int]:
        return [candidate for group in self.below for candidate in group]


def partings(answers: Sequence[Ids]) -> list[Parting]:
    """Where the token sequences of `answers` part. A node with one child costs nothing.

    Raises ValueError if one answer is another or begins it.
    """
    found = []
    waiting: list[tuple[Ids, list[int]]] = [((), list(range(len(answers))))]
    while waiting:
        path, members = waiting.pop()
        children: dict[int, list[int]] = {}
        for member in members:
            if len(answers[member]) == len(path):
                raise ValueError(f"answer {member} is another or begins it: {answers[member]}")
            children.setdefault(answers[member][len(path)], []).append(member)
        if len(children) > 1:
            below = tuple(tuple(group) for group in children.values())
            found.append(Parting(path, tuple(children), below))
        waiting += [((*path, token), group) for token, group in children.items() if group[1:]]
    return found


def letters(tokenizer: Tokenizer) -> Iterator[str]:
    """`A` to `Z`, then `AA` and on: those that are one token after a blank."""
    yield from _letters(tokenizer)  # type: ignore[arg-type]


@lru_cache(maxsize=4)
def _letters(tokenizer: Tokenizer) -> tuple[str, ...]:
    capitals = string.ascii_uppercase
    marks = [*capitals, *("".join(pair) for pair in product(capitals, repeat=2))]
    return tuple(mark for mark in marks if label_token(mark, tokenizer) is not None)


@dataclass(frozen=True, slots=True)
class Prefix:
    """What all requests over a route list share: the prompt's first part, and the answers."""

    ids: Ids
    answers: tuple[Ids, ...]


def prefix_of(
    answer: Answer, routes: Sequence[RouteText], compiled: CompactPrompt, tokenizer: Tokenizer
) -> Prefix | None:
    """The prefix for one form of answer; None if the vocabulary has too few letters.

    Args:
        compiled: the routes in `compact-v1`.
    """
    if answer == "word":
        form = compiled.answer_form
        assert isinstance(form, LabelAnswer)
        return Prefix(compiled.prefix_ids, tuple((token,) for token in form.token_ids))
    start, end = chat_tokens(f"of {answer} answers", tokenizer)
    names = [_one_line(route.name) for route in routes]
    if answer == "name":
        marks, shown = names, names
        closing: Ids = (end,)
    else:
        marks = [mark for mark, _ in zip(letters(tokenizer), names, strict=False)]
        if len(marks) < len(names):
            return None
        shown = [f"{mark} ({name})" for mark, name in zip(marks, names, strict=True)]
        closing = ()
    lines = "".join(
        f"\n- {mark}: {_one_line(route.description)}"
        for mark, route in zip(shown, routes, strict=True)
    )
    text = (
        f"system\nChoose the route for the user's latest request. Answer with its {answer}."
        f"\nRoutes:{lines}{_OTHER_LINE}"
    )
    answers = tuple((*tokenizer.encode(f" {mark}"), *closing) for mark in (*marks, OTHER))
    return Prefix((start, *tokenizer.encode(text), end), answers)


@dataclass(frozen=True, slots=True)
class EncodedAnswers:
    """One pack, whose prompts end where answers part, with the trees of its requests' answers.

    Args:
        names: route names and `other`.
        edge_node, edge_column, edge_token: int64 [edges]: of each child of a node the node's place
            in `pack.read_at`, its own among the node's children, its token.
        step_edge, step_request, step_candidate: int64 [steps]: the edges on the way to each
            candidate.
        whole: bool [requests, candidates], True where all nodes on the way are in the pack.
        right: bool [requests, candidates].
    """

    family: str
    pack: Pack
    names: tuple[str, ...]
    edge_node: NDArray[np.int64]
    edge_column: NDArray[np.int64]
    edge_token: NDArray[np.int64]
    step_edge: NDArray[np.int64]
    step_request: NDArray[np.int64]
    step_candidate: NDArray[np.int64]
    whole: NDArray[np.bool_]
    right: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AnswerEncoder:
    """Args:
    every: all nodes are in the pack, so that all candidates have a probability; otherwise those
        on the way to the right answers, which is what a loss takes.
    max_prompt, max_pack: as in `encoding.Encoder`; tokens of answers count.
    """

    tokenizer: Tokenizer
    answer: Answer
    every: bool = False
    max_prompt: int = 2048
    max_pack: int = 704

    @property
    def limit(self) -> str:
        return (
            f"the routes leave no room for a conversation in {self.max_prompt} tokens, or have too "
            "few names apart: shorten descriptions, remove routes"
        )

    def encode(self, draw: Draw) -> EncodedAnswers | None:
        """None if the routes leave no room for a conversation, or have too few names apart.

        Whatever the form of answer, conversations are cut as in `compact-v1`, whose prefix is the
        longest of the three.
        """
        try:
            compiled = CompactFormat().compile(
                policy_of(draw.routes), self.tokenizer, self.max_prompt
            )
            prefix = prefix_of(self.answer, draw.routes, compiled, self.tokenizer)
            nodes = partings(prefix.answers) if prefix else []
        except (SidecarError, ValueError):
            return None
        if prefix is None:
            return None
        prompt = replace(compiled, prefix_ids=prefix.ids)
        names = (*(route.name for route in draw.routes), OTHER)
        asked: list[_Asked] = []
        length = len(prefix.ids)
        for request in draw.requests:
            suffix = prompt.render(conversation_of(request)).suffix_ids
            right = np.array([name in request.right for name in names])
            wanted = frozenset(np.flatnonzero(right).tolist())
            read = [node for node in nodes if self.every or not wanted.isdisjoint(node.candidates)]
            answer_tokens = {n.path[:end] for n in read for end in range(1, len(n.path) + 1)}
            length += len(suffix) - max(
                (common_prefix(suffix, one.suffix) for one in asked), default=0
            )
            length += len(answer_tokens)
            if asked and length > self.max_pack:
                break
            whole = _times(read, len(names)) == _times(nodes, len(names))
            asked.append(_Asked(suffix, read, whole, right))
        return _encoded(draw.family, prefix.ids, names, asked)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request and the nodes to read for it."""

    suffix: Ids
    read: list[Parting]
    whole: NDArray[np.bool_]
    right: NDArray[np.bool_]


def _times(nodes: Sequence[Parting], candidates: int) -> NDArray[np.int64]:
    """How many of `nodes` are on the way to each candidate."""
    passed = [candidate for node in nodes for candidate in node.candidates]
    return np.bincount(passed, minlength=candidates)


def _encoded(
    family: str, prefix: Ids, names: tuple[str, ...], asked: Sequence[_Asked]
) -> EncodedAnswers:
    prompts: list[Ids] = []
    edges: list[tuple[int, int, int]] = []
    steps: list[tuple[int, int, int]] = []
    for row, one in enumerate(asked):
        for node in one.read:
            for column, (token, below) in enumerate(zip(node.children, node.below, strict=True)):
                steps += [(len(edges), row, candidate) for candidate in below]
                edges.append((len(prompts), column, token))
            prompts.append((*prefix, *one.suffix, *node.path))
    node, column, token = np.array(edges, np.int64).T
    edge, request, candidate = np.array(steps, np.int64).T
    return EncodedAnswers(
        family=family,
        pack=pack_prompts(prompts),
        names=names,
        edge_node=node,
        edge_column=column,
        edge_token=token,
        step_edge=edge,
        step_request=request,
        step_candidate=candidate,
        whole=np.stack([one.whole for one in asked]),
        right=np.stack([one.right for one in asked]),
    )


@dataclass(frozen=True, slots=True)
class AnswerBatch:
    """Packs of one step, padded; their nodes, edges and requests one after another.

    Args:
        ids, positions, sees, read_at, tokens: as in `batched.Batch`.
        edge_node, edge_column, edge_token, step_edge: as in `EncodedAnswers`.
        step_cell: int64 [steps], into `whole` flattened.
        whole, right: bool [requests, candidates].
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    sees: NDArray[np.uint8]
    read_at: NDArray[np.int64]
    edge_node: NDArray[np.int64]
    edge_column: NDArray[np.int64]
    edge_token: NDArray[np.int64]
    step_edge: NDArray[np.int64]
    step_cell: NDArray[np.int64]
    whole: NDArray[np.bool_]
    right: NDArray[np.bool_]
    tokens: int


def collate_answers(draws: Sequence[EncodedAnswers]) -> AnswerBatch:
    packs = padded([draw.pack for draw in draws])
    width = max(len(draw.names) for draw in draws)
    requests = sum(len(draw.right) for draw in draws)
    whole = np.zeros((requests, width), np.bool_)
    right = np.zeros((requests, width), np.bool_)
    nodes, edges, cells = [], [], []
    row = node = edge = 0
    for draw in draws:
        asked, names = len(draw.right), len(draw.names)
        whole[row : row + asked, :names] = draw.whole
        right[row : row + asked, :names] = draw.right
        nodes.append(draw.edge_node + node)
        edges.append(draw.step_edge + edge)
        cells.append((draw.step_request + row) * width + draw.step_candidate)
        row, node, edge = row + asked, node + len(draw.pack.read_at), edge + len(nodes[-1])
    return AnswerBatch(
        ids=packs.ids,
        positions=packs.positions,
        sees=packs.sees,
        read_at=packs.read_at,
        edge_node=np.concatenate(nodes),
        edge_column=np.concatenate([draw.edge_column for draw in draws]),
        edge_token=np.concatenate([draw.edge_token for draw in draws]),
        step_edge=np.concatenate(edges),
        step_cell=np.concatenate(cells),
        whole=whole,
        right=right,
        tokens=packs.tokens,
    )


def answers_by_length(draws: Sequence[EncodedAnswers]) -> list[AnswerBatch]:
    """The draws of one step."""
    return [collate_answers(group) for group in apart_by_length(draws)]


def answer_log_probs(model: Llama, batch: AnswerBatch, device: torch.device) -> Tensor:
    """Natural-log probability of every candidate, -inf where it is not `whole`:
    [requests, candidates]."""
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        hidden = hidden_states(model, batch, device)
    node, column = _on(batch.edge_node, device), _on(batch.edge_column, device)
    rows = model.model.embed_tokens.weight[_on(batch.edge_token, device)]
    logits = (hidden.float().index_select(0, node) * rows.float()).sum(-1)
    # A row for each node, so that its children are normalised together.
    square = (len(batch.read_at), int(batch.edge_column.max()) + 1)
    scores = logits.new_full(square, float("-inf")).index_put((node, column), logits)
    steps = scores.log_softmax(-1)[node, column].index_select(0, _on(batch.step_edge, device))
    sums = logits.new_zeros(batch.whole.size).index_add(0, _on(batch.step_cell, device), steps)
    whole = _on(batch.whole, device)
    return sums.view(whole.shape).masked_fill(~whole, float("-inf"))


def _on(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())
