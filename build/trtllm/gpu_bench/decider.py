"""A decoder of Llama's and Qwen2's form that answers one decision: the logits of the label tokens.

Plain PyTorch with random weights: its latency is that of the shape, its answers mean nothing. The
prefix's keys and values are kept on request. On a GPU, every batch size is recorded once as a CUDA
graph, so that launching kernels from Python costs nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.nn.functional import (
    embedding,
    linear,
    rms_norm,
    scaled_dot_product_attention,
    silu,
)

LABELS = 8
"""Label tokens whose logits are the answer; the whole vocabulary's are computed for them."""


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    rope_theta: float
    qkv_bias: bool


# https://huggingface.co/katanemo/Arch-Router-1.5B and HuggingFaceTB/SmolLM2-135M: config.json.
SHAPES = {
    "arch_router": Shape(1536, 28, 12, 2, 128, 8960, 151936, 1e6, True),
    "smollm2": Shape(576, 30, 9, 3, 64, 1536, 49152, 1e5, False),
    "tiny": Shape(64, 2, 4, 2, 16, 128, 512, 1e4, True),
}


class Decoder:
    """The layers, without a cache of their own. Embedding and head share their weights.

    Args:
        positions: the longest prompt, in tokens.
    """

    def __init__(self, shape: Shape, device: torch.device, positions: int) -> None:
        self.shape, self.device = shape, device
        generator = torch.Generator(device).manual_seed(1)
        self._dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

        def random(*size: int) -> torch.Tensor:
            made = torch.randn(*size, generator=generator, device=device, dtype=self._dtype)
            return made * 0.02

        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self._split = (queries, keys, keys)
        self.embedding = random(shape.vocab, shape.hidden)
        self._layers = [
            (
                random(queries + 2 * keys, shape.hidden),
                random(queries + 2 * keys) if shape.qkv_bias else None,
                random(shape.hidden, queries),
                random(2 * shape.intermediate, shape.hidden),
                random(shape.hidden, shape.intermediate),
            )
            for _ in range(shape.layers)
        ]
        self._one = torch.ones(shape.hidden, device=device, dtype=self._dtype)
        half = torch.arange(0, shape.head_dim, 2, device=device).float() / shape.head_dim
        angles = torch.arange(positions, device=device).float()[:, None] / shape.rope_theta**half
        angles = torch.cat((angles, angles), dim=1)
        self._cos, self._sin = angles.cos().to(self._dtype), angles.sin().to(self._dtype)
        self.labels = torch.arange(LABELS, device=device) * 7 + 11

    def __call__(
        self, ids: torch.Tensor, past: torch.Tensor | None = None, keep: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of the label tokens after the last of the ids.

        Args:
            ids: (batch, tokens).
            past: (layers, 2, 1, kv heads, tokens before the ids, head dim), the same for all rows.
            keep: return keys and values of the ids, in the form of `past`.

        Returns:
            (batch, LABELS) in 32 bits; keys and values or None.
        """
        start = 0 if past is None else past.shape[4]
        cos, sin = (table[start : start + ids.shape[1]] for table in (self._cos, self._sin))
        hidden, kept = embedding(ids, self.embedding), []
        for number, (qkv, bias, out, gate_up, down) in enumerate(self._layers):
            normed = self._norm(hidden)
            q, k, v = (self._heads(x) for x in linear(normed, qkv, bias).split(self._split, 2))
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            if keep:
                kept.append(torch.stack((k, v)))
            if past is not None:
                k, v = (
                    torch.cat((before.expand(len(ids), -1, -1, -1), new), dim=2)
                    for before, new in zip(past[number], (k, v), strict=True)
                )
            attended = _attend(q, k, v).transpose(1, 2).reshape(len(ids), ids.shape[1], -1)
            hidden = hidden + linear(attended, out)
            gate, up = linear(self._norm(hidden), gate_up).chunk(2, dim=2)
            hidden = hidden + linear(silu(gate) * up, down)
        logits = linear(self._norm(hidden[:, -1]), self.embedding)
        return logits[:, self.labels].float(), torch.stack(kept) if keep else None

    def _norm(self, hidden: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden, (self.shape.hidden,), self._one, 1e-6)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], x.shape[1], -1, self.shape.head_dim).transpose(1, 2)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=3)
    return x * cos + torch.cat((-second, first), dim=3) * sin


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal, the last query at the last key. On a GPU FlashAttention is asked for by name: the
    general function puts the first query at the first key."""
    if q.is_cuda:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0]
    queries, keys = q.shape[2], k.shape[2]
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


class Decider:
    """Decisions in batches, with the keys and values of one prefix of each length kept.

    Args:
        prefixes: lengths of prefixes, in tokens.
        suffix: tokens after each.
        batches: sizes; a batch of another size is filled up to the next.
    """

    def __init__(
        self, decoder: Decoder, prefixes: list[int], suffix: int, batches: list[int]
    ) -> None:
        self._decoder, self._suffix, self._batches = decoder, suffix, sorted(batches)
        self._resident: dict[int, bytes] = {}
        self._past: dict[int, torch.Tensor] = {}
        self._steps = {}
        for prefix in prefixes:
            ids = torch.zeros(1, prefix, dtype=torch.long, device=decoder.device)
            past = decoder(ids, keep=True)[1]
            assert past is not None
            self._past[prefix] = past
            for batch in self._batches:
                self._steps[prefix + suffix, 0, batch] = _Step(
                    decoder, batch, prefix + suffix, None
                )
                self._steps[prefix + suffix, prefix, batch] = _Step(decoder, batch, suffix, past)

    def decide(self, rows: torch.Tensor, reused: int) -> torch.Tensor:
        """Logits (rows, LABELS), in the computer's memory.

        Args:
            rows: (rows, tokens) of prompts; the leading `reused` ones the same in all.
            reused: a prefix's length, or 0: all is computed.
        """
        if reused:
            self._keep(rows[:1, :reused])
        batch = next(size for size in self._batches if size >= len(rows))
        return self._steps[rows.shape[1], reused, batch].run(rows[:, reused:])

    def _keep(self, prefix: torch.Tensor) -> None:
        content = prefix.numpy().tobytes()
        if self._resident.get(prefix.shape[1]) != content:
            kept = self._decoder(prefix.to(self._decoder.device, torch.long), keep=True)[1]
            self._past[prefix.shape[1]].copy_(kept)
            self._resident[prefix.shape[1]] = content

    def difference(self, prefix: int) -> tuple[float, float]:
        """The largest difference between logits with and without reuse, and the logits' spread."""
        length = prefix + self._suffix
        row = torch.randint(self._decoder.shape.vocab, (1, length), dtype=torch.int32)
        whole, reused = self.decide(row, 0), self.decide(row, prefix)
        return float((whole - reused).abs().max()), float(whole.std())

    def step_ms(self, repeats: int = 20) -> list[dict[str, float]]:
        """Mean time of each step by itself, in milliseconds: without Triton and copies."""
        rows = []
        for (prompt, reused, batch), step in self._steps.items():
            step.replay()
            self._wait()
            begun = time.perf_counter()
            for _ in range(repeats):
                step.replay()
            self._wait()
            took = 1000 * (time.perf_counter() - begun) / repeats
            rows.append({"prompt": prompt, "reused": reused, "batch": batch, "ms": took})
        return rows

    def _wait(self) -> None:
        if self._decoder.device.type == "cuda":
            torch.cuda.synchronize()


class _Step:
    """One size of batch; a CUDA graph on a GPU."""

    _pool = None  # memory that all graphs share: one runs at a time

    def __init__(
        self, decoder: Decoder, batch: int, tokens: int, past: torch.Tensor | None
    ) -> None:
        self._decoder, self._past = decoder, past
        self._ids = torch.zeros(batch, tokens, dtype=torch.long, device=decoder.device)
        self._graph = None
        self.replay()
        if decoder.device.type == "cuda":
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=_Step._pool):
                self._logits = decoder(self._ids, past)[0]
            self._graph, _Step._pool = graph, graph.pool()

    def run(self, rows: torch.Tensor) -> torch.Tensor:
        self._ids[: len(rows)].copy_(rows)
        self.replay()
        return self._logits[: len(rows)].cpu()

    def replay(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        else:
            self._logits = self._decoder(self._ids, self._past)[0]
