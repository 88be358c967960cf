"""Training of the second opinion: draws in, steps out, within a time budget, resumable."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from router_training.checkpoint import (
    interrupted,
    load_weights,
    read_checkpoint,
    save_meanwhile,
    write_checkpoint,
)
from router_training.encoder_batched import TextsBatch, batch_loss
from router_training.encoder_draws import EncodedTexts
from router_training.encoder_model import SecondOpinionModel, trained_weights
from router_training.interruption import Interruption
from router_training.loop import Outcome, Progress, budget_bar, check_finite, recent_means
from router_training.running_time import RunningTime

_NOTED_STEPS = 20
"""Of an accelerator, what it has computed is read once in so many steps: each time waits for it."""


class TextDraws(Protocol):
    def draw(self, number: int) -> EncodedTexts: ...


class MadeTexts(Protocol):
    def batch(self, number: int) -> TextsBatch: ...


@dataclass(frozen=True, slots=True)
class EncoderPlan:
    """How to train.

    Args:
        minutes, steps: stop at whichever comes first.
        draws_per_step: draws whose gradients make one step; every draw counts the same.
        rate: peak learning rate of the encoder: warmed up over `warmup` steps, kept, and brought
            down over the last `decay` of the budget, at most to a fiftieth.
        head_rate: of what the base has not.
        average: of the running average of the weights, what a step leaves of it. It is saved beside
            the weights, and what is scored and exported.
        threads: of computation.
        save_minutes: time between checkpoints.
    """

    minutes: float = 60.0
    steps: int = 1_000_000
    draws_per_step: int = 2
    rate: float = 1e-4
    head_rate: float = 5e-3
    warmup: int = 30
    decay: float = 0.6
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.99
    threads: int = 2
    save_minutes: float = 10.0
    seed: int = 0


@dataclass(slots=True)
class _Unread:
    """What the steps since the last reading have reported; `report` is on the device: the sum of
    losses and the number of right answers."""

    report: Tensor
    decisions: int = 0
    tokens: int = 0

    def add(self, report: Tensor, batch: TextsBatch) -> None:
        self.report += report
        self.decisions += batch.decisions
        self.tokens += batch.tokens

    def read(self) -> Outcome:
        """Waits for the device, and begins anew."""
        loss, right = self.report.tolist()
        outcome = Outcome(loss, round(right), self.decisions, self.tokens)
        self.report.zero_()
        self.decisions = self.tokens = 0
        return outcome


class EncoderTrainer:
    """Trains `model` in place, on the device that it is on. `folder` receives `checkpoint.pt`,
    `progress.json`.

    Args:
        batches: the same draws, those of a step at once, for an accelerator.
    """

    def __init__(
        self,
        model: SecondOpinionModel,
        draws: TextDraws,
        plan: EncoderPlan,
        folder: Path,
        batches: MadeTexts | None = None,
    ) -> None:
        self.model = model
        self.device = model.second_opinion.scales.device
        self._batches = batches
        self.draws = draws
        self.plan = plan
        self.folder = folder
        self.progress = Progress()
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(plan.average))
        self._body = model.body_parameters()
        self._optimizer = torch.optim.AdamW(
            [
                {"params": self._body, "weight_decay": plan.weight_decay},
                {"params": model.head_parameters(), "weight_decay": 0.0},
            ],
            lr=plan.rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        # Of batches, one outcome stands for all the steps since the last one was read.
        kept = 1 if batches else _NOTED_STEPS * plan.draws_per_step
        self._recent: deque[Outcome] = deque(maxlen=kept)
        self._unread = _Unread(torch.zeros(2, device=self.device))
        folder.mkdir(parents=True, exist_ok=True)

    def start_from(self, path: Path) -> None:
        """The weights that another run ended with; progress and optimizer begin anew."""
        weights = trained_weights(path)
        load_weights(self.model, weights, path)
        self.averaged.module.load_state_dict(weights)

    def resume(self, path: Path) -> None:
        state = read_checkpoint(path, "averaged", "optimizer", "progress")
        load_weights(self.model, state["model"], path)
        self.averaged.module.load_state_dict(state["averaged"])
        self.averaged.n_averaged.fill_(state["progress"]["step"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def save(self) -> None:
        """Of tensors on the CPU, which load on every machine. Raises OSError, InputError if it
        cannot be written."""
        state = {
            "model": self.model.state_dict(),
            "averaged": self.averaged.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "progress": asdict(self.progress),
            "plan": asdict(self.plan),
        }
        write_checkpoint(self.folder, _on_cpu(state))

    def run(self) -> Progress:
        """Train until the budget is spent; saves at the end and every `save_minutes`. Raises
        KeyboardInterrupt after a signal, when the step has ended and is saved."""
        torch.set_num_threads(self.plan.threads)
        self.model.train()
        before, first, saved = self.progress.seconds, self.progress.step, 0.0
        bar = budget_bar()
        with bar, RunningTime() as time, Interruption() as interruption:
            while (
                spent := self._share_spent(time.seconds, first)
            ) < 1.0 and not interruption.asked:
                self._note(self._step(self._share_of_rate(spent)))
                self.progress.seconds = before + time.seconds
                self._show(bar, self._share_spent(time.seconds, first))
                if time.seconds - saved > 60 * self.plan.save_minutes:
                    save_meanwhile(self.save)
                    saved = time.seconds
        self.model.eval()
        self.save()
        if interruption.asked:
            raise interrupted(self.folder)
        return self.progress

    def _share_spent(self, seconds: float, first: int) -> float:
        steps = self.progress.step - first
        return max(seconds / 60 / self.plan.minutes, steps / self.plan.steps)

    def _share_of_rate(self, spent: float) -> float:
        plan = self.plan
        warm = min(1.0, (self.progress.step + 1) / plan.warmup) if plan.warmup else 1.0
        left = (1.0 - spent) / plan.decay if plan.decay else 1.0
        return warm * max(0.02, min(1.0, left))

    def _step(self, share: float) -> list[Outcome]:
        outcomes = self._gradients()
        torch.nn.utils.clip_grad_norm_(self._body, self.plan.clip)
        rates = (self.plan.rate, self.plan.head_rate)
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.averaged.update_parameters(self.model)
        self.progress.step += 1
        self.progress.packs += self.plan.draws_per_step
        return outcomes

    def _gradients(self) -> list[Outcome]:
        """Adds those of the draws of a step."""
        if self._batches is None:
            numbers = range(self.progress.packs, self.progress.packs + self.plan.draws_per_step)
            outcomes = [self._work(number) for number in numbers]
            self._count(sum(o.decisions for o in outcomes), sum(o.tokens for o in outcomes))
            return outcomes
        batch = self._batches.batch(self.progress.packs // self.plan.draws_per_step)
        loss, report = batch_loss(self.model, batch, self.device)
        loss.backward()
        self._count(batch.decisions, batch.tokens)
        self._unread.add(report, batch)
        noted = (self.progress.step + 1) % _NOTED_STEPS == 0
        return [self._unread.read()] if noted else []

    def _count(self, decisions: int, tokens: int) -> None:
        self.progress.decisions += decisions
        self.progress.tokens += tokens

    def _work(self, number: int) -> Outcome:
        """Adds the gradients of one draw."""
        encoded = self.draws.draw(number)
        logits: Tensor = self.model(encoded.requests, encoded.routes)
        right = torch.from_numpy(encoded.right).to(self.device)
        losses = -logits.log_softmax(-1).masked_fill(~right, float("-inf")).logsumexp(-1)
        (losses.mean() / self.plan.draws_per_step).backward()
        hits = right.gather(1, logits.argmax(-1, keepdim=True)).sum()
        return Outcome(losses.sum().item(), int(hits), len(right), encoded.tokens)

    def _note(self, outcomes: list[Outcome]) -> None:
        check_finite(outcomes, self.progress.step)
        self._recent.extend(outcomes)
        if self.progress.step % _NOTED_STEPS == 0:
            loss, accuracy = recent_means(self._recent)
            self.progress.losses.append((self.progress.step, round(loss, 4), round(accuracy, 4)))

    def _show(self, bar: tqdm[Any], spent: float) -> None:
        loss, accuracy = recent_means(self._recent)
        bar.n = min(1.0, spent)
        rate = self.progress.tokens / max(self.progress.seconds, 1e-9)
        bar.set_postfix_str(
            f"step {self.progress.step} loss {loss:.3f} right {accuracy:.3f} {rate:.0f} tokens/s "
            f"{self.progress.decisions} decisions",
            refresh=False,
        )
        bar.update(0)


def _on_cpu(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_on_cpu(value) for value in state]
    return state
