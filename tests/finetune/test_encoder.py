"""Ten steps of training of a tiny second opinion, its export, and the fusion. Skipped where torch
is not installed."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed; only training needs it")
pytest.importorskip("safetensors", reason="safetensors is not installed; only training needs it")

import torch
from router_training import corpus, memory
from router_training.cases import Case, Request, RouteText
from router_training.delta import write_delta
from router_training.encoder_draws import EncodedTexts, TextsEncoder, logits_of
from router_training.encoder_loop import EncoderPlan, EncoderTrainer
from router_training.encoder_model import (
    SecondOpinionModel,
    base_weights,
    blended,
    load_second_opinion,
    trained_weights,
    untrained,
)
from router_training.errors import InputError
from router_training.fusion import (
    Opinions,
    check_shares,
    encoder_alone,
    fit_fusion,
    fit_temperature,
    fused,
)
from router_training.mixture import Mixture, build_mixture

from sidecar.engines.encoder import ADDED, open_encoder
from sidecar.engines.engine_directory import sha256_of
from sidecar.inference.tokenizer import HfTokenizer
from sidecar.prompts.second_opinion import encoder_texts
from tests.engines.tiny_encoder import TINY_ENCODER

WORDS = ("bill", "trip", "code", "song", "meal", "game")
PLAN = EncoderPlan(minutes=5, steps=10, draws_per_step=4, rate=3e-3, warmup=0, decay=0, threads=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY_ENCODER.write(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def encoder(base: Path) -> TextsEncoder:
    return TextsEncoder(encoder_texts(HfTokenizer(base / "tokenizer.json")), max_requests=6)


def cases() -> list[Case]:
    rng = Random(0)
    made = []
    for number in range(40):
        names = rng.sample(WORDS, 3)
        label = names[0] if number % 5 else "other"
        routes = tuple(RouteText(name, name) for name in sorted(names))
        turns = (("user", label if label != "other" else "zzz"),)
        request = Request(turns, frozenset({label}))
        made.append(
            Case(f"c{number}", "own", "mixed", routes, request, label, f"d{number}", frozenset())
        )
    return made


@pytest.fixture
def mixture(encoder: TextsEncoder) -> Mixture[EncodedTexts]:
    return build_mixture({"own": cases()}, [], encoder, seed=0)


def tiny_model(base: Path) -> SecondOpinionModel:
    torch.manual_seed(0)
    model, _ = untrained(base)
    return model


def test_the_loss_falls_in_ten_steps(
    base: Path, mixture: Mixture[EncodedTexts], tmp_path: Path
) -> None:
    losses: list[float] = []

    class Watched(EncoderTrainer):
        def _note(self, outcomes: list[Any]) -> None:
            decisions = sum(outcome.decisions for outcome in outcomes)
            losses.append(sum(outcome.loss for outcome in outcomes) / decisions)

    assert Watched(tiny_model(base), mixture, PLAN, tmp_path).run().step == 10
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_progress_is_that_towards_what_ends_first(
    base: Path, mixture: Mixture[EncodedTexts], tmp_path: Path
) -> None:
    shown: list[float] = []

    class Watched(EncoderTrainer):
        def _show(self, bar: Any, spent: float) -> None:
            super()._show(bar, spent)
            shown.append(bar.n / bar.total)

    Watched(tiny_model(base), mixture, replace(PLAN, minutes=1e6, steps=4), tmp_path).run()
    assert shown == [0.25, 0.5, 0.75, 1.0]


def test_a_resumed_run_goes_on_where_it_stopped(
    base: Path, mixture: Mixture[EncodedTexts], tmp_path: Path
) -> None:
    EncoderTrainer(tiny_model(base), mixture, PLAN, tmp_path).run()
    second = EncoderTrainer(tiny_model(base), mixture, PLAN, tmp_path)
    second.resume(tmp_path / "checkpoint.pt")
    assert second.progress.step == 10
    assert second.run().step == 20


def test_an_interrupted_run_ends_its_step_and_goes_on_from_there(
    base: Path, mixture: Mixture[EncodedTexts], tmp_path: Path
) -> None:
    class Interrupted(EncoderTrainer):
        def _note(self, outcomes: list[Any]) -> None:
            if self.progress.step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"--resume .*checkpoint\.pt goes on"):
        Interrupted(tiny_model(base), mixture, PLAN, tmp_path).run()
    second = EncoderTrainer(tiny_model(base), mixture, PLAN, tmp_path)
    second.resume(tmp_path / "checkpoint.pt")
    assert second.progress.step == 3


def test_a_run_whose_weights_run_away_ends(
    base: Path, mixture: Mixture[EncodedTexts], tmp_path: Path
) -> None:
    model = tiny_model(base)
    model.second_opinion.scales.data.fill_(torch.nan)
    with pytest.raises(InputError, match=r"step 1: the loss is not a number .* a lower --rate"):
        EncoderTrainer(model, mixture, PLAN, tmp_path).run()
    assert not (tmp_path / "checkpoint.pt").exists()


def test_words_stay_as_they_are(base: Path, mixture: Mixture[EncodedTexts], tmp_path: Path) -> None:
    model, before = tiny_model(base), tiny_model(base).state_dict()
    EncoderTrainer(model, mixture, EncoderPlan(minutes=5, steps=2, threads=1), tmp_path).run()
    same = {name for name, t in model.state_dict().items() if torch.equal(t, before[name])}
    assert same == {"embeddings.word_embeddings.weight"}


def test_what_is_exported_decides_as_what_was_trained(
    base: Path, encoder: TextsEncoder, mixture: Mixture[EncodedTexts], tmp_path: Path
) -> None:
    trained = tiny_model(base)
    EncoderTrainer(trained, mixture, PLAN, tmp_path).run()
    tuned = {name: tensor.numpy() for name, tensor in trained.state_dict().items()}
    added = {name: tuned.pop(name) for name in ADDED}
    source = open_encoder(base)
    path = tmp_path / "second_opinion.safetensors"
    write_delta(path, base_weights(source), tuned, 4, sha256_of(source.weights_file), added)
    shipped = load_second_opinion(base, path, None)
    pairs = zip(
        logits_of(trained, encoder, cases()), logits_of(shipped, encoder, cases()), strict=True
    )
    for (case, before), (same_case, after) in pairs:
        assert case.id == same_case.id
        assert after == pytest.approx(before, abs=0.1 * np.ptp(before))


def test_adapters_are_averaged_like_runs(
    base: Path, mixture: Mixture[EncodedTexts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exported(name: str, *runs: Path) -> Path:
        words = ["--encoder", str(base), "--out", str(tmp_path / name), "--checkpoint"]
        monkeypatch.setattr(sys, "argv", ["export.py", "second-opinion", *words, *map(str, runs)])
        import_module("export").main()
        return tmp_path / name / "second_opinion.safetensors"

    def weights(path: Path) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = load_second_opinion(base, path, None).state_dict()
        return found

    EncoderTrainer(tiny_model(base), mixture, PLAN, tmp_path / "run").run()
    one = exported("one", tmp_path / "run" / "checkpoint.pt")
    rest, both = (
        weights(one),
        weights(exported("both", one, one, exported_untrained(base, tmp_path))),
    )
    start = tiny_model(base).state_dict()
    for name in ADDED:
        expected = (2 * rest[name] + start[name]) / 3
        assert torch.allclose(both[name], expected, atol=2e-3), name


def test_shares_of_a_change_are_scored_on_what_the_run_has_seen_and_has_not(
    base: Path,
    mixture: Mixture[EncodedTexts],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    EncoderTrainer(tiny_model(base), mixture, PLAN, tmp_path).run()
    lines = [as_line(each, family) for family in ("own", "shop") for each in cases()]
    (tmp_path / "cases.jsonl").write_text("".join(lines))
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(corpus, "held_out", lambda key: True)
    words = "--encoder {0} --checkpoint {1}/checkpoint.pt --cases {1}/cases.jsonl --without shop"
    given = [*words.format(base, tmp_path).split(), "--blend", "1", "0"]
    monkeypatch.setattr(sys, "argv", ["evaluate_encoder.py", *given])
    import_module("evaluate_encoder").main()
    printed = capsys.readouterr().out.replace("}\n{", "},{")
    whole, none = json.loads(f"[{printed}]")
    assert [each["blend"] for each in (whole, none)] == [1.0, 0.0]
    assert set(whole["unseen"]["families"]) == {"shop"}
    assert whole["seen"]["log_loss"] < none["seen"]["log_loss"]


def as_line(of: Case, family: str) -> str:
    content = {
        "id": f"{family}-{of.id}",
        "family": family,
        "conversation": [{"role": role, "content": text} for role, text in of.request.turns],
        "routes": [{"name": route.name, "description": route.description} for route in of.routes],
        "label": of.label,
    }
    return json.dumps(content) + "\n"


def exported_untrained(base: Path, folder: Path) -> Path:
    model, source = untrained(base)
    untuned = base_weights(source)
    added = {name: model.state_dict()[name].numpy() for name in ADDED}
    path = folder / "untrained.safetensors"
    write_delta(path, untuned, untuned, 4, sha256_of(source.weights_file), added)
    return path


def test_texts_that_are_computed_together_are_as_each_alone(base: Path) -> None:
    model = tiny_model(base).eval()
    texts = [((1, *range(5, 5 + length)), (0,) * (length + 1)) for length in (3, 9, 1, 4, 9)]
    with torch.inference_mode():
        together = model.states(texts)
        for text, states in zip(texts, together, strict=True):
            assert torch.allclose(states, model.states([text])[0], atol=1e-5)


def test_the_average_lags_behind_the_weights_and_is_what_a_run_ends_with(
    base: Path, mixture: Mixture[EncodedTexts], tmp_path: Path
) -> None:
    model, before = tiny_model(base), tiny_model(base).state_dict()
    plan = EncoderPlan(minutes=5, steps=4, warmup=0, decay=0, average=0.9, threads=1)
    EncoderTrainer(model, mixture, plan, tmp_path).run()
    ended = trained_weights(tmp_path / "checkpoint.pt")
    moved, lagging = (
        sum(float((w[name] - before[name]).norm()) for name in before)
        for w in (model.state_dict(), ended)
    )
    assert 0 < lagging < moved


def test_a_run_can_begin_with_what_another_ended_with(
    base: Path, mixture: Mixture[EncodedTexts], tmp_path: Path
) -> None:
    EncoderTrainer(tiny_model(base), mixture, PLAN, tmp_path).run()
    second = EncoderTrainer(tiny_model(base), mixture, PLAN, tmp_path / "second")
    second.start_from(tmp_path / "checkpoint.pt")
    ended = trained_weights(tmp_path / "checkpoint.pt")
    assert all(torch.equal(w, ended[name]) for name, w in second.model.state_dict().items())
    assert second.progress.step == 0


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.25, 1.5), (1.0, 3.0)])
def test_a_blend_lies_between_untuned_and_tuned(share: float, expected: float) -> None:
    untuned, tuned = {"w": np.array([1.0], np.float32)}, {"w": np.array([3.0], np.float32)}
    assert blended(untuned, tuned, share)["w"] == pytest.approx([expected])


def opinions(weight: float) -> list[Opinions]:
    """Right by `weight` times what the encoder says, whatever the language model does."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(400):
        encoder, language_model = rng.normal(size=4), np.log(rng.dirichlet(np.ones(4)))
        probabilities = np.exp(weight * encoder) / np.exp(weight * encoder).sum()
        right = np.arange(4) == rng.choice(4, p=probabilities)
        made.append(Opinions(f"f{number % 2}", language_model, encoder, right))
    return made


def test_the_fusion_trusts_who_is_right() -> None:
    found = fit_fusion(opinions(3.0))
    assert found.encoder == pytest.approx(3.0, rel=0.2)
    assert 0 < found.language_model < 0.3
    assert abs(found.other_bias) < 0.5
    assert fused(opinions(3.0)[0], found).sum() == pytest.approx(1)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 3.0), (1.0, 1.0)])
def test_a_family_counts_by_its_share(share: float, expected: float) -> None:
    cases = [
        *(case for case in opinions(3.0) if case.family == "f0"),
        *(case for case in opinions(1.0) if case.family == "f1"),
    ]
    assert fit_fusion(cases, {"f1": share}).encoder == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize(
    ("shares", "named"),
    [
        ({"f2": 0.5}, "f2"),
        ({"f0": 1.5}, "1.5"),
        ({"f0": -0.1}, "-0.1"),
        ({"f0": 0.5, "f1": 0.2}, "0.2"),
        ({"f0": 0.5, "f1": 0.6}, "0.6"),
    ],
)
def test_shares_that_are_none_are_refused(shares: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        fit_fusion(opinions(3.0), shares)


def test_shares_of_all_families_need_not_come_to_1_to_the_last_digit() -> None:
    assert check_shares({"a", "b", "c"}, {"a": 0.1, "b": 0.2, "c": 0.7}) == 0
    assert check_shares({"a", "b"}, {"a": 0.9}) == pytest.approx(0.1)


def test_a_checkpoint_of_another_model_is_not_scored(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"model": {"model.norm.weight": torch.ones(4)}}, tmp_path / "other.pt")
    (tmp_path / "cases.jsonl").write_text("".join(as_line(each, "own") for each in cases()))
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: None)
    words = f"--encoder {base} --checkpoint {tmp_path}/other.pt --cases {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["evaluate_encoder.py", *words.split()])
    with pytest.raises(InputError, match=r"other\.pt: has the weights of another model"):
        import_module("evaluate_encoder").main()


@pytest.mark.parametrize("name", ["language_model", "encoder"])
def test_what_is_no_number_is_no_opinion(name: str) -> None:
    changed: dict[str, Any] = {name: np.array([np.nan, 1.0, 1.0, 1.0])}
    with pytest.raises(InputError, match=f"{name}: what it says of a case of f0 is not a number"):
        replace(opinions(1.0)[0], **changed)


def test_the_encoder_has_a_scale_of_its_own() -> None:
    found = fit_fusion(opinions(3.0))
    assert found.alone_encoder == pytest.approx(3.0, rel=0.2)
    assert abs(found.alone_other_bias) < 0.5


def test_what_the_encoder_decides_alone_is_told_by_probability() -> None:
    cases, found = opinions(3.0), fit_fusion(opinions(3.0))
    table = encoder_alone(cases, found, (0.4, 0.9, 1.0))
    shares = [row["share"] for row in table]
    assert shares[0] > shares[1] > shares[2] == 0
    assert table[1]["right"] > table[0]["right"] > table[0]["all_right"] - 0.1
    both = np.mean([case.right[fused(case, found).argmax()] for case in cases])
    assert table[2] == {"from": 1.0, "share": 0.0, "all_right": pytest.approx(both)}


def test_a_language_model_that_knows_nothing_is_believed_little() -> None:
    assert fit_temperature(opinions(3.0)) > 5
