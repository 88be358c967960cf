"""Ten steps of training on a tiny random model. Skipped where torch is not installed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest

pytest.importorskip("torch", reason="torch is not installed; only training needs it")
pytest.importorskip("safetensors", reason="safetensors is not installed; only training needs it")

import torch
from router_training import batched
from router_training.base import Base
from router_training.batched import Batch, Batches, batch_log_probs, by_length, collate
from router_training.cases import Case, Request, RouteText
from router_training.encoding import EncodedDraw, Encoder
from router_training.errors import InputError
from router_training.llama import Llama, LlamaShape, blocks_of_sight
from router_training.loading import load_model
from router_training.loop import Plan, Trainer, candidate_log_probs
from router_training.mixture import Mixture, build_mixture
from router_training.packing import pack_prompts
from torch import Tensor

from sidecar.inference.tokenizer import HfTokenizer

WORDS = ("parcel", "invoice", "password", "weather", "music", "flight", "recipe", "garden")
SHAPE = LlamaShape(
    vocab_size=400, hidden=64, intermediate=96, layers=2, heads=4, kv_heads=2, context=512
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    return tokenizer_of((*WORDS, "other"), tmp_path_factory.mktemp("tokenizer"))


def tokenizer_of(words: Sequence[str], folder: Path) -> HfTokenizer:
    """Bytes, and a token for each word that can be a label."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    merges = []
    for word in ("\u0120" + word for word in words):
        for end in range(2, len(word) + 1):
            merge = (word[: end - 1], word[end - 1])
            if word[:end] not in vocabulary:
                merges.append(merge)
                vocabulary[word[:end]] = len(vocabulary)
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    path = folder / "tokenizer.json"
    built.save(str(path))
    return HfTokenizer(path)


def forty_cases() -> list[Case]:
    rng = Random(0)
    cases = []
    for number in range(40):
        names = rng.sample(WORDS, 3)
        label = names[0] if number % 5 else "other"
        about = label if label != "other" else "nothing"
        routes = tuple(RouteText(name, name) for name in sorted(names))
        request = Request((("user", f"about {about}"),), frozenset({label}))
        cases.append(
            Case(f"c{number}", "own", "mixed", routes, request, label, f"d{number}", frozenset())
        )
    return cases


@pytest.fixture
def mixture(tokenizer: HfTokenizer) -> Mixture[EncodedDraw]:
    encoder = Encoder(tokenizer, max_prompt=512, max_pack=512)
    return build_mixture({"own": forty_cases()}, [], encoder, seed=0)


def tiny_model() -> Llama:
    torch.manual_seed(0)
    model = Llama(SHAPE)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.3)
    return model


PLAN = Plan(minutes=5, steps=10, packs_per_step=8, rate=5e-3, warmup=0, decay=0, frozen_layers=0)


def test_the_loss_falls_in_ten_steps(mixture: Mixture[EncodedDraw], tmp_path: Path) -> None:
    losses: list[float] = []

    class Watched(Trainer):
        def _note(self, outcomes: list[Any]) -> None:
            decisions = sum(outcome.decisions for outcome in outcomes)
            losses.append(sum(outcome.loss for outcome in outcomes) / decisions)

    progress = Watched(tiny_model(), mixture, PLAN, tmp_path).run()
    assert progress.step == 10
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_progress_is_that_towards_what_ends_first(
    mixture: Mixture[EncodedDraw], tmp_path: Path
) -> None:
    shown: list[float] = []

    class Watched(Trainer):
        def _show(self, bar: Any, spent: float) -> None:
            super()._show(bar, spent)
            shown.append(bar.n / bar.total)

    Watched(tiny_model(), mixture, replace(PLAN, minutes=1e6, steps=4), tmp_path).run()
    assert shown == [0.25, 0.5, 0.75, 1.0]


def test_a_resumed_run_goes_on_where_it_stopped(
    mixture: Mixture[EncodedDraw], tmp_path: Path
) -> None:
    Trainer(tiny_model(), mixture, PLAN, tmp_path).run()
    second = Trainer(tiny_model(), mixture, PLAN, tmp_path)
    second.resume(tmp_path / "checkpoint.pt")
    assert second.progress.step == 10
    assert second.run().step == 20
    assert json.loads((tmp_path / "progress.json").read_text())["packs"] == 160


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_step_and_goes_on_from_there(
    number: signal.Signals, mixture: Mixture[EncodedDraw], tmp_path: Path
) -> None:
    class Interrupted(Trainer):
        def _note(self, outcomes: list[Any]) -> None:
            if self.progress.step == 3:
                os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=r"--resume .*checkpoint\.pt goes on"):
        Interrupted(tiny_model(), mixture, PLAN, tmp_path).run()
    assert signal.getsignal(number) is handler
    second = Trainer(tiny_model(), mixture, replace(PLAN, steps=2), tmp_path)
    second.resume(tmp_path / "checkpoint.pt")
    assert second.progress.step == 3
    assert second.run().step == 5


def test_an_interrupted_run_goes_on_with_its_weights_and_not_their_average(
    mixture: Mixture[EncodedDraw], tmp_path: Path
) -> None:
    class Interrupted(Trainer):
        def _note(self, outcomes: list[Any]) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Interrupted(tiny_model(), mixture, replace(PLAN, averaging=0.9), tmp_path).run()
    state = torch.load(tmp_path / "checkpoint.pt")
    model = tiny_model()
    model.load_state_dict(state["model"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert not all(map(torch.equal, trained, state["average"]))


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_a_run_that_goes_on_ends_with_what_it_has_trained(
    averaging: float, mixture: Mixture[EncodedDraw], tmp_path: Path
) -> None:
    Trainer(tiny_model(), mixture, replace(PLAN, averaging=0.9), tmp_path).run()
    before = torch.load(tmp_path / "checkpoint.pt")["model"]
    model = tiny_model()
    second = Trainer(model, mixture, replace(PLAN, averaging=averaging), tmp_path)
    second.resume(tmp_path / "checkpoint.pt")
    second.run()
    moved = [name for name, tensor in model.state_dict().items() if (tensor != before[name]).any()]
    assert moved
    ended = load_checkpoint(tmp_path / "checkpoint.pt")
    assert all(torch.equal(tensor, ended[name]) for name, tensor in model.state_dict().items())


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    model = tiny_model()
    weights = model.state_dict()
    untold: Any = None
    base = Base(path, path, SHAPE, weights, untold)
    return dict(load_model(base, path).state_dict())


def test_a_run_that_goes_on_in_batches_of_another_size_takes_the_next_draws(
    mixture: Mixture[EncodedDraw], tmp_path: Path
) -> None:
    asked: list[int] = []

    class Made:
        def batch(self, number: int) -> list[Batch]:
            asked.append(number)
            return [collate([mixture.draw(number)])]

    plan = replace(PLAN, steps=2, packs_per_step=8)
    Trainer(tiny_model(), mixture, plan, tmp_path, Made()).run()
    second = Trainer(tiny_model(), mixture, replace(plan, packs_per_step=4), tmp_path, Made())
    second.resume(tmp_path / "checkpoint.pt")
    second.run()
    assert asked == [0, 1, 4, 5]


def test_a_run_whose_weights_run_away_ends_and_leaves_what_was_saved(
    mixture: Mixture[EncodedDraw], tmp_path: Path
) -> None:
    class RunsAway(Trainer):
        def save(self) -> None:
            super().save()
            if self.progress.step == 3:
                for parameter in self.model.parameters():
                    parameter.data.fill_(torch.nan)

    with pytest.raises(InputError, match=r"step 4: the loss is not a number .* a lower --rate"):
        RunsAway(tiny_model(), mixture, replace(PLAN, save_minutes=0.0), tmp_path).run()
    state = torch.load(tmp_path / "checkpoint.pt")
    assert state["progress"]["step"] == 3
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_a_run_goes_on_where_it_cannot_be_saved_meanwhile(
    mixture: Mixture[EncodedDraw], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(Trainer):
        def save(self) -> None:
            if self.progress.step < PLAN.steps:
                raise InputError("checkpoint.pt: cannot be written")
            super().save()

    plan = replace(PLAN, save_minutes=0.0)
    assert Full(tiny_model(), mixture, plan, tmp_path).run().step == PLAN.steps
    assert "checkpoint.pt: cannot be written; the run goes on" in caplog.text
    assert (tmp_path / "checkpoint.pt").exists()


def test_a_run_goes_on_with_the_layers_frozen_that_were(
    mixture: Mixture[EncodedDraw], tmp_path: Path
) -> None:
    plan = replace(PLAN, steps=1, packs_per_step=1)
    Trainer(tiny_model(), mixture, plan, tmp_path).run()
    another = Trainer(tiny_model(), mixture, replace(plan, frozen_layers=1), tmp_path)
    with pytest.raises(InputError, match=r"checkpoint\.pt: was .* --frozen-layers 0, not 1"):
        another.resume(tmp_path / "checkpoint.pt")


def test_frozen_layers_and_embeddings_stay_as_they_are(
    mixture: Mixture[EncodedDraw], tmp_path: Path
) -> None:
    model, before = tiny_model(), tiny_model().state_dict()
    plan = Plan(minutes=5, steps=2, packs_per_step=2, frozen_layers=1)
    Trainer(model, mixture, plan, tmp_path).run()
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed
    assert all(name.startswith(("model.layers.1.", "model.norm.")) for name in changed)


def test_draws_depend_on_their_number_alone(mixture: Mixture[EncodedDraw]) -> None:
    first = [mixture.draw(number).pack.ids.tolist() for number in (3, 4)]
    again = [mixture.draw(number).pack.ids.tolist() for number in (4, 3)]
    assert first == again[::-1]


def test_a_packed_prompt_gets_the_numbers_it_gets_alone() -> None:
    model = tiny_model().eval()
    rng = Random(1)
    shared = [rng.randrange(300) for _ in range(150)]
    prompts = [[*shared, *(rng.randrange(300) for _ in range(40))] for _ in range(4)]

    def scores(prompts: list[list[int]]) -> torch.Tensor:
        pack = pack_prompts(prompts)
        arrays = (pack.ids, pack.positions, pack.mask, pack.read_at)
        with torch.inference_mode():
            return model.logits(model(*(torch.from_numpy(array) for array in arrays)))

    alone = torch.cat([scores([prompt]) for prompt in prompts])
    torch.testing.assert_close(scores(prompts), alone, atol=1e-4, rtol=1e-4)


def test_blocks_leave_out_only_what_no_row_sees() -> None:
    mask = torch.from_numpy(pack_prompts([[1, *range(2, 200)], [1, *range(300, 500)]]).mask)
    rebuilt = torch.zeros_like(mask)
    for rows, columns, bias in blocks_of_sight(mask, torch.float32):
        rebuilt[rows, columns] = bias == 0
    assert torch.equal(rebuilt, mask)


def test_probabilities_are_over_the_labels_of_the_draw(mixture: Mixture[EncodedDraw]) -> None:
    encoded = mixture.draw(0)
    with torch.inference_mode():
        log_probs = candidate_log_probs(tiny_model(), encoded, torch.device("cpu"))
    assert log_probs.shape == (len(encoded.right), len(encoded.names))
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(len(encoded.right)))


def test_batches_have_the_probabilities_of_their_packs(mixture: Mixture[EncodedDraw]) -> None:
    model = tiny_model()
    draws = [mixture.draw(number) for number in range(5)]
    assert len({len(draw.pack.ids) for draw in draws}) > 1, "padding is to be seen"

    with torch.inference_mode():
        together = batch_log_probs(model, collate(draws), torch.device("cpu"))
        alone = [candidate_log_probs(model, draw, torch.device("cpu")) for draw in draws]

    rows = iter(together)
    for log_probs in alone:
        for expected in log_probs:
            torch.testing.assert_close(next(rows)[: len(expected)], expected)
    assert next(rows, None) is None


def test_compiled_layers_are_for_several_packs_and_compute_the_same(
    mixture: Mixture[EncodedDraw], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the compiler makes of them takes a minute to make, so that here it is what it was."""
    compiled: list[int] = []

    def counting(function: Callable[..., Tensor], *, dynamic: bool) -> Callable[..., Tensor]:
        def counted(*arguments: Any) -> Tensor:
            compiled.append(len(arguments[1]))
            return function(*arguments)

        return counted

    batched._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", counting)
    model = tiny_model()
    draws = [mixture.draw(number) for number in range(3)]
    with torch.inference_mode():
        plain = batch_log_probs(model, collate(draws), torch.device("cpu"))
        model.compiled = True
        together = batch_log_probs(model, collate(draws), torch.device("cpu"))
        batch_log_probs(model, collate(draws[:1]), torch.device("cpu"))
    batched._compiled.cache_clear()
    torch.testing.assert_close(together, plain)
    assert compiled == [3] * SHAPE.layers


def test_batches_are_made_in_order_by_other_processes(mixture: Mixture[EncodedDraw]) -> None:
    batches = Batches(mixture, 2, 2, collate)
    try:
        made = [batches.batch(number) for number in range(4, 9)]
    finally:
        batches.close()

    for number, batch in zip(range(4, 9), made, strict=True):
        expected = collate([mixture.draw(2 * number), mixture.draw(2 * number + 1)])
        assert (batch.ids == expected.ids).all()
        assert (batch.right == expected.right).all()


def test_batches_are_made_on_where_ctrl_c_reaches_every_process(
    mixture: Mixture[EncodedDraw],
) -> None:
    batches = Batches(mixture, 2, 1, by_length)
    try:
        batches.batch(0)
        for process in batches._pool._processes:
            os.kill(process, signal.SIGINT)
        for number in range(1, 6):
            batches.batch(number)
    finally:
        batches.close()


def test_a_pack_far_longer_than_the_others_does_not_pad_them(
    mixture: Mixture[EncodedDraw],
) -> None:
    usual = [mixture.draw(number) for number in range(6)]
    ids = list(range(1, 400))
    pack = pack_prompts([ids])
    longer = replace(usual[0], pack=pack, right=usual[0].right[:1])
    batches = by_length([*usual[:3], longer, *usual[3:]])
    assert [len(batch.ids) for batch in batches] == [6, 1]
    assert batches[0].ids.shape[1] < len(ids) <= batches[1].ids.shape[1]


def test_dropout_is_for_training_alone(mixture: Mixture[EncodedDraw], tmp_path: Path) -> None:
    class Watched:
        """Batches that note what the model drops while it is trained."""

        seen: ClassVar[list[float]] = []

        def batch(self, number: int) -> list[Batch]:
            self.seen.append(model.dropout)
            return by_length([mixture.draw(number)])

    model = tiny_model()
    plan = Plan(minutes=5, steps=2, packs_per_step=1, dropout=0.1, frozen_layers=0)
    Trainer(model, mixture, plan, tmp_path, Watched()).run()
    assert Watched.seen == [0.1, 0.1]
    assert model.dropout == 0.0


def test_what_is_frozen_is_said_anew_for_each_run() -> None:
    model = tiny_model()
    model.freeze(2)
    model.freeze(1)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(name.startswith(("model.layers.0.", "model.embed_tokens.")) for name in frozen)


def test_noted_losses_are_of_the_steps_since_the_last_note(
    mixture: Mixture[EncodedDraw], tmp_path: Path
) -> None:
    losses: list[float] = []

    class Watched(Trainer):
        def _note(self, outcomes: list[Any]) -> None:
            losses.append(outcomes[0].loss / outcomes[0].decisions)
            super()._note(outcomes)

    class Made:
        def batch(self, number: int) -> list[Batch]:
            return [collate([mixture.draw(0)])]

    plan = Plan(minutes=5, steps=40, packs_per_step=8, rate=5e-3, decay=0, frozen_layers=0)
    progress = Watched(tiny_model(), mixture, plan, tmp_path, Made()).run()
    noted = [loss for _, loss, _ in progress.losses]
    assert noted == [
        pytest.approx(sum(losses[:20]) / 20, abs=1e-3),
        pytest.approx(sum(losses[20:]) / 20, abs=1e-3),
    ]
