"""Many packs at once, as an accelerator wants them: padded, one sequence each.

The numbers are those of `loop.candidate_log_probs`, which takes one pack at a time and wastes
nothing on padding, as a CPU wants it.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from router_training.encoding import EncodedDraw
from router_training.llama import Attention, Layer, Llama, rotary_table, rotate
from router_training.packing import Pack

_ALIGNED = 64
"""Lengths are a multiple of it: attention kernels want rows of masks aligned."""
_LONGER = 1.25
"""A pack so many times as long as the median pack of a step is padded with its like."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Packs of one step.

    Args:
        ids, positions: int64 [packs, length].
        sees: bits of bool [packs, length, length], packed along the last axis.
        read_at: int64 [answers], into packs and length flattened.
        labels: int64 [answers, candidates], 0 where there is no candidate.
        offered, right: bool [answers, candidates].
        tokens: without padding.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    sees: NDArray[np.uint8]
    read_at: NDArray[np.int64]
    labels: NDArray[np.int64]
    offered: NDArray[np.bool_]
    right: NDArray[np.bool_]
    tokens: int


class Padded(Protocol):
    """What the model reads of a batch; see `Batch`."""

    @property
    def ids(self) -> NDArray[np.int64]: ...
    @property
    def positions(self) -> NDArray[np.int64]: ...
    @property
    def sees(self) -> NDArray[np.uint8]: ...
    @property
    def read_at(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True, slots=True)
class PaddedPacks:
    """Packs side by side, padded at their ends; see `Batch`."""

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    sees: NDArray[np.uint8]
    read_at: NDArray[np.int64]
    tokens: int


def padded(packs: Sequence[Pack]) -> PaddedPacks:
    longest = max(len(pack.ids) for pack in packs)
    length = -(-longest // _ALIGNED) * _ALIGNED
    ids = np.zeros((len(packs), length), np.int64)
    positions = np.zeros((len(packs), length), np.int64)
    # Padding sees itself: a row that sees nothing has no softmax.
    sees = np.repeat(np.eye(length, dtype=np.bool_)[None], len(packs), 0)
    for index, pack in enumerate(packs):
        size = len(pack.ids)
        ids[index, :size] = pack.ids
        positions[index, :size] = pack.positions
        sees[index, :size, :size] = pack.mask
    read_at = [pack.read_at + index * length for index, pack in enumerate(packs)]
    tokens = sum(len(pack.ids) for pack in packs)
    bits = np.packbits(sees, axis=-1)
    return PaddedPacks(ids, positions, bits, np.concatenate(read_at), tokens)


def collate(draws: Sequence[EncodedDraw]) -> Batch:
    """The packs of `draws`, padded at their ends; their answers one after another."""
    packs = padded([draw.pack for draw in draws])
    candidates = max(len(draw.labels) for draw in draws)
    answers = sum(len(draw.right) for draw in draws)
    labels = np.zeros((answers, candidates), np.int64)
    offered = np.zeros((answers, candidates), np.bool_)
    right = np.zeros((answers, candidates), np.bool_)
    row = 0
    for draw in draws:
        asked, names = len(draw.right), len(draw.labels)
        labels[row : row + asked, :names] = draw.labels
        offered[row : row + asked, :names] = True
        right[row : row + asked, :names] = draw.right
        row += asked
    return Batch(
        ids=packs.ids,
        positions=packs.positions,
        sees=packs.sees,
        read_at=packs.read_at,
        labels=labels,
        offered=offered,
        right=right,
        tokens=packs.tokens,
    )


class HasPack(Protocol):
    @property
    def pack(self) -> Pack: ...


Packed = TypeVar("Packed", bound=HasPack)


def apart_by_length(draws: Sequence[Packed]) -> list[list[Packed]]:
    """The few whose packs are far longer than the others by themselves, for the others would be
    padded to their length."""
    limit = _LONGER * float(np.median([len(draw.pack.ids) for draw in draws]))
    usual = [draw for draw in draws if len(draw.pack.ids) <= limit]
    longer = [draw for draw in draws if len(draw.pack.ids) > limit]
    return [group for group in (usual, longer) if group]


def by_length(draws: Sequence[EncodedDraw]) -> list[Batch]:
    """The draws of one step."""
    return [collate(group) for group in apart_by_length(draws)]


def batch_log_probs(model: Llama, batch: Batch, device: torch.device) -> Tensor:
    """Natural-log probability of every candidate: [answers, candidates], -inf where none is."""
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        hidden = hidden_states(model, batch, device)
    rows = model.model.embed_tokens.weight[_on(batch.labels, device)].float()
    logits = torch.einsum("ah,ach->ac", hidden.float(), rows)
    return logits.masked_fill(~_on(batch.offered, device), float("-inf")).log_softmax(-1)


def hidden_states(model: Llama, batch: Padded, device: torch.device) -> Tensor:
    """After the final norm, where the batch is read: [reads, hidden]."""
    ids, positions = _on(batch.ids, device), _on(batch.positions, device)
    bits = _on(batch.sees, device)
    places = torch.arange(7, -1, -1, device=device, dtype=torch.uint8)
    seen = ((bits[..., None] >> places) & 1).flatten(2).bool()[:, None]
    x = model.model.embed_tokens(ids)
    if torch.is_autocast_enabled(device.type):
        x = x.to(torch.get_autocast_dtype(device.type))
    # Once for all layers: attention kernels turn a mask of bools into one of numbers each time.
    mask = torch.zeros(seen.shape, dtype=x.dtype, device=device)
    mask.masked_fill_(~seen, float("-inf"))
    cos, sin = rotary_table(positions.flatten(), model.shape, x.dtype)
    cos = cos.view(*positions.shape, -1)[:, None]
    sin = sin.view(*positions.shape, -1)[:, None]
    # One pack alone would be compiled for by itself.
    through = _compiled() if model.compiled and len(ids) > 1 else _through
    for layer in model.model.layers:
        x = through(layer, x, cos, sin, mask, model.dropout)
    out: Tensor = model.model.norm(x.flatten(0, 1)[_on(batch.read_at, device)])
    return out


@cache
def _compiled() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(_through, dynamic=True)
    return compiled


def _through(
    layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, dropout: float
) -> Tensor:
    attended = _attended(layer.self_attn, layer.input_layernorm(x), cos, sin, mask)
    x = x + functional.dropout(attended, dropout)
    out: Tensor = x + functional.dropout(layer.mlp(layer.post_attention_layernorm(x)), dropout)
    return out


def _attended(attention: Attention, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    packs, length, _ = x.shape
    shape = attention.shape
    q, k, v = (
        projection(x).view(packs, length, -1, shape.head_size).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    repeats = shape.heads // shape.kv_heads
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    out: Tensor = attention.o_proj(mixed.transpose(1, 2).reshape(packs, length, -1))
    return out


def _on(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


Drawn = TypeVar("Drawn")
Made = TypeVar("Made")
Drawing = TypeVar("Drawing", covariant=True)


class Draws(Protocol[Drawing]):
    def draw(self, number: int) -> Drawing: ...


_draws: Draws[Any] | None = None
"""Of this process; inherited by the processes that draw."""


class Batches(Generic[Drawn, Made]):
    """Batches of draws, made ahead by processes of their own, in order.

    To be made before the accelerator is first used: processes are forked, to have the cases without
    copying them.

    Args:
        number: of draws in a batch; batch `n` has the draws `n * number` and on.
        make: what makes a batch of draws; a function of a module, to be found by the processes.
    """

    def __init__(
        self,
        draws: Draws[Drawn],
        number: int,
        processes: int,
        make: Callable[[Sequence[Drawn]], Made],
    ) -> None:
        global _draws
        _draws = draws
        self._number = number
        self._make = make
        self._ahead = 3 * processes
        context = multiprocessing.get_context("fork")
        # Ctrl-C reaches every process of a terminal: who asks for batches ends the step first.
        self._pool = ProcessPoolExecutor(
            processes, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)
        )
        self._waiting: deque[tuple[int, Future[Made]]] = deque()
        # Forked now, not when the first batch is asked for.
        list(self._pool.map(abs, range(processes)))

    def batch(self, number: int) -> Made:
        """Numbers are asked for in rising order, without gaps."""
        first = self._waiting[-1][0] + 1 if self._waiting else number
        for ahead in range(first, number + self._ahead):
            made = self._pool.submit(_batch, self._make, ahead, self._number)
            self._waiting.append((ahead, made))
        ready, future = self._waiting.popleft()
        if ready != number:
            raise ValueError(f"batch {number} was asked for, {ready} is next")
        return future.result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _batch(make: Callable[[Sequence[Any]], Made], number: int, draws: int) -> Made:
    assert _draws is not None, "set before the processes were forked"
    return make([_draws.draw(number * draws + index) for index in range(draws)])
