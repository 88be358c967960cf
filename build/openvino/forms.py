"""Compares forms of weights on this CPU: what OpenVINO makes of each, and how long a pass takes.

Eight layers' matrices of a 135M model with random weights, on one thread; see docs/performance.md.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as ops

from sidecar.engines.graph_nodes import constant, decompressed, float_, int8_groups

Matrix = npt.NDArray[np.float32]
Form = Callable[[Matrix], Any]

_HIDDEN, _INNER, _LAYERS = 576, 1536, 8
_SHAPES = ((_HIDDEN, _HIDDEN), (_INNER, _HIDDEN), (_INNER, _HIDDEN), (_HIDDEN, _INNER))
_RANGE = 6.4
_TOKENS = (1, 16, 64)


def _int4_groups(values: Matrix) -> Any:
    groups = values.reshape(values.shape[0], -1, 64)
    step = np.abs(groups).max(2, keepdims=True) / 7
    steps = (np.rint(groups / step).astype(np.int8).reshape(-1) & 15).astype(np.uint8)
    packed = ov.Tensor(steps[0::2] | (steps[1::2] << 4), groups.shape, ov.Type.i4)
    scaled = ops.multiply(
        ops.convert(ops.constant(packed), np.float16), constant(step.astype(np.float16))
    )
    return decompressed(ops.reshape(scaled, constant(np.array(values.shape, np.int32)), False))


def _quantised(values: Matrix) -> Any:
    top = np.abs(values).max(1, keepdims=True)
    low, high = constant(-top), constant(top)
    return ops.fake_quantize(constant(values), low, high, low, high, 255)


_FORMS: dict[str, Form] = {
    "float32": constant,
    "float16": lambda values: decompressed(constant(values.astype(np.float16))),
    "int8 in groups of 64": lambda values: decompressed(int8_groups(values)),
    "int4 in groups of 64": _int4_groups,
    "int8, activations too": _quantised,
}


def _layers(form: Form, *, activations: bool) -> ov.Model:
    rng = np.random.default_rng(0)
    states = ops.parameter([-1, _HIDDEN], np.float32, "states")

    def linear(hidden: Any, shape: tuple[int, int]) -> Any:
        if activations:
            low, high = float_(-_RANGE), float_(_RANGE)
            hidden = ops.fake_quantize(hidden, low, high, low, high, 256)
        weights = (rng.standard_normal(shape) * 0.04).astype(np.float32)
        return ops.matmul(hidden, form(weights), False, True)

    hidden: Any = states
    for _ in range(_LAYERS):
        attended, gate, up, down = _SHAPES
        hidden = ops.add(hidden, linear(hidden, attended))
        inner = ops.multiply(ops.swish(linear(hidden, gate)), linear(hidden, up))
        hidden = ops.add(hidden, linear(inner, down))
        hidden = ops.mvn(hidden, constant(np.array([1], np.int32)), True, 1e-5, "inside_sqrt")
    return ov.Model([ops.result(hidden)], [states], "layers")


@click.command()
@click.option("--runs", default=10, show_default=True)
def forms(runs: int) -> None:
    """Print for each form what computes its products, and the best processor time of a pass."""
    core = ov.Core()
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    for name, form in _FORMS.items():
        model = _layers(form, activations=form is _quantised)
        compiled = core.compile_model(model, "CPU", options)
        request = compiled.create_infer_request()
        times = [_best_ms(request, tokens, runs) for tokens in _TOKENS]
        shown = "  ".join(f"{n}: {ms:6.1f}" for n, ms in zip(_TOKENS, times, strict=True))
        click.echo(f"{name:22} ms by tokens  {shown}  {_primitives(compiled)}")


def _best_ms(request: ov.InferRequest, tokens: int, runs: int) -> float:
    states = np.random.default_rng(1).standard_normal((tokens, _HIDDEN)).astype(np.float32)
    best = float("inf")
    for _ in range(runs):
        started = time.process_time()
        request.infer({0: states})
        best = min(best, time.process_time() - started)
    return best * 1000


def _primitives(compiled: ov.CompiledModel) -> str:
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        if str(facts["layerType"].value) == "FullyConnected":
            found[str(facts["primitiveType"].value)] += 1
    return ", ".join(f"{count} {name}" for name, count in found.most_common())


if __name__ == "__main__":
    forms()
