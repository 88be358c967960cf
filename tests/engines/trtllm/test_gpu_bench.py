"""What build/trtllm/gpu_bench makes of its measurements, and what it refuses. Nothing is measured
here: that takes a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import measure
import numpy as np
import pytest
from decision_times import (
    BATCHES,
    SHAPES,
    SUFFIX,
    Report,
    Row,
    Setting,
    Step,
    known_gpu,
    model_config,
    row,
    table,
)
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from sidecar.capacity.roofline import ASSUMED, IDEAL, Engine, Work

SETTING = Setting("127.0.0.1:1", "arch_router", 300, True, 8, 4.0)
ROW = Row("arch_router", 300, SUFFIX, True, 8, 400, 100.0, 5.0, 7.25, 5.1)
REQUIRED = ["--wheel", "w", "--python-home", "p", "--python-path", "t", "--out", "o"]


def report(device: str) -> Report:
    steps: list[Step] = [
        {"prompt": 300 + SUFFIX, "reused": reused, "batch": batch, "ms": reused + batch}
        for reused in (0, 300)
        for batch in BATCHES
    ]
    return {"device": device, "steps": steps}


@pytest.mark.parametrize(
    ("parts", "p50", "p99"),
    [
        ([[7.0]], 7.0, 7.0),
        ([[4.0, 2.0], [3.0, 1.0]], 2.0, 4.0),
        ([[float(n)] for n in range(100, 0, -1)], 50.0, 99.0),
        ([[1.0] * 99, [], [50.0]], 1.0, 1.0),
        ([[1.0] * 98, [50.0, 60.0]], 1.0, 50.0),
    ],
    ids=["one", "unsorted", "100", "one slow", "two slow"],
)
def test_row_is_of_all_clients_together(parts: list[list[float]], p50: float, p99: float) -> None:
    made = row(SETTING, parts, 5.04)

    assert (made.p50_ms, made.p99_ms) == (p50, p99)
    assert made.decisions == sum(map(len, parts))
    assert made.per_second == round(made.decisions / 4, 1)
    assert made.wall_s == 5.0


def test_time_without_a_decision_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"no decision within 4 s: raise --seconds"):
        row(SETTING, [[], []], 5.0)


@pytest.mark.parametrize(
    ("device", "known"),
    [
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA H200", "H200"),
        # Slower than the ones of the same name.
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA L40", None),
        ("NVIDIA A100-SXM4-80GB", None),
        ("cpu", None),
    ],
)
def test_roofline_is_that_of_the_gpu_measured(device: str, known: str | None) -> None:
    gpu = known_gpu(device)
    assert (gpu and gpu.name) == known


def test_table_has_measured_and_computed_side_by_side() -> None:
    gpu = known_gpu("NVIDIA L40S")
    assert gpu is not None
    shape = SHAPES["arch_router"]
    assert shape is not None
    engine = Engine(gpu, shape)
    reused, whole = Work(300 + SUFFIX, 300), Work(300 + SUFFIX, 0)
    ideal, assumed = (engine.prefill_ms(reused, how, 8) for how in (IDEAL, ASSUMED))
    alone = engine.prefill_ms(whole, IDEAL, 1)
    rows = [ROW, replace(ROW, reuse=False, concurrency=1)]

    lines = table(rows, {"arch_router": report("NVIDIA L40S")}).splitlines()

    assert [line.count("|") for line in lines] == [11] * 4
    assert lines[2] == (
        f"| arch_router | 300+60 | yes | 8 | 5.00 | 7.25 | 100 | 308.00 "
        f"| {ideal:.2f} | {assumed:.2f} |"
    )
    assert lines[3].startswith("| arch_router | 300+60 | no | 1 | 5.00 | 7.25 | 100 | 1.00 ")
    assert f"| {alone:.2f} |" in lines[3]


@pytest.mark.parametrize(("model", "device"), [("arch_router", "cpu"), ("tiny", "NVIDIA L4")])
def test_table_computes_nothing_for_what_is_not_known(model: str, device: str) -> None:
    (line,) = table([replace(ROW, model=model)], {model: report(device)}).splitlines()[2:]
    assert line.endswith("| 308.00 |  |  |")


def test_every_concurrency_has_its_batch_and_whole_processes() -> None:
    assert set(measure.PROCESSES) <= set(BATCHES)
    assert all(tasks % processes == 0 for tasks, processes in measure.PROCESSES.items())


@pytest.mark.parametrize("reuse", [False, True])
def test_request_has_the_tensors_of_the_model(reuse: bool) -> None:
    text = model_config("tiny", [300, 800], "cuda", '/a folder/"tiny".json')
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    ids = list(range(300 + SUFFIX))

    request = measure.decision_request(replace(SETTING, model="tiny", reuse=reuse), ids)

    assert request.model_name == config.name
    asked = {each.name: (each.datatype, len(each.shape)) for each in request.inputs}
    assert asked == {each.name: ("INT32", 1 + len(each.dims)) for each in config.input}
    read = [np.frombuffer(raw, np.int32).tolist() for raw in request.raw_input_contents]
    assert read == [ids, [300 if reuse else 0]]
    assert config.parameters["report"].string_value == '/a folder/"tiny".json'
    assert config.max_batch_size == max(BATCHES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (REQUIRED[2:], "the following arguments are required: --wheel"),
        ([*REQUIRED, "--shapes", "gpt"], "invalid choice: 'gpt'"),
        ([*REQUIRED, "--prefixes", "300", "0"], "'0' is not a number of tokens above 0"),
        ([*REQUIRED, "--prefixes", "-3"], "--prefixes"),
        ([*REQUIRED, "--seconds", "0"], "'0' is not a number of seconds above 0"),
        ([*REQUIRED, "--seconds", "nan"], "'nan' is not a number of seconds above 0"),
        ([*REQUIRED, "--version", "3"], "'3' is not a version like 3.12"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        measure.parsed(arguments)

    assert said in capsys.readouterr().err


def test_arguments_have_the_defaults_of_the_documents_run() -> None:
    options = measure.parsed(REQUIRED)

    assert (options.shapes, options.prefixes) == (["arch_router", "smollm2"], [300, 800])
    assert not options.cpu


NVIDIA_SMI = {
    "none": ("", "exit 0", "lists none"),
    "no driver": ("", "echo 'no driver' >&2; exit 9", "ended with 9: no driver"),
    "one": ("", "echo 'GPU 0: NVIDIA L4 (UUID: GPU-1)'", ""),
    "not installed": ("not there", "", "No such file or directory"),
}


@pytest.mark.parametrize(("suffix", "script", "said"), NVIDIA_SMI.values(), ids=NVIDIA_SMI.keys())
def test_gpu_is_looked_for(suffix: str, script: str, said: str, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)

    missing = measure.missing_gpu(f"{program}{suffix}")

    assert said in missing
    assert bool(missing) == bool(said)
    assert not missing or "--cpu --shapes tiny" in missing


def test_nothing_starts_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(SystemExit, match=r"measure\.py: no GPU: .*--cpu"):
        measure.main(["--wheel", str(tmp_path), *REQUIRED[2:-1], str(tmp_path / "out")])

    assert not list(tmp_path.iterdir())
