"""A Llama decoder in plain PyTorch that reads packed prompts and answers at chosen positions.

Weights carry their Hugging Face names and layout (`model.layers.0.self_attn.q_proj.weight`, rotary
halves side by side), so a checkpoint is a plain `LlamaForCausalLM`. The input and output embeddings
are tied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Sizes of a Llama model; the defaults are those of SmolLM2-135M."""

    vocab_size: int = 49152
    hidden: int = 576
    intermediate: int = 1536
    layers: int = 30
    heads: int = 9
    kv_heads: int = 3
    rope_theta: float = 100_000.0
    norm_eps: float = 1e-5
    context: int = 8192

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


Sight = list[tuple[slice, Tensor, Tensor]]
"""Attention in blocks of rows: the rows, the columns any of them sees, and what is added to their
scores (0, or -inf where a row does not see a column)."""

_BLOCK_ROWS = 96


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        key_size = shape.kv_heads * shape.head_size
        self.q_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k_proj = nn.Linear(shape.hidden, key_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden, key_size, bias=False)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, sight: Sight) -> Tensor:
        length, size = x.shape[0], self.shape.head_size
        q = self.q_proj(x).view(length, self.shape.heads, size).transpose(0, 1)
        k = self.k_proj(x).view(length, self.shape.kv_heads, size).transpose(0, 1)
        v = self.v_proj(x).view(length, self.shape.kv_heads, size).transpose(0, 1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        repeats = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
        parts = [
            functional.scaled_dot_product_attention(
                q[None, :, rows], k[None, :, columns], v[None, :, columns], attn_mask=bias
            )[0]
            for rows, columns, bias in sight
        ]
        mixed = torch.cat(parts, 1)
        out: Tensor = self.o_proj(mixed.transpose(0, 1).reshape(length, -1))
        return out


class FeedForward(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden, shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, sight: Sight) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, sight)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden, shape.norm_eps)


class Llama(nn.Module):
    """One packed sequence at a time: `ids` [length] with explicit positions and mask.

    `dropout` is the share of what each layer adds that is left out while training in batches, and
    0 at all other times. `compiled` layers take a minute to begin with; in batches alone.
    """

    def __init__(self, shape: LlamaShape, recompute: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.recompute = recompute
        self.dropout = 0.0
        self.compiled = False
        self.model = Body(shape)

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, read_at: Tensor) -> Tensor:
        """Hidden states after the final norm.

        Args:
            ids: token ids, int64 [length].
            positions: rotary position of each token, int64 [length].
            mask: bool [length, length], True where the row's token sees the column's.
            read_at: indices into `ids`, int64 [answers].

        Returns:
            [answers, hidden]
        """
        x = self.model.embed_tokens(ids)
        if torch.is_autocast_enabled(ids.device.type):
            x = x.to(torch.get_autocast_dtype(ids.device.type))
        cos, sin = rotary_table(positions, self.shape, x.dtype)
        sight = blocks_of_sight(mask, x.dtype)
        for layer in self.model.layers:
            if self.recompute and x.requires_grad:
                x = checkpoint(layer, x, cos, sin, sight, use_reentrant=False)
            else:
                x = layer(x, cos, sin, sight)
        out: Tensor = self.model.norm(x[read_at])
        return out

    def logits(self, hidden: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """Scores of `token_ids` (of the whole vocabulary if None): [answers, tokens], float32."""
        table = self.model.embed_tokens.weight
        rows = table if token_ids is None else table[token_ids]
        return hidden.float() @ rows.float().T

    def freeze(self, lowest_layers: int) -> None:
        """Keep the embeddings and the lowest layers as they are: nothing flows back into them. All
        else is trained, whatever was frozen before."""
        self.requires_grad_(True)
        self.model.embed_tokens.weight.requires_grad_(False)
        for layer in list(self.model.layers)[:lowest_layers]:
            layer.requires_grad_(False)


def blocks_of_sight(mask: Tensor, dtype: torch.dtype) -> Sight:
    """`mask` [length, length] in blocks. In a pack most tokens see the routes and their own
    conversation alone, so that most columns fall away (on a CPU; an accelerator takes it whole)."""
    rows = _BLOCK_ROWS if mask.device.type == "cpu" else len(mask)
    blocks: Sight = []
    for start in range(0, len(mask), rows):
        part = mask[start : start + rows]
        columns = part.any(0).nonzero()[:, 0]
        bias = torch.zeros(len(part), len(columns), dtype=dtype, device=mask.device)
        bias.masked_fill_(~part[:, columns], float("-inf"))
        blocks.append((slice(start, start + len(part)), columns, bias))
    return blocks


def rotary_table(positions: Tensor, shape: LlamaShape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    half = torch.arange(0, shape.head_size, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[:, None] * shape.rope_theta ** (-half / shape.head_size)
    angles = torch.cat((angles, angles), -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
