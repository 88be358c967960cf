"""The decoder whose latency build/trtllm/gpu_bench measures computes one thing in several ways."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed; only the benchmark needs it")

import torch
from decider import LABELS, SHAPES, Decider, Decoder

PREFIXES, SUFFIX = [8, 24], 6


@pytest.fixture(scope="module")
def decider() -> Decider:
    with torch.inference_mode():
        decoder = Decoder(SHAPES["tiny"], torch.device("cpu"), max(PREFIXES) + SUFFIX)
        return Decider(decoder, PREFIXES, SUFFIX, [1, 4])


def prompts(rows: int, prefix: int, seed: int = 0) -> torch.Tensor:
    """(rows, tokens), of one prefix."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(500, (1, prefix), generator=generator).expand(rows, -1)
    return torch.cat((shared, torch.randint(500, (rows, SUFFIX), generator=generator)), dim=1)


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_logits_are_the_same_with_reuse(decider: Decider, rows: int, prefix: int) -> None:
    with torch.inference_mode():
        for seed in (0, 1):  # the second one's prefix takes the place of the first one's
            asked = prompts(rows, prefix, seed)
            whole, reused = decider.decide(asked, 0).clone(), decider.decide(asked, prefix)

            assert whole.shape == (rows, LABELS)
            assert whole.std() > 0
            assert torch.allclose(whole, reused, atol=1e-4 * float(whole.std()))


def test_batch_that_is_filled_up_answers_as_each_row_alone(decider: Decider) -> None:
    asked = prompts(3, PREFIXES[0])
    with torch.inference_mode():
        together = decider.decide(asked, 0).clone()
        alone = torch.cat([decider.decide(row[None], 0).clone() for row in asked])

    assert torch.allclose(together, alone, atol=1e-4 * float(alone.std()))


def test_every_size_is_timed_by_itself(decider: Decider) -> None:
    with torch.inference_mode():
        steps = decider.step_ms(repeats=1)

    assert {(each["prompt"], each["reused"], each["batch"]) for each in steps} == {
        (prefix + SUFFIX, reused, batch)
        for prefix in PREFIXES
        for reused in (0, prefix)
        for batch in (1, 4)
    }
