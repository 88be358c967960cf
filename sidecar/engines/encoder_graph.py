"""A sentence encoder as an OpenVINO graph that computes many short texts in one row.

Texts are packed, not padded: a token attends to the tokens of its own segment.

Inputs (S tokens):
    input_ids, position_ids, token_types, segments: [S] int32
Outputs:
    states: [S, hidden] float32, of the last layer
    heads: [S, 3] float32: weight of the token in a request, weight in a route (both before the
        softmax over the text), and its part of the logit of `other`

Source of the arithmetic: transformers' modeling_bert.py (layers after the norm, GELU by erf).
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset15 as ops

from sidecar.engines.encoder import EncoderSource
from sidecar.engines.graph_nodes import Node, constant, decompressed, float_, ints
from sidecar.engines.weights import to_float16


def build_encoder_graph(source: EncoderSource) -> ov.Model:
    """The whole encoder, matrices in float16.

    Raises:
        EngineError: a tensor is missing, does not fit float16, or was never trained.
    """
    return _Builder(source).build()


class _Builder:
    def __init__(self, source: EncoderSource) -> None:
        self.a = source.architecture
        self.source = source

    def build(self) -> ov.Model:
        names = ("input_ids", "position_ids", "token_types", "segments")
        inputs = [_input(name) for name in names]
        ids, positions, types, segments = inputs
        embedded = ops.add(
            ops.add(
                self._rows("embeddings.word_embeddings.weight", ids),
                self._rows("embeddings.position_embeddings.weight", positions),
            ),
            self._rows("embeddings.token_type_embeddings.weight", types),
        )
        hidden = self._norm(embedded, "embeddings.LayerNorm")
        same = ops.equal(ops.unsqueeze(segments, ints(1)), segments)
        mask = ops.unsqueeze(ops.select(same, float_(0.0), float_(float("-inf"))), ints(0, 1))
        for layer in range(self.a.layers):
            hidden = self._layer(f"encoder.layer.{layer}", hidden, mask)
        weights, biases = self.source.head_weights()
        heads = ops.add(ops.matmul(hidden, constant(weights), False, True), constant(biases))
        results = [_output("states", hidden), _output("heads", heads)]
        return ov.Model(results, inputs, "encoder-packed")

    def _layer(self, name: str, hidden: Node, mask: Node) -> Node:
        attended = self._attention(f"{name}.attention", hidden, mask)
        hidden = self._norm(ops.add(hidden, attended), f"{name}.attention.output.LayerNorm")
        inner = ops.gelu(self._linear(hidden, f"{name}.intermediate.dense"), "erf")
        out = self._linear(inner, f"{name}.output.dense")
        return self._norm(ops.add(hidden, out), f"{name}.output.LayerNorm")

    def _attention(self, name: str, hidden: Node, mask: Node) -> Node:
        query, key, value = (
            self._heads(self._linear(hidden, f"{name}.self.{part}"))
            for part in ("query", "key", "value")
        )
        attended = ops.scaled_dot_product_attention(query, key, value, mask)
        by_token = ops.transpose(ops.squeeze(attended, ints(0)), ints(1, 0, 2))
        joined = ops.reshape(by_token, ints(-1, self.a.hidden_size), False)
        return self._linear(joined, f"{name}.output.dense")

    def _heads(self, projected: Node) -> Node:
        """[S, hidden] -> [1, heads, S, hidden / heads]"""
        width = self.a.hidden_size // self.a.heads
        split = ops.reshape(projected, ints(1, -1, self.a.heads, width), False)
        return ops.transpose(split, ints(0, 2, 1, 3))

    def _norm(self, hidden: Node, name: str) -> Node:
        normed = ops.mvn(hidden, ints(-1), True, self.a.norm_eps, "inside_sqrt")
        return ops.add(
            ops.multiply(normed, self._vector(f"{name}.weight")), self._vector(f"{name}.bias")
        )

    def _linear(self, hidden: Node, name: str) -> Node:
        product = ops.matmul(hidden, decompressed(self._matrix(f"{name}.weight")), False, True)
        return ops.add(product, self._vector(f"{name}.bias"))

    def _rows(self, name: str, indices: Node) -> Node:
        return ops.convert(ops.gather(self._matrix(name), indices, ints(0)), np.float32)

    def _matrix(self, name: str) -> Node:
        return constant(to_float16(name, self.source.weights.tensor(name)))

    def _vector(self, name: str) -> Node:
        return constant(self.source.weights.tensor(name).astype(np.float32))


def _input(name: str) -> Node:
    parameter = ops.parameter([-1], np.int32, name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _output(name: str, node: Node) -> Node:
    result = ops.result(node)
    result.output(0).get_tensor().add_names({name})
    return result
