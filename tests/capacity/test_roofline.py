"""The roofline, against numbers worked out by hand, and what must hold of any."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.capacity.roofline import (
    ARCH_ROUTER,
    ASSUMED,
    GPUS,
    IDEAL,
    SMOLLM2,
    Efficiency,
    Engine,
    Shape,
    Work,
)
from sidecar.engines.trtllm import Precision
from sidecar.engines.trtllm.sizing import sizes_of
from sidecar.engines.weights import Architecture

L40S = GPUS[1]
BF16, FP8 = Engine(L40S, ARCH_ROUTER), Engine(L40S, ARCH_ROUTER, fp8=True)


def test_reading_the_weights_bounds_a_short_prompt() -> None:
    # (2 x 1,543.7 M parameters + 300 x 28,672 bytes of KV) / 864 GB/s
    assert BF16.decision_ms(Work(300), IDEAL) == pytest.approx(3.583, abs=1e-3)


def test_arithmetic_bounds_a_long_prompt() -> None:
    # (2 x 1,310.3 M x 2,000 + 2 x 233.4 M + 2 x 28 x 1,536 x 2,000^2) / 362 TFLOPS
    assert BF16.decision_ms(Work(2000), IDEAL) == pytest.approx(15.43, abs=0.01)


def test_fp8_halves_the_layers_and_not_the_head() -> None:
    assert FP8.weight_bytes == ARCH_ROUTER.body + 2 * ARCH_ROUTER.table


def test_a_token_more_of_answer_costs_a_reading_of_the_weights() -> None:
    one, two = (BF16.decision_ms(Work(300, answer=n), IDEAL) for n in (1, 2))
    assert two - one == pytest.approx(3.583, abs=1e-3)


def test_what_is_reused_is_not_computed() -> None:
    whole, reused = (BF16.decision_ms(Work(2000, n), ASSUMED) for n in (0, 1904))
    assert reused < whole / 4


def test_a_larger_batch_never_makes_a_decision_dearer() -> None:
    work = Work(800, 704)
    steady = replace(ASSUMED, compute_short=ASSUMED.compute)
    rates = [BF16.decisions_per_second(work, steady, batch) for batch in (1, 2, 8, 32, 64)]
    assert rates == sorted(rates)


def test_the_assumed_is_never_faster_than_the_ideal() -> None:
    for gpu in GPUS:
        for prompt in (64, 300, 2000):
            engine, work = Engine(gpu, ARCH_ROUTER), Work(prompt, answer=8)
            assert engine.decision_ms(work, ASSUMED) > engine.decision_ms(work, IDEAL)


def test_overheads_are_counted_once_a_step_and_once_a_request() -> None:
    extra = Efficiency(1.0, 1.0, 0, 1.0, step_ms=1.0, request_ms=10.0)
    work = Work(300, answer=8)
    added = BF16.decision_ms(work, extra) - BF16.decision_ms(work, IDEAL)
    assert added == pytest.approx(8 * 1.0 + 10.0)


@pytest.mark.parametrize(
    ("shape", "architecture"),
    [
        (
            ARCH_ROUTER,
            Architecture(
                "qwen2", 151_936, 1536, 8960, 28, 12, 2, 128, 32_768, 1e6, 1e-6, True, True
            ),
        ),
        (
            SMOLLM2,
            Architecture("llama", 49_152, 576, 1536, 30, 9, 3, 64, 8192, 1e5, 1e-5, False, True),
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_shapes_are_those_of_the_weights(shape: Shape, architecture: Architecture) -> None:
    sizes = sizes_of(architecture, Precision.BF16)
    assert sizes.source == 2 * (shape.body + shape.table)
    # An engine holds the embedding and the head apart.
    assert sizes.engine == 2 * (shape.body + 2 * shape.table)
    assert sizes.kv_per_token == shape.kv_bytes_per_token
