"""The draws of a step at once, as an accelerator wants them: few, padded arrays.

The numbers are those of `SecondOpinionModel.forward`, which takes one draw at a time and pads
little, as a CPU wants it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from router_training.encoder_draws import EncodedTexts
from router_training.encoder_model import SecondOpinionModel, Text

_ALIGNED = 8
"""Lengths are a multiple of it: attention kernels want rows of masks aligned."""
_LENGTH_RATIO = 1.3
"""Of the lengths of two buckets: a bucket more costs some kernels a layer."""
_COMPARED = 1 << 26
"""Pairs of tokens, padding included, that are compared at once: 0.25 GiB in float32, of which a
few copies are kept for the gradients."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Texts of nearly the same length.

    Args:
        ids, types: int32 [texts, longest].
        lengths: int64 [texts].
    """

    ids: NDArray[np.int32]
    types: NDArray[np.int32]
    lengths: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Side:
    """Where the texts of some draws are in the tokens of all buckets, which follow one another.

    Args:
        starts, lengths: int64 [draws, texts], 0 where a draw has fewer.
        longest: text, in tokens.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    longest: int


@dataclass(frozen=True, slots=True)
class Compared:
    """Draws whose requests and routes are compared at once.

    Args:
        answers: int64 [answers], of each its place in draws and requests flattened.
        right: bool [answers, routes + 1], `other` last.
        weights: of the answers in the loss, float32; those of a batch add up to 1.
    """

    requests: Side
    routes: Side
    answers: NDArray[np.int64]
    right: NDArray[np.bool_]
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TextsBatch:
    """Draws of one step.

    Args:
        tokens: without padding.
    """

    buckets: list[Bucket]
    compared: list[Compared]
    decisions: int
    tokens: int


def collate_texts(draws: Sequence[EncodedTexts]) -> TextsBatch:
    """All texts in buckets, by length; draws of similar size are compared together. Every draw
    counts the same."""
    texts = [text for draw in draws for text in (*draw.requests, *draw.routes)]
    buckets, starts = _bucketed(texts)
    lengths = np.array([len(ids) for ids, _ in texts], np.int64)
    ends = np.cumsum([len(draw.requests) + len(draw.routes) for draw in draws])[:-1]
    parts = zip(draws, np.split(starts, ends), np.split(lengths, ends), strict=True)
    placed = [_Placed(draw, own_starts, own_lengths) for draw, own_starts, own_lengths in parts]
    compared = [_compared(group, len(draws)) for group in _of_like_size(placed)]
    decisions = sum(len(draw.requests) for draw in draws)
    return TextsBatch(buckets, compared, decisions, sum(draw.tokens for draw in draws))


def batch_logits(
    model: SecondOpinionModel, batch: TextsBatch, device: torch.device
) -> Iterator[tuple[Compared, Tensor]]:
    """Logits of the answers of each part, [answers, routes + 1], -inf where a draw has no route."""
    with _fast_precision(device):
        padded = [_on_device(bucket, device) for bucket in batch.buckets]
        hidden = model.hidden(padded)
    hidden = hidden.float()
    for part in batch.compared:
        asked, offered = _gathered(hidden, part.requests), _gathered(hidden, part.routes)
        logits = _logits(model, *asked, *offered).flatten(0, 1)
        yield part, logits.index_select(0, on(part.answers, device))


def batch_loss(
    model: SecondOpinionModel, batch: TextsBatch, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The loss to go down, and what is to be reported, detached: the sum of the answers' losses and
    the number of right ones, [2]. Nothing is read back from the device."""
    loss, report = torch.zeros((), device=device), torch.zeros(2, device=device)
    for part, logits in batch_logits(model, batch, device):
        right = on(part.right, device)
        losses = -logits.log_softmax(-1).masked_fill(~right, float("-inf")).logsumexp(-1)
        loss = loss + (losses * on(part.weights, device)).sum()
        hits = right.gather(1, logits.argmax(-1, keepdim=True)).sum()
        report = report + torch.stack([losses.detach().sum(), hits.float()])
    return loss, report


def on(array: NDArray[Any], device: torch.device) -> Tensor:
    """Of pinned memory, so that the copy waits for nothing that the device has still to do."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Placed:
    """A draw, and where its requests and then its routes are."""

    draw: EncodedTexts
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def side(self, routes: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        asked = len(self.draw.requests)
        part = slice(asked, None) if routes else slice(asked)
        return self.starts[part], self.lengths[part]

    @property
    def size(self) -> tuple[int, int, int, int]:
        """Requests, tokens of the longest, routes, tokens of the longest."""
        asked, offered = self.side(routes=False)[1], self.side(routes=True)[1]
        return len(asked), int(asked.max()), len(offered), int(offered.max())


def _bucketed(texts: Sequence[Text]) -> tuple[list[Bucket], NDArray[np.int64]]:
    """The buckets, and where each text begins in their tokens."""
    groups: list[list[int]] = []
    widest = 0
    # From the longest down, so that a bucket's length is known when it is begun.
    for index in sorted(range(len(texts)), key=lambda i: -len(texts[i][0])):
        width = _aligned(len(texts[index][0]))
        if not groups or width * _LENGTH_RATIO < widest:
            groups.append([])
            widest = width
        groups[-1].append(index)
    starts = np.zeros(len(texts), np.int64)
    buckets, before = [], 0
    for group in groups:
        bucket = _bucket([texts[index] for index in group])
        rows, length = bucket.ids.shape
        starts[group] = before + length * np.arange(rows)
        before += rows * length
        buckets.append(bucket)
    return buckets, starts


def _bucket(texts: Sequence[Text]) -> Bucket:
    lengths = np.array([len(ids) for ids, _ in texts], np.int64)
    width = _aligned(int(lengths.max()))
    ids, types = np.zeros((2, len(texts), width), np.int32)
    for row, (own_ids, own_types) in enumerate(texts):
        ids[row, : len(own_ids)] = own_ids
        types[row, : len(own_types)] = own_types
    return Bucket(ids, types, lengths)


def _aligned(length: int) -> int:
    return -(-length // _ALIGNED) * _ALIGNED


def _of_like_size(placed: Sequence[_Placed]) -> list[list[_Placed]]:
    groups: list[list[_Placed]] = []
    largest: tuple[int, ...] = ()
    for one in sorted(placed, key=lambda p: int(np.prod(p.size))):
        joined = tuple(max(pair) for pair in zip(largest or one.size, one.size, strict=True))
        if not groups or int(np.prod(joined)) * (len(groups[-1]) + 1) > _COMPARED:
            groups.append([])
            joined = one.size
        groups[-1].append(one)
        largest = joined
    return groups


def _compared(group: Sequence[_Placed], draws: int) -> Compared:
    requests, routes = (_side([one.side(kind) for one in group]) for kind in (False, True))
    counts = [len(one.draw.requests) for one in group]
    most, offered = requests.starts.shape[1], routes.starts.shape[1]
    right = np.zeros((sum(counts), offered + 1), np.bool_)
    row = 0
    for one, count in zip(group, counts, strict=True):
        right[row : row + count, : len(one.draw.routes)] = one.draw.right[:, :-1]
        right[row : row + count, -1] = one.draw.right[:, -1]
        row += count
    answers = np.concatenate([most * n + np.arange(count) for n, count in enumerate(counts)])
    weights = np.concatenate([np.full(count, 1 / count / draws, np.float32) for count in counts])
    return Compared(requests, routes, answers, right, weights)


def _side(sides: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> Side:
    most = max(len(starts) for starts, _ in sides)
    starts, lengths = np.zeros((2, len(sides), most), np.int64)
    for row, (own_starts, own_lengths) in enumerate(sides):
        starts[row, : len(own_starts)] = own_starts
        lengths[row, : len(own_lengths)] = own_lengths
    return Side(starts, lengths, int(lengths.max()))


def _fast_precision(device: torch.device) -> AbstractContextManager[Any]:
    stack = ExitStack()
    if device.type == "cuda":
        stack.enter_context(torch.autocast("cuda", torch.bfloat16))
        # cuDNN's kernels are planned anew for every shape, and shapes change with each step.
        kernels = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        stack.enter_context(sdpa_kernel(kernels))
    return stack


def _on_device(bucket: Bucket, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, types, and where there is a token."""
    places = torch.arange(bucket.ids.shape[1], device=device)
    there = places < on(bucket.lengths, device)[:, None]
    return on(bucket.ids, device), on(bucket.types, device), there


def _gathered(hidden: Tensor, side: Side) -> tuple[Tensor, Tensor]:
    """[draws, texts, longest, hidden] and where there is a token: [draws, texts, longest]."""
    places = torch.arange(side.longest, device=hidden.device)
    there = places < on(side.lengths, hidden.device)[..., None]
    # What is no token reads on into what follows: were it one place for all, their gradients
    # (zeros) would queue to be added there.
    at = (on(side.starts, hidden.device)[..., None] + places).clamp(max=len(hidden) - 1)
    return hidden.index_select(0, at.flatten()).view(*at.shape, -1), there


def _logits(
    model: SecondOpinionModel,
    asked: Tensor,
    asked_there: Tensor,
    offered: Tensor,
    offered_there: Tensor,
) -> Tensor:
    """[draws, requests, routes + 1]"""
    heads = model.second_opinion
    asked_mean, offered_mean = _mean(asked, asked_there), _mean(offered, offered_there)
    by_mean = F.normalize(asked_mean, dim=-1) @ F.normalize(offered_mean, dim=-1).mT
    one, two = F.normalize(asked, dim=-1), F.normalize(offered, dim=-1)
    alike = (one.flatten(1, 2) @ two.flatten(1, 2).mT).view(*one.shape[:3], *two.shape[1:3])
    alike = alike.masked_fill(~offered_there[:, None, None], -1.0)
    asked_weights = _weights(asked @ heads.request_gate, asked_there)
    by_request = (alike.amax(4) * asked_weights[..., None]).sum(2)
    nearest = alike.masked_fill(~asked_there[..., None, None], -1.0).amax(2)
    by_route = (nearest * _weights(offered @ heads.route_gate, offered_there)[:, None]).sum(3)
    scales = heads.scales
    logits = scales[0] * by_mean + scales[1] * by_request + scales[2] * by_route
    logits = logits.masked_fill(~offered_there[:, None, :, 0], float("-inf"))
    other = asked_mean @ heads.other + heads.other_bias
    return torch.cat([logits, other[..., None]], 2)


def _mean(states: Tensor, there: Tensor) -> Tensor:
    return (states * there[..., None]).sum(2) / there.sum(2, keepdim=True).clamp(min=1)


def _weights(gates: Tensor, there: Tensor) -> Tensor:
    return gates.masked_fill(~there, -1e9).softmax(2)
