"""Draws of a step at once, for an accelerator: here on the CPU, in float32. Skipped where torch is
not installed."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed; only training needs it")
pytest.importorskip("safetensors", reason="safetensors is not installed; only training needs it")

import numpy as np
import torch
from router_training import encoder_batched
from router_training.batched import Batches
from router_training.cases import Case, Request, RouteText
from router_training.encoder_batched import TextsBatch, batch_logits, batch_loss, collate_texts
from router_training.encoder_draws import EncodedTexts, TextsEncoder
from router_training.encoder_loop import EncoderPlan, EncoderTrainer
from router_training.encoder_model import SecondOpinionModel, Text, untrained
from router_training.mixture import build_mixture

from sidecar.inference.tokenizer import HfTokenizer
from sidecar.prompts.second_opinion import encoder_texts
from tests.engines.tiny_encoder import TINY_ENCODER

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY_ENCODER.write(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def model(base: Path) -> SecondOpinionModel:
    torch.manual_seed(0)
    made, _ = untrained(base)
    heads = made.second_opinion
    for parameter in (heads.request_gate, heads.route_gate, heads.other):
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def draws() -> list[EncodedTexts]:
    """Of many shapes: requests, routes and their lengths differ."""
    rng = np.random.default_rng(0)
    made = []
    for requests, routes, longest in ((5, 3, 40), (1, 9, 9), (8, 2, 90), (3, 3, 4)):
        texts: list[Text] = [
            (tuple(rng.integers(4, 60, size).tolist()), (0,) * (size // 2) + (1,) * -(-size // 2))
            for size in rng.integers(1, longest, requests + routes).tolist()
        ]
        right = np.eye(routes + 1, dtype=np.bool_)[rng.integers(0, routes + 1, requests)]
        right[0, 0] = right[0, -1] = True
        made.append(EncodedTexts("own", texts[:requests], texts[requests:], right))
    return made


def loss_alone(model: SecondOpinionModel, own: list[EncodedTexts]) -> torch.Tensor:
    losses = []
    for draw in own:
        wrong = ~torch.from_numpy(draw.right)
        log_probs = model(draw.requests, draw.routes).log_softmax(-1)
        losses.append(-log_probs.masked_fill(wrong, float("-inf")).logsumexp(-1).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("compared", [1, 20_000, 1 << 26], ids=["each", "some", "all"])
def test_logits_are_those_of_each_draw_alone(
    model: SecondOpinionModel, compared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_batched, "_COMPARED", compared)
    own = draws()
    batch = collate_texts(own)
    with torch.inference_mode():
        expected = [(row, len(d.routes)) for d in own for row in model(d.requests, d.routes)]
        parts = list(batch_logits(model, batch, CPU))
    if compared == 1:
        assert len(parts) == len(own)
    if compared == 1 << 26:
        assert len(parts) == 1
    made = [row for _, logits in parts for row in logits]
    assert len(made) == len(expected) == batch.decisions
    for row, routes in expected:
        alike = [
            other
            for other in made
            if torch.isfinite(other).sum() == routes + 1
            and torch.allclose(torch.cat([other[:routes], other[-1:]]), row, atol=1e-4)
        ]
        assert alike, "no row of the batch has these logits"


def test_the_loss_and_its_gradients_are_those_of_each_draw_alone(
    model: SecondOpinionModel,
) -> None:
    own = draws()
    loss_alone(model, own).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    alone = float(loss_alone(model, own).detach())
    model.zero_grad()
    loss, report = batch_loss(model, collate_texts(own), CPU)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(alone, abs=1e-4)
    assert 0 <= report[1] <= sum(len(draw.requests) for draw in own)
    made = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert made.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(made[name], gradient, atol=1e-4, rtol=1e-3), name


def test_texts_of_one_bucket_are_padded_little() -> None:
    batch = collate_texts(draws() * 8)
    padded = sum(bucket.ids.size for bucket in batch.buckets)
    assert len(batch.buckets) <= 8
    assert padded < 1.5 * batch.tokens


def test_the_loss_falls_with_batches_of_another_process(
    base: Path, model: SecondOpinionModel, tmp_path: Path
) -> None:
    encoder = TextsEncoder(encoder_texts(HfTokenizer(base / "tokenizer.json")), max_requests=6)
    mixture = build_mixture({"own": cases()}, [], encoder, seed=0)
    plan = EncoderPlan(
        minutes=5, steps=60, draws_per_step=3, rate=3e-3, warmup=0, decay=0, threads=1
    )
    with closing(Batches(mixture, plan.draws_per_step, 1, collate_texts)) as batches:
        made: Batches[EncodedTexts, TextsBatch] = batches
        progress = EncoderTrainer(model, mixture, plan, tmp_path, made).run()
    first, *_, last = progress.losses
    assert [step for step, _, _ in progress.losses] == [20, 40, 60]
    assert last[1] < 0.8 * first[1]
    assert (progress.packs, progress.decisions > 0) == (180, True)


def test_a_run_with_batches_ends_as_one_without(base: Path, tmp_path: Path) -> None:
    encoder = TextsEncoder(encoder_texts(HfTokenizer(base / "tokenizer.json")), max_requests=6)
    mixture = build_mixture({"own": cases()}, [], encoder, seed=0)
    plan = EncoderPlan(minutes=5, steps=3, draws_per_step=3, rate=1e-4, warmup=0, threads=1)

    def trained(folder: Path, batches: Batches[EncodedTexts, TextsBatch] | None) -> EncoderTrainer:
        trainer = EncoderTrainer(untrained(base)[0], mixture, plan, folder, batches)
        trainer.run()
        return trainer

    with closing(Batches(mixture, plan.draws_per_step, 1, collate_texts)) as batches:
        together = trained(tmp_path / "together", batches)
    alone = trained(tmp_path / "alone", None)
    assert together.progress.decisions == alone.progress.decisions
    assert together.progress.tokens == alone.progress.tokens
    ended = together.averaged.module.state_dict()
    for name, expected in alone.averaged.module.state_dict().items():
        # Adam makes a whole step of the least gradient, even of one that is rounding alone.
        assert (ended[name] - expected).abs().mean() < 1e-4, name


def cases() -> list[Case]:
    words = ("bill", "trip", "code", "song")
    made = []
    for number in range(40):
        names = [words[(number + n) % 4] for n in range(3)]
        label = names[0] if number % 5 else "other"
        routes = tuple(RouteText(name, name) for name in sorted(names))
        request = Request((("user", label if number % 5 else "zzz"),), frozenset({label}))
        made.append(
            Case(f"c{number}", "own", "mixed", routes, request, label, f"d{number}", frozenset())
        )
    return made
