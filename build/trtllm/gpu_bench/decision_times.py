"""What was measured of decisions: settings, rows, and a table beside what the roofline says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from sidecar.bench.rows import percentile
from sidecar.capacity import roofline
from sidecar.capacity.roofline import ARCH_ROUTER, ASSUMED, GPUS, IDEAL, SMOLLM2, Engine, Gpu, Work

SUFFIX = 60
"""Tokens behind the prefix."""
BATCHES = (1, 2, 4, 8, 16, 32)
SHAPES: dict[str, roofline.Shape | None] = {
    "arch_router": ARCH_ROUTER,
    "smollm2": SMOLLM2,
    "tiny": None,
}
"""Models; `tiny` is to try the program with, and has no roofline."""
KNOWN_GPUS = (*GPUS, Gpu("H200", 989, 1979, 4800))
"""The H200's bandwidth is that of NVIDIA's data sheet, its arithmetic an H100's."""

# Of the same name, but slower than the data sheet's numbers in KNOWN_GPUS.
_OTHER_FORMS = {"PCIe", "NVL", "MIG"}

_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 32
input [ {{ name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] }},
        {{ name: "reuse" data_type: TYPE_INT32 dims: [ 1 ] }} ]
output [ {{ name: "logits" data_type: TYPE_FP32 dims: [ 8 ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""


@dataclass(frozen=True)
class Setting:
    """One measurement.

    Args:
        address: of Triton's gRPC service.
        model: a key of SHAPES.
        prefix: tokens that all prompts begin with.
        reuse: whether the prefix's keys and values are kept.
        concurrency: decisions asked for at once.
    """

    address: str
    model: str
    prefix: int
    reuse: bool
    concurrency: int
    seconds: float


@dataclass(frozen=True)
class Row:
    """What one measurement has shown. `wall_s` counts the start and the warm-up too."""

    model: str
    prefix: int
    suffix: int
    reuse: bool
    concurrency: int
    decisions: int
    per_second: float
    p50_ms: float
    p99_ms: float
    wall_s: float


class Step(TypedDict):
    """Mean time of a batch without Triton and copies, in milliseconds; lengths in tokens."""

    prompt: int
    reused: int
    batch: int
    ms: float


class Report(TypedDict):
    """What the model in Triton says of itself; the file has more."""

    device: str
    steps: list[Step]


def row(setting: Setting, parts: Sequence[Sequence[float]], wall_s: float) -> Row:
    """Of the milliseconds that each client measured.

    Raises:
        RuntimeError: no decision was made in the time.
    """
    took = sorted(ms for part in parts for ms in part)
    if not took:
        raise RuntimeError(f"no decision within {setting.seconds:g} s: raise --seconds")
    return Row(
        setting.model,
        setting.prefix,
        SUFFIX,
        setting.reuse,
        setting.concurrency,
        len(took),
        round(len(took) / setting.seconds, 1),
        round(percentile(took, 50), 2),
        round(percentile(took, 99), 2),
        round(wall_s, 1),
    )


def known_gpu(device: str) -> Gpu | None:
    """The GPU of a name such as `NVIDIA H100 80GB HBM3`, if its data sheet is known."""
    words = set(re.split(r"[ -]", device))
    if words & _OTHER_FORMS:
        return None
    return next((gpu for gpu in KNOWN_GPUS if gpu.name.split("-")[0] in words), None)


def model_config(shape: str, prefixes: Sequence[int], device: str, report: str) -> str:
    """The model's config.pbtxt.

    Args:
        prefixes: lengths, in tokens.
        device: `cuda` or `cpu`.
        report: path of the file that it writes when it is loaded.
    """
    parameters = {
        "shape": shape,
        "prefixes": json.dumps(list(prefixes)),
        "suffix": str(SUFFIX),
        "batches": json.dumps(BATCHES),
        "device": device,
        "report": report,
    }
    lines = [
        f"parameters {{ key: {json.dumps(key)} value: {{ string_value: {json.dumps(value)} }} }}"
        for key, value in parameters.items()
    ]
    return _CONFIG.format(name=shape) + "\n".join(lines) + "\n"


def table(rows: Sequence[Row], reports: Mapping[str, Report]) -> str:
    """Markdown: measured latency, the step by itself, and the roofline of a step; both steps with
    as many decisions as were asked for at once.

    Args:
        reports: by model. Where the GPU or the model is not a known one the roofline's cells are
            empty.
    """
    lines = [
        "| model | prompt | reuse | concurrency | p50 ms | p99 ms | decisions/s"
        " | the step alone ms | roofline ms | assumed ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_line(each, reports[each.model]) for each in rows)]) + "\n"


def _line(row: Row, report: Report) -> str:
    work = Work(row.prefix + row.suffix, row.prefix if row.reuse else 0)
    gpu, shape = known_gpu(report["device"]), SHAPES[row.model]
    computed = ["", ""]
    if gpu is not None and shape is not None:
        engine = Engine(gpu, shape)
        computed = [
            f"{engine.prefill_ms(work, how, row.concurrency):.2f}" for how in (IDEAL, ASSUMED)
        ]
    step = next(
        each["ms"]
        for each in report["steps"]
        if (each["prompt"], each["reused"], each["batch"])
        == (work.prompt, work.reused, row.concurrency)
    )
    cells = (
        row.model,
        f"{row.prefix}+{row.suffix}",
        "yes" if row.reuse else "no",
        row.concurrency,
        f"{row.p50_ms:.2f}",
        f"{row.p99_ms:.2f}",
        f"{row.per_second:.0f}",
        f"{step:.2f}",
        *computed,
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |"
