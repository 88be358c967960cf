"""The second opinion in PyTorch: a BERT whose states of request and routes are compared.

Parameters have the names of the base's file, those of `sidecar.engines.encoder` beside them. What
is computed is what the CPU model computes (its `second_opinion.py` describes it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from router_training.checkpoint import load_weights, read_checkpoint
from sidecar.engines.delta import Delta
from sidecar.engines.encoder import ADDED, EncoderArchitecture, EncoderSource, open_encoder

FloatArray = NDArray[np.float32]

Text = tuple[Sequence[int], Sequence[int]]
"""Ids and types."""

# Texts of one group differ little in length, so that little is padded.
_LENGTH_RATIO = 1.15
_LENGTH_SLACK = 1


class SecondOpinionModel(nn.Module):
    """Logits of routes and `other` for requests."""

    def __init__(self, architecture: EncoderArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.embeddings = _Embeddings(architecture)
        self.encoder = nn.Module()
        layers = (_Layer(architecture) for _ in range(architecture.layers))
        self.encoder.layer = nn.ModuleList(layers)
        self.second_opinion = _Heads(architecture.hidden_size)

    def forward(self, requests: Sequence[Text], routes: Sequence[Text]) -> Tensor:
        """[requests, routes + 1]"""
        states = self.states([*requests, *routes])
        asked, asked_there = _stacked(states[: len(requests)])
        offered, offered_there = _stacked(states[len(requests) :])
        asked_mean, offered_mean = _mean(asked, asked_there), _mean(offered, offered_there)
        heads = self.second_opinion
        by_mean = F.normalize(asked_mean, dim=-1) @ F.normalize(offered_mean, dim=-1).T
        alike = _alike(asked, offered).masked_fill(~offered_there[None, None], -1.0)
        asked_weights = _weights(asked @ heads.request_gate, asked_there)
        by_request = (alike.amax(3) * asked_weights[:, :, None]).sum(1)
        nearest = alike.masked_fill(~asked_there[:, :, None, None], -1.0).amax(1)
        by_route = (nearest * _weights(offered @ heads.route_gate, offered_there)[None]).sum(2)
        scales = heads.scales
        logits = scales[0] * by_mean + scales[1] * by_request + scales[2] * by_route
        other = asked_mean @ heads.other + heads.other_bias
        return torch.cat([logits, other[:, None]], 1)

    def states(self, texts: Sequence[Text]) -> list[Tensor]:
        """[tokens, hidden] of each text, of the last layer."""
        groups = _of_like_length(texts)
        device = self.second_opinion.scales.device
        padded = [_padded([texts[index] for index in group], device) for group in groups]
        hidden = self.hidden(padded)
        there = [tokens for _, _, tokens in padded]
        states: list[Tensor] = [torch.empty(0)] * len(texts)
        for group, rows in zip(groups, _unstacked(hidden, there), strict=True):
            for row, index in enumerate(group):
                states[index] = rows[row, : len(texts[index][0])]
        return states

    def hidden(self, groups: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """States of the last layer of all groups' tokens, padding included: [tokens, hidden].

        Args:
            groups: ids, types, and where there is a token; [texts, longest] each.
        """
        hidden = torch.cat([self.embeddings(ids, types).flatten(0, 1) for ids, types, _ in groups])
        there = [tokens for _, _, tokens in groups]
        masks = [_mask(tokens, hidden.dtype) for tokens in there]
        for layer in self.encoder.layer:
            hidden = layer(hidden, there, masks)
        return hidden

    def head_parameters(self) -> list[nn.Parameter]:
        """What the base has not."""
        return list(self.second_opinion.parameters())

    def body_parameters(self) -> list[nn.Parameter]:
        """What of the base is trained: all but the words."""
        heads = {id(parameter) for parameter in self.head_parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in heads]


def untrained(base: Path) -> tuple[SecondOpinionModel, EncoderSource]:
    """A model that begins with the weights of the encoder in the folder `base`. Raises
    EngineError."""
    source = open_encoder(base)
    model = SecondOpinionModel(source.architecture)
    weights = base_weights(source)
    tensors = {name: torch.from_numpy(values) for name, values in weights.items()}
    model.load_state_dict(tensors, strict=False)
    return model, source


def base_weights(source: EncoderSource) -> dict[str, FloatArray]:
    """What the source has of a model's parameters, float32."""
    names = (name for name in source.architecture.shapes() if name not in ADDED)
    return {name: np.array(source.weights.tensor(name), np.float32) for name in names}


def trained_weights(checkpoint: Path) -> dict[str, Tensor]:
    """What a run ended with: the running average, where it kept one. Raises OSError, InputError."""
    state = read_checkpoint(checkpoint)
    weights: dict[str, Tensor] = state.get("averaged", state["model"])
    return weights


def blended(
    untuned: Mapping[str, FloatArray], tuned: Mapping[str, FloatArray], share: float
) -> dict[str, FloatArray]:
    """`untuned` with a `share` of the change that training made: less of it keeps more of what the
    base knows of what training has not shown it (WiSE-FT, arXiv 2109.01903)."""
    return {name: old + np.float32(share) * (tuned[name] - old) for name, old in untuned.items()}


def load_second_opinion(
    base: Path, delta: Path | None, checkpoint: Path | None
) -> SecondOpinionModel:
    """The encoder in the folder `base` with an adapter's change merged into it as the sidecar
    merges it, or with the weights of a `checkpoint.pt`.

    Raises EngineError for a delta of another base, InputError for a checkpoint of another model.
    """
    model, source = untrained(base)
    if delta:
        change = Delta(delta)
        weights = source.changed_by(change).weights
        state = {
            name: change.vector(name) if name in ADDED else np.array(weights.tensor(name))
            for name in source.architecture.shapes()
        }
        model.load_state_dict({n: torch.from_numpy(v.astype(np.float32)) for n, v in state.items()})
    if checkpoint:
        load_weights(model, trained_weights(checkpoint), checkpoint)
    model.eval()
    return model


class _Embeddings(nn.Module):
    def __init__(self, a: EncoderArchitecture) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(a.vocab_size, a.hidden_size)
        self.word_embeddings.weight.requires_grad_(False)
        self.position_embeddings = nn.Embedding(a.positions, a.hidden_size)
        self.token_type_embeddings = nn.Embedding(a.types, a.hidden_size)
        self.LayerNorm = nn.LayerNorm(a.hidden_size, eps=a.norm_eps)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        positions = self.position_embeddings.weight[: ids.shape[1]]
        summed = self.word_embeddings(ids) + positions + self.token_type_embeddings(types)
        normed: Tensor = self.LayerNorm(summed)
        return normed


class _Layer(nn.Module):
    def __init__(self, a: EncoderArchitecture) -> None:
        super().__init__()
        hidden, inner = a.hidden_size, a.intermediate_size
        self._heads = a.heads
        self.attention = nn.Module()
        self.attention.self = nn.Module()
        for name in ("query", "key", "value"):
            setattr(self.attention.self, name, nn.Linear(hidden, hidden))
        self.attention.output = _output(hidden, hidden, a.norm_eps)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(hidden, inner)
        self.output = _output(inner, hidden, a.norm_eps)

    def forward(
        self, hidden: Tensor, there: Sequence[Tensor], masks: Sequence[Tensor | None]
    ) -> Tensor:
        """The tokens of all texts at once, [tokens, hidden], since larger products are faster; only
        attention goes group by group.

        Args:
            there: of each group, where it has a token: [texts, longest].
            masks: of each group, for attention; None where nothing is padded.
        """
        own = self.attention.self
        projected = (own.query(hidden), own.key(hidden), own.value(hidden))
        joined = torch.cat(
            [
                self._attended(query, key, value, mask)
                for mask, query, key, value in zip(
                    masks, *(_unstacked(one, there) for one in projected), strict=True
                )
            ]
        )
        output = self.attention.output
        hidden = output.LayerNorm(hidden + output.dense(joined))
        inner = F.gelu(self.intermediate.dense(hidden))
        normed: Tensor = self.output.LayerNorm(hidden + self.output.dense(inner))
        return normed

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        rows, length, _ = query.shape
        query, key, value = (
            one.view(rows, length, self._heads, -1).transpose(1, 2) for one in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return attended.transpose(1, 2).flatten(2).flatten(0, 1)


def _output(inner: int, hidden: int, eps: float) -> nn.Module:
    module = nn.Module()
    module.dense = nn.Linear(inner, hidden)
    module.LayerNorm = nn.LayerNorm(hidden, eps=eps)
    return module


class _Heads(nn.Module):
    """Begins as a mixture of the three similarities that a trained sentence encoder is good for."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.tensor([15.0, 8.0, 8.0]))
        self.request_gate = nn.Parameter(torch.zeros(hidden))
        self.route_gate = nn.Parameter(torch.zeros(hidden))
        self.other = nn.Parameter(torch.zeros(hidden))
        self.other_bias = nn.Parameter(torch.tensor([8.0]))


def _of_like_length(texts: Sequence[Text]) -> list[list[int]]:
    groups: list[list[int]] = []
    shortest = 0
    for index in sorted(range(len(texts)), key=lambda i: len(texts[i][0])):
        length = len(texts[index][0])
        if not groups or length > _LENGTH_RATIO * shortest + _LENGTH_SLACK:
            groups.append([])
            shortest = length
        groups[-1].append(index)
    return groups


def _padded(texts: Sequence[Text], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, types, and where there is a token: [texts, longest] each."""
    ids, there = _stacked([torch.tensor(ids) for ids, _ in texts])
    types, _ = _stacked([torch.tensor(types) for _, types in texts])
    return ids.to(device), types.to(device), there.to(device)


def _mask(there: Tensor, dtype: torch.dtype) -> Tensor | None:
    """For attention, [texts, 1, 1, longest]; on an accelerator never None, since that would have to
    wait for it, and made of numbers, since kernels turn one of bools into them in every layer."""
    seen = there[:, None, None, :]
    if there.device.type == "cpu":
        return None if there.all() else seen
    if torch.is_autocast_enabled(there.device.type):
        dtype = torch.get_autocast_dtype(there.device.type)
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf"))


def _stacked(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[rows, longest, ...] and where it is no filler: [rows, longest]."""
    lengths = [len(row) for row in rows]
    device = rows[0].device
    places = torch.arange(max(lengths), device=device)
    there = places[None] < torch.tensor(lengths, device=device)[:, None]
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True), there


def _unstacked(hidden: Tensor, there: Sequence[Tensor]) -> list[Tensor]:
    """[tokens, hidden] as [texts, longest, hidden] of each group."""
    pieces = hidden.split([tokens.numel() for tokens in there])
    return [piece.view(*tokens.shape, -1) for piece, tokens in zip(pieces, there, strict=True)]


def _mean(states: Tensor, there: Tensor) -> Tensor:
    return (states * there[..., None]).sum(1) / there.sum(1, keepdim=True)


def _weights(gates: Tensor, there: Tensor) -> Tensor:
    return gates.masked_fill(~there, -1e9).softmax(1)


def _alike(asked: Tensor, offered: Tensor) -> Tensor:
    """Cosine of every two tokens: [requests, tokens, routes, tokens]."""
    one, two = F.normalize(asked, dim=-1), F.normalize(offered, dim=-1)
    products = one.flatten(0, 1) @ two.flatten(0, 1).T
    return products.view(*asked.shape[:2], *offered.shape[:2])
