"""The decoder as an OpenVINO graph that computes many short sequences over one shared prefix.

One graph serves both passes, so that the weights are in memory once:

* *extend* computes tokens and returns their keys and values (`keep` = number of tokens);
* *decide* computes tokens and returns logits of chosen positions alone (`keep` = 0, so the
  key/value outputs are empty and nothing is copied).

The head is a fifth of a small model's weights, and most decisions are between a few tokens, so its
rows of those tokens alone can be asked for.

Sequences are packed, not padded: the tokens of all of them stand in one row of length S, and a
token attends to itself and to what precedes it under the same segment number, and to every past
token of its own segment or of `SHARED_SEGMENT`. Past keys and values are ordinary inputs, so that
one buffer serves any number of calls.

Inputs (P past tokens, S new ones, B logits rows, L labels, H key/value heads of D):
    input_ids, position_ids, segments: [S] int32
    past_segments: [P] int32
    rows: [B] int32, positions in 0..S-1 whose logits are wanted
    whole: [W] int32, which of those B are wanted for the whole vocabulary
    label_ids: [L] int32, tokens whose logits are wanted of all B
    keep: [1] int32, how many leading new tokens' keys and values are returned
    past_k.{i}, past_v.{i}: [H, P, D] float32
Outputs:
    logits: [W, vocabulary] float32
    label_logits: [B, L] float32
    present_k.{i}, present_v.{i}: [H, keep, D] float32

Source of the arithmetic: transformers' modeling_llama.py and modeling_qwen2.py (RMSNorm in
float32, rotary embedding over halves, grouped-query attention, SwiGLU).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset15 as ops

from sidecar.engines.engine_directory import WeightStorage
from sidecar.engines.graph_nodes import (
    Node,
    constant,
    decompressed,
    float_,
    in_float32,
    int8_groups,
    ints,
    scalar,
)
from sidecar.engines.weights import Architecture, FloatArray, Weights, to_float16

SHARED_SEGMENT = -1
"""Segment number of past tokens that every sequence sees."""


def build_graph(architecture: Architecture, weights: Weights, storage: WeightStorage) -> ov.Model:
    """The whole decoder.

    Args:
        storage: of the projections; embeddings are always stored in float16.

    Raises:
        EngineError: a tensor is missing, or does not fit float16.
    """
    return _Builder(architecture, weights, storage).build()


class _Builder:
    def __init__(
        self, architecture: Architecture, weights: Weights, storage: WeightStorage
    ) -> None:
        self.a = architecture
        self.storage = storage
        self.weights = weights
        self.parameters: list[Node] = []
        self.results: list[Node] = []

    def build(self) -> ov.Model:
        ids = self._input("input_ids", [-1], np.int32)
        positions = self._input("position_ids", [-1], np.int32)
        segments = self._input("segments", [-1], np.int32)
        past_segments = self._input("past_segments", [-1], np.int32)
        rows = self._input("rows", [-1], np.int32)
        whole = self._input("whole", [-1], np.int32)
        label_ids = self._input("label_ids", [-1], np.int32)
        keep = self._input("keep", [1], np.int32)
        embedding = self._compressed("model.embed_tokens.weight")
        hidden = ops.convert(ops.gather(embedding, ids, ints(0)), np.float32)
        mask = _attention_mask(segments, past_segments)
        rotary = self._rotary(positions)
        for layer in range(self.a.layers):
            hidden = self._layer(layer, hidden, mask, rotary, keep, rows)
        hidden = self._norm(hidden, "model.norm.weight")
        head = embedding if self.a.tied_embeddings else self._compressed("lm_head.weight")
        all_of = ops.gather(hidden, whole, ints(0))
        self._output("logits", ops.matmul(all_of, decompressed(head), False, True))
        labels = decompressed(ops.gather(head, label_ids, ints(0)))
        self._output("label_logits", ops.matmul(hidden, labels, False, True))
        return ov.Model(self.results, self.parameters, f"{self.a.family}-packed")

    def _layer(
        self,
        layer: int,
        hidden: Node,
        mask: Node,
        rotary: tuple[Node, Node],
        keep: Node,
        rows: Node,
    ) -> Node:
        name = f"model.layers.{layer}"
        last = layer == self.a.layers - 1
        normed = self._norm(hidden, f"{name}.input_layernorm.weight")
        asking = _Asking(normed, mask, rotary)
        if last:  # nothing after the last layer's keys and values looks at other positions
            hidden, asking = ops.gather(hidden, rows, ints(0)), asking.at(rows)
        attended = self._attention(layer, normed, asking, rotary, keep)
        # Each layer adds a little to what stands here; bfloat16 would round it all each time.
        hidden = in_float32(ops.add(hidden, self._linear(attended, f"{name}.self_attn.o_proj")))
        normed = self._norm(hidden, f"{name}.post_attention_layernorm.weight")
        gate = ops.swish(self._linear(normed, f"{name}.mlp.gate_proj"))
        inner = ops.multiply(gate, self._linear(normed, f"{name}.mlp.up_proj"))
        return in_float32(ops.add(hidden, self._linear(inner, f"{name}.mlp.down_proj")))

    def _attention(
        self, layer: int, normed: Node, asking: _Asking, rotary: tuple[Node, Node], keep: Node
    ) -> Node:
        a = self.a
        name = f"model.layers.{layer}.self_attn"
        bias = a.qkv_bias
        query = self._heads(self._linear(asking.normed, f"{name}.q_proj", bias), a.heads)
        key = self._heads(self._linear(normed, f"{name}.k_proj", bias), a.kv_heads)
        value = self._heads(self._linear(normed, f"{name}.v_proj", bias), a.kv_heads)
        query, key = _rotate(query, asking.rotary, a.head_dim), _rotate(key, rotary, a.head_dim)
        all_keys = self._with_past(f"k.{layer}", key, keep)
        all_values = self._with_past(f"v.{layer}", value, keep)
        # Grouped queries: the key/value heads stand in the batch dimension, so that each group of
        # query heads is a multi-query attention and no key is repeated.
        groups = a.heads // a.kv_heads
        grouped = ops.reshape(query, ints(a.kv_heads, groups, -1, a.head_dim), False)
        attended = ops.scaled_dot_product_attention(
            grouped,
            ops.unsqueeze(all_keys, ints(1)),
            ops.unsqueeze(all_values, ints(1)),
            asking.mask,
        )
        by_token = ops.transpose(attended, ints(2, 0, 1, 3))
        return ops.reshape(by_token, ints(-1, a.heads * a.head_dim), False)

    def _with_past(self, name: str, new: Node, keep: Node) -> Node:
        past = self._input(f"past_{name}", [self.a.kv_heads, -1, self.a.head_dim], np.float32)
        new = ops.squeeze(new, ints(0))
        kept = ops.slice(new, ints(0), keep, ints(1), ints(1))
        self._output(f"present_{name}", kept)
        return ops.concat([past, new], 1)

    def _heads(self, projected: Node, heads: int) -> Node:
        """[S, heads * D] -> [1, heads, S, D]"""
        split = ops.reshape(projected, ints(1, -1, heads, self.a.head_dim), False)
        return ops.transpose(split, ints(0, 2, 1, 3))

    def _rotary(self, positions: Node) -> tuple[Node, Node]:
        """Cosines and sines, [1, 1, S, D] each, from tables: sine and cosine of large angles lose
        everything in bfloat16, the tabled values lose one rounding."""
        half = np.arange(0, self.a.head_dim, 2, dtype=np.float64) / self.a.head_dim
        inverse = 1.0 / self.a.rope_theta**half
        angles = np.arange(self.a.context_length, dtype=np.float64)[:, None] * inverse[None, :]
        tables = (np.cos(angles), np.sin(angles))
        cos, sin = (
            ops.gather(constant(table.astype(np.float32)), positions, ints(0)) for table in tables
        )
        cos, sin = (ops.unsqueeze(ops.concat([half, half], 1), ints(0, 1)) for half in (cos, sin))
        return cos, sin

    def _norm(self, hidden: Node, name: str) -> Node:
        mean_square = ops.reduce_mean(ops.power(hidden, float_(2.0)), ints(-1), True)
        scaled = ops.divide(hidden, ops.sqrt(ops.add(mean_square, float_(self.a.rms_eps))))
        return ops.multiply(scaled, constant(self._read(name).astype(np.float32)))

    def _linear(self, hidden: Node, name: str, bias: bool = False) -> Node:
        stored = self._compressed(f"{name}.weight", self.storage)
        product = ops.matmul(hidden, decompressed(stored), False, True)
        if not bias:
            return product
        return ops.add(product, constant(self._read(f"{name}.bias").astype(np.float32)))

    def _compressed(self, name: str, storage: WeightStorage = WeightStorage.F16) -> Node:
        """A weight matrix as a float16 node."""
        values = to_float16(name, self._read(name))
        return constant(values) if storage is WeightStorage.F16 else int8_groups(values)

    def _read(self, name: str) -> FloatArray:
        return self.weights.tensor(name)

    def _input(self, name: str, shape: list[int], dtype: type) -> Node:
        parameter = ops.parameter(shape, dtype, name)
        parameter.output(0).get_tensor().set_names({name})
        self.parameters.append(parameter)
        return parameter

    def _output(self, name: str, node: Node) -> None:
        result = ops.result(node)
        result.output(0).get_tensor().add_names({name})
        self.results.append(result)


@dataclass(frozen=True, slots=True)
class _Asking:
    """The positions that look at others: normed states [S, hidden], additive mask [1, 1, S, P + S]
    and rotary tables [1, 1, S, D]."""

    normed: Node
    mask: Node
    rotary: tuple[Node, Node]

    def at(self, rows: Node) -> _Asking:
        cos, sin = (ops.gather(table, rows, ints(2)) for table in self.rotary)
        return _Asking(
            ops.gather(self.normed, rows, ints(0)), ops.gather(self.mask, rows, ints(2)), (cos, sin)
        )


def _attention_mask(segments: Node, past_segments: Node) -> Node:
    """Additive mask [1, 1, S, P + S]: 0 where a token may look, minus infinity elsewhere."""
    new = ops.shape_of(segments, "i32")
    past = ops.shape_of(past_segments, "i32")
    zero, one = scalar(0), scalar(1)
    new_length, past_length = ops.squeeze(new, ints(0)), ops.squeeze(past, ints(0))
    queries = ops.unsqueeze(ops.add(ops.range(zero, new_length, one, "i32"), past_length), ints(1))
    keys = ops.range(zero, ops.add(past_length, new_length), one, "i32")
    key_segments = ops.concat([past_segments, segments], 0)
    same = ops.equal(ops.unsqueeze(segments, ints(1)), key_segments)
    shared = ops.equal(key_segments, ints(SHARED_SEGMENT))
    visible = ops.logical_and(ops.logical_or(same, shared), ops.less_equal(keys, queries))
    additive = ops.select(visible, float_(0.0), float_(float("-inf")))
    return ops.unsqueeze(additive, ints(0, 1))


def _rotate(heads: Node, rotary: tuple[Node, Node], head_dim: int) -> Node:
    """In the form that the CPU plugin computes as one operation (RoPEFusionGPTNEOX of OpenVINO's
    fuse_rotary_positional_embeddings.cpp): four dimensions, the last axis and the factor are -1."""
    cos, sin = rotary
    half = head_dim // 2
    first, second = ops.variadic_split(heads, scalar(3), ints(half, half)).outputs()
    turned = ops.concat([ops.multiply(second, float_(-1.0)), first], -1)
    return ops.add(ops.multiply(heads, cos), ops.multiply(turned, sin))
