"""The training loop: packs in, steps out, within a time budget, resumable.

Every CPU thread works on a pack of its own and takes the next one when it is done: on shared cores
that wastes less than dividing each matrix product between them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from router_training.batched import Batch, Draws, batch_log_probs
from router_training.checkpoint import (
    interrupted,
    load_weights,
    read_checkpoint,
    save_meanwhile,
    write_checkpoint,
)
from router_training.descent import Descent
from router_training.encoding import EncodedDraw
from router_training.errors import InputError
from router_training.interruption import Interruption
from router_training.llama import Llama
from router_training.running_time import RunningTime

_NOTED_STEPS = 20


class MadeBatches(Protocol):
    def batch(self, number: int) -> Sequence[Batch]: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train.

    Args:
        minutes, steps: stop at whichever comes first.
        packs_per_step: packs whose gradients make one step.
        rate: peak learning rate: warmed up over `warmup` steps, kept, and brought to a tenth over
            the last `decay` of the budget (0 keeps it, for a run that is to be resumed).
        frozen_layers: lowest layers that stay as they are, the embeddings with them.
        threads: packs worked on at once, one core each; on an accelerator one.
        averaging: weight of the past in the running average of the weights per step; 0 is off.
        dropout: share of what each layer adds that is left out, on an accelerator.
        save_minutes: time between checkpoints.
    """

    minutes: float = 60.0
    steps: int = 1_000_000
    packs_per_step: int = 4
    rate: float = 2e-4
    warmup: int = 20
    decay: float = 0.25
    frozen_layers: int = 10
    threads: int = 2
    averaging: float = 0.0
    dropout: float = 0.0
    save_minutes: float = 10.0
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0


@dataclass(slots=True)
class Progress:
    """What a checkpoint knows of the run so far; sums over all its sittings."""

    step: int = 0
    packs: int = 0
    tokens: int = 0
    decisions: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float, float]] = field(default_factory=list)
    """Step, mean loss and mean accuracy of the steps since the last entry."""


@dataclass(frozen=True, slots=True)
class Outcome:
    loss: float
    right: int
    decisions: int
    tokens: int


def device_tensors(encoded: EncodedDraw, device: torch.device) -> tuple[Tensor, ...]:
    pack = encoded.pack
    arrays = (pack.ids, pack.positions, pack.mask, pack.read_at, encoded.labels, encoded.right)
    return tuple(torch.from_numpy(array).to(device) for array in arrays)


def candidate_log_probs(model: Llama, encoded: EncodedDraw, device: torch.device) -> Tensor:
    """Natural-log probability of every candidate: [requests, candidates]."""
    ids, positions, mask, read_at, labels, _ = device_tensors(encoded, device)
    with mixed_precision(device):
        hidden = model(ids, positions, mask, read_at)
    return model.logits(hidden, labels).log_softmax(-1)


def mixed_precision(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 where the device multiplies it faster than float32."""
    if device.type == "cuda" or torch.backends.cpu.get_cpu_capability() == "AMX":
        precision: AbstractContextManager[Any] = torch.autocast(device.type, torch.bfloat16)
        return precision
    return nullcontext()


def total_loss(log_probs: Tensor, right: Tensor) -> Tensor:
    """Sum over the requests of -ln(probability that the answer is one of the right ones)."""
    return -log_probs.masked_fill(~right, float("-inf")).logsumexp(-1).sum()


class Trainer:
    """Trains `model` in place. `folder` receives `checkpoint.pt`, `progress.json`.

    Args:
        batches: the same draws, those of a step at once, for an accelerator.
    """

    def __init__(
        self,
        model: Llama,
        draws: Draws[EncodedDraw],
        plan: Plan,
        folder: Path,
        batches: MadeBatches | None = None,
    ) -> None:
        self.model = model
        self.draws = draws
        self._batches = batches
        self.plan = plan
        self.folder = folder
        self.progress = Progress()
        self.device = next(model.parameters()).device
        self._descent = Descent(model, plan)
        self._recent: deque[list[Outcome]] = deque(maxlen=_NOTED_STEPS)
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self, path: Path) -> None:
        """Raises OSError, InputError."""
        needed = ("average", "optimizer", "progress", "plan")
        state = read_checkpoint(path, *needed, device=self.device)
        frozen = state["plan"]["frozen_layers"]
        if frozen != self.plan.frozen_layers:
            raise InputError(
                f"{path}: was trained with --frozen-layers {frozen}, not "
                f"{self.plan.frozen_layers}; go on with the same, or begin with --start"
            )
        load_weights(self.model, state["model"], path)
        self._descent.restore(state)
        self.progress = Progress(**state["progress"])

    def save(self) -> None:
        """Raises OSError, InputError if it cannot be written."""
        state = {
            "model": self.model.state_dict(),
            **self._descent.state(),
            "progress": asdict(self.progress),
            "plan": asdict(self.plan),
        }
        write_checkpoint(self.folder, state)

    def run(self) -> Progress:
        """Train until the budget is spent; saves at the end and every `save_minutes`. Raises
        KeyboardInterrupt after a signal, when the step has ended and is saved."""
        before, first, saved = self.progress.seconds, self.progress.step, 0.0
        torch.set_num_threads(1 if self.plan.threads > 1 else torch.get_num_threads())
        bar = budget_bar()
        self.model.dropout = self.plan.dropout
        with (
            bar,
            RunningTime() as time,
            ThreadPoolExecutor(self.plan.threads) as workers,
            Interruption() as interruption,
        ):
            while (
                spent := self._share_spent(time.seconds, first)
            ) < 1.0 and not interruption.asked:
                outcomes = self._step(workers, self._descent.rate(self.progress.step, spent))
                self.progress.seconds = before + time.seconds
                self._note(outcomes)
                self._show(bar, self._share_spent(time.seconds, first))
                if time.seconds - saved > 60 * self.plan.save_minutes:
                    save_meanwhile(self.save)
                    saved = time.seconds
        self.model.dropout = 0.0
        if interruption.asked:
            self.save()
            raise interrupted(self.folder)
        self._descent.adopt_average()
        self.save()
        return self.progress

    def _share_spent(self, seconds: float, first: int) -> float:
        steps = self.progress.step - first
        return max(seconds / 60 / self.plan.minutes, steps / self.plan.steps)

    def _step(self, workers: ThreadPoolExecutor, rate: float) -> list[Outcome]:
        if self._batches is not None:
            batches = self._batches.batch(self.progress.packs // self.plan.packs_per_step)
            outcomes = [self._work_at_once(batch) for batch in batches]
        else:
            numbers = range(self.progress.packs, self.progress.packs + self.plan.packs_per_step)
            futures: list[Future[Outcome]] = [workers.submit(self._work, n) for n in numbers]
            outcomes = [future.result() for future in futures]
        decisions = sum(outcome.decisions for outcome in outcomes)
        self._descent.step(rate, decisions)
        self.progress.step += 1
        self.progress.packs += self.plan.packs_per_step
        self.progress.tokens += sum(outcome.tokens for outcome in outcomes)
        self.progress.decisions += decisions
        return outcomes

    def _work(self, number: int) -> Outcome:
        """Adds the gradients of one pack; autograd locks each parameter while it adds."""
        encoded = self.draws.draw(number)
        log_probs = candidate_log_probs(self.model, encoded, self.device)
        right = torch.from_numpy(encoded.right).to(self.device)
        loss = total_loss(log_probs, right)
        loss.backward()
        hits = right.gather(1, log_probs.argmax(-1, keepdim=True)).sum()
        return Outcome(loss.item(), int(hits), len(right), len(encoded.pack.ids))

    def _work_at_once(self, batch: Batch) -> Outcome:
        log_probs = batch_log_probs(self.model, batch, self.device)
        right = torch.from_numpy(batch.right).to(self.device)
        loss = total_loss(log_probs, right)
        loss.backward()
        hits = right.gather(1, log_probs.argmax(-1, keepdim=True)).sum()
        return Outcome(loss.item(), int(hits), len(right), batch.tokens)

    def _note(self, outcomes: list[Outcome]) -> None:
        check_finite(outcomes, self.progress.step)
        self._recent.append(outcomes)
        if self.progress.step % _NOTED_STEPS == 0:
            loss, accuracy = self._recent_means()
            self.progress.losses.append((self.progress.step, round(loss, 4), round(accuracy, 4)))

    def _recent_means(self) -> tuple[float, float]:
        return recent_means([outcome for step in self._recent for outcome in step])

    def _show(self, bar: tqdm[Any], spent: float) -> None:
        loss, accuracy = self._recent_means()
        bar.n = min(1.0, spent)
        rate = self.progress.tokens / max(self.progress.seconds, 1e-9)
        bar.set_postfix_str(
            f"step {self.progress.step} loss {loss:.3f} right {accuracy:.3f} {rate:.0f} tokens/s "
            f"{self.progress.decisions} decisions",
            refresh=False,
        )
        bar.update(0)


def budget_bar() -> tqdm[Any]:
    """Of the share that is spent of minutes or steps, whichever ends first, and the time left."""
    form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    return tqdm(total=1.0, mininterval=5, miniters=0, smoothing=0, bar_format=form)


def check_finite(outcomes: Collection[Outcome], step: int) -> None:
    """Raises InputError for losses of weights that have run away: each further step is in vain, and
    would be saved over what was well."""
    if not math.isfinite(sum(outcome.loss for outcome in outcomes)):
        raise InputError(f"step {step}: the loss is not a number any more; give a lower --rate")


def recent_means(outcomes: Collection[Outcome]) -> tuple[float, float]:
    """Loss and accuracy per decision."""
    decisions = max(1, sum(outcome.decisions for outcome in outcomes))
    loss = sum(outcome.loss for outcome in outcomes) / decisions
    return loss, sum(outcome.right for outcome in outcomes) / decisions
