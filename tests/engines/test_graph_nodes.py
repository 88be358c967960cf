from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset15 as ops

from sidecar.engines.errors import EngineError
from sidecar.engines.graph_nodes import (
    Node,
    constant,
    decompressed,
    in_float32,
    int8_groups,
    write_graph,
)


@pytest.mark.parametrize(("columns", "group"), [(128, 64), (96, 96)])
def test_each_group_of_columns_is_rounded_by_its_own_largest_value(
    columns: int, group: int
) -> None:
    values = np.random.default_rng(0).standard_normal((4, columns)).astype(np.float32)
    # One large value would make the steps of all of its row too coarse.
    values[:, 0] = 1000
    values[1] = 0
    graph = openvino.Model([ops.result(decompressed(int8_groups(values)))], [], "weights")
    stored = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({})[0]
    groups = values.reshape(4, -1, group)
    step = np.abs(groups).max(axis=2, keepdims=True) / 127
    error = np.abs(stored.reshape(groups.shape) - groups)
    # Half a step, and what the scale loses in float16.
    assert (error <= 0.5 * step + np.abs(groups) * 2.0**-11 + 1e-7).all()


def test_what_is_to_be_kept_in_float32_is_where_all_else_is_computed_in_bfloat16(
    tmp_path: Path,
) -> None:
    core = openvino.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU does not compute in bfloat16")
    write_graph(_sums(), tmp_path / "graph.xml")
    options = {"INFERENCE_PRECISION_HINT": "bf16"}
    compiled = core.compile_model(tmp_path / "graph.xml", "CPU", options)
    computed = {}
    for op in compiled.get_runtime_model().get_ops():
        facts = op.get_rt_info()
        for name in facts["originalLayersNames"].astype(str).split(","):
            computed[name] = facts["runtimePrecision"].astype(str)
    assert (computed["kept"], computed["rounded"]) == ("f32", "bf16")


def test_a_graph_that_cannot_be_marked_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xml.etree.ElementTree.ElementTree.write", full)
    with pytest.raises(EngineError, match=r"graph.xml: cannot be written; is the disk full\?"):
        write_graph(_sums(), tmp_path / "graph.xml")


def _sums() -> openvino.Model:
    """Of two sums between products the first is to be kept in float32."""
    states = ops.parameter([-1, 64], np.float32, "states")
    kept = in_float32(ops.add(_product(states), states))
    kept.set_friendly_name("kept")
    rounded = ops.add(_product(kept), states)
    rounded.set_friendly_name("rounded")
    return openvino.Model([ops.result(_product(rounded))], [states], "sums")


def _product(states: Node) -> Node:
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float16)
    return ops.matmul(states, decompressed(constant(weights)), False, True)
