"""What should the router answer with? Trains one form of answer and scores it on other families.

The three forms (`router_training/answers.py`) get the same draws for the same seed, the same loop
and the same budget; conversations are cut alike.

python build/finetune/compare_answers.py --answer name --base BASE --cases CASES \
    --without metatool,bitext --minutes 5 --processes 15 --out RUN
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import count as counting
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from router_training import memory
from router_training.answers import (
    ANSWERS,
    AnswerBatch,
    AnswerEncoder,
    EncodedAnswers,
    answer_log_probs,
    answers_by_length,
    collate_answers,
)
from router_training.base import read_base
from router_training.cases import Case, Draw, RouteText, read_all
from router_training.corpus import Corpus, read_corpus
from router_training.descent import Descent
from router_training.llama import Llama
from router_training.loop import Plan, total_loss
from router_training.mixture import Mixture, build_mixture
from router_training.options import below_one, count, positive, share, whole
from router_training.program import run
from router_training.running_time import RunningTime
from router_training.scoring import stratified

from sidecar.inference.tokenizer import HfTokenizer

log = logging.getLogger("compare_answers")

_NOTE_STEPS = 20
_SCORED_TOKENS = 32_768
"""Of the packs that are scored at once, padding included, on an accelerator."""


@dataclass(frozen=True, slots=True)
class Material:
    """What packs are made of, by other processes.

    Args:
        groups: cases to score, those with the same routes together.
        scored: encodes them, all candidates.
    """

    draws: Mixture[EncodedAnswers]
    packs_per_step: int
    scored: AnswerEncoder
    groups: Sequence[Sequence[Case]]


_material: Material | None = None
"""Of this process; inherited by the processes that make packs."""


def _step_batches(step: int) -> list[AnswerBatch]:
    assert _material is not None
    first = step * _material.packs_per_step
    numbers = range(first, first + _material.packs_per_step)
    return answers_by_length([_material.draws.draw(number) for number in numbers])


def _group_packs(index: int) -> list[tuple[EncodedAnswers, Sequence[Case]]]:
    """Packs of a group of cases; none of those that do not fit."""
    assert _material is not None
    packs = []
    rest = _material.groups[index]
    while rest:
        draw = Draw(rest[0].family, rest[0].routes, tuple(case.request for case in rest))
        encoded = _material.scored.encode(draw)
        if encoded is None:
            break
        asked = len(encoded.right)
        packs.append((encoded, rest[:asked]))
        rest = rest[asked:]
    return packs


def makers(material: Material, processes: int) -> Executor:
    """Processes, or a thread if `processes` is 0. They are forked here, to have the cases without
    copying them, and before an accelerator is used."""
    global _material
    _material = material
    if not processes:
        return ThreadPoolExecutor(1)
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork"))
    list(pool.map(abs, range(processes)))
    return pool


def made_ahead(workers: Executor, ahead: int) -> Generator[list[AnswerBatch], None, None]:
    """The batches of step after step. What was begun is cancelled when the iterator is closed."""
    waiting: deque[Future[list[AnswerBatch]]] = deque()
    try:
        for step in counting():
            waiting.append(workers.submit(_step_batches, step))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@dataclass(slots=True)
class Progress:
    """Args:
    losses: step and mean loss of the steps since the last entry.
    """

    steps: int = 0
    tokens: int = 0
    decisions: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)


class Training:
    """Steps of AdamW as in `router_training.loop`, and the running average of the weights."""

    def __init__(self, model: Llama, plan: Plan) -> None:
        self._model = model
        self._plan = plan
        self._device = next(model.parameters()).device
        self._descent = Descent(model, plan)
        self.progress = Progress()

    def run(self, batches: Iterator[list[AnswerBatch]]) -> Progress:
        """Until the budget is spent; the model then has the average. The first batches are waited
        for before the time is taken."""
        progress = self.progress
        following = next(batches)
        recent: list[tuple[float, int]] = []
        with RunningTime() as time:
            while (spent := self._share_spent(time.seconds)) < 1.0:
                recent.append(self.step(following, self._descent.rate(progress.steps, spent)))
                following = next(batches)
                if progress.steps % _NOTE_STEPS == 0:
                    losses, decisions = zip(*recent, strict=True)
                    progress.losses.append((progress.steps, round(sum(losses) / sum(decisions), 4)))
                    recent.clear()
                    log.info(
                        "%d s, step %d, loss %.3f, %d decisions",
                        time.seconds,
                        *progress.losses[-1],
                        progress.decisions,
                    )
            progress.seconds = time.seconds
        self._descent.adopt_average()
        return progress

    def step(self, batches: Sequence[AnswerBatch], rate: float) -> tuple[float, int]:
        """Sum of the losses, and the decisions they are of."""
        losses = []
        for batch in batches:
            log_probs = answer_log_probs(self._model, batch, self._device)
            loss = total_loss(log_probs, torch.from_numpy(batch.right).to(self._device))
            loss.backward()
            losses.append(loss.detach())
        decisions = sum(len(batch.right) for batch in batches)
        self._descent.step(rate, decisions)
        self.progress.steps += 1
        self.progress.decisions += decisions
        self.progress.tokens += sum(batch.tokens for batch in batches)
        return float(torch.stack(losses).sum()), decisions

    def _share_spent(self, seconds: float) -> float:
        return max(seconds / 60 / self._plan.minutes, self.progress.steps / self._plan.steps)


@dataclass(frozen=True, slots=True)
class Scored:
    """A case, whether the likeliest answer is right, the natural-log probability of a right one."""

    id: str
    family: str
    right: bool
    log_prob: float


def same_routes(cases: Iterable[Case]) -> list[list[Case]]:
    groups: dict[tuple[RouteText, ...], list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.routes].append(case)
    return list(groups.values())


def score(model: Llama, workers: Executor, groups: int) -> list[Scored]:
    """Every case of the material whose routes fit."""
    device = next(model.parameters()).device
    packs = [pack for made in workers.map(_group_packs, range(groups)) for pack in made]
    packs.sort(key=lambda pack: len(pack[0].pack.ids))
    scored: list[Scored] = []
    while packs:
        longest = len(packs[-1][0].pack.ids)
        together = max(1, _SCORED_TOKENS // longest) if device.type == "cuda" else 1
        chunk = packs[-together:]
        del packs[-together:]
        batch = collate_answers([encoded for encoded, _ in chunk])
        with torch.inference_mode():
            log_probs = answer_log_probs(model, batch, device).cpu()
        right = torch.from_numpy(batch.right)
        hits = right.gather(1, log_probs.argmax(-1, keepdim=True))[:, 0]
        sums = log_probs.masked_fill(~right, float("-inf")).logsumexp(-1)
        cases = (case for _, of_pack in chunk for case in of_pack)
        for case, hit, log_prob in zip(cases, hits.tolist(), sums.tolist(), strict=True):
            scored.append(Scored(case.id, case.family, hit, log_prob))
    return scored


def summary(scored: Sequence[Scored]) -> dict[str, Any]:
    """Turn accuracy and log loss of each family, and their means over the families."""
    by_family: dict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        by_family[one.family].append(one)
    families = {
        family: {
            "cases": len(group),
            "accuracy": round(float(np.mean([one.right for one in group])), 4),
            "log_loss": round(-float(np.mean([one.log_prob for one in group])), 4),
        }
        for family, group in sorted(by_family.items())
    }
    macro = {
        measure: round(float(np.mean([family[measure] for family in families.values()])), 4)
        for measure in (("accuracy", "log_loss") if families else ())
    }
    return {"families": families, "macro": macro}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    plan = Plan()
    parser.add_argument("--answer", choices=ANSWERS, required=True)
    parser.add_argument("--base", type=Path, required=True, help=".gguf or Hugging Face folder")
    parser.add_argument(
        "--cases", type=Path, action="extend", nargs="*", default=[], help="case files or folders"
    )
    parser.add_argument(
        "--written", type=Path, action="extend", nargs="*", default=[], help="written policies"
    )
    parser.add_argument("--without", default="", help="families to score, not to train on")
    parser.add_argument(
        "--also", type=Path, action="extend", nargs="*", default=[], help="case files to score, all"
    )
    parser.add_argument("--per-family", type=count, default=300, help="cases to score of each")
    parser.add_argument("--minutes", type=positive, default=plan.minutes, help="of training alone")
    parser.add_argument("--steps", type=count, default=plan.steps)
    parser.add_argument("--packs-per-step", type=count, default=plan.packs_per_step)
    parser.add_argument("--pack-tokens", type=count, default=704)
    parser.add_argument("--rate", type=positive, default=plan.rate)
    parser.add_argument("--decay", type=share, default=plan.decay)
    parser.add_argument("--averaging", type=below_one, default=plan.averaging)
    parser.add_argument("--frozen-layers", type=whole, default=plan.frozen_layers)
    parser.add_argument("--processes", type=whole, default=0, help="that make packs; 0: a thread")
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder of this run")
    return parser.parse_args()


def cases_to_score(corpus: Corpus, options: argparse.Namespace) -> list[Case]:
    left_out = set(filter(None, options.without.split(",")))
    held_out = [case for case in corpus.held_out if not left_out or case.family in left_out]
    also = read_all(options.also)
    return [*stratified(held_out, options.per_family, options.seed), *also]


def main() -> None:
    memory.keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = arguments()
    plan = Plan(
        minutes=options.minutes,
        steps=options.steps,
        packs_per_step=options.packs_per_step,
        rate=options.rate,
        decay=options.decay,
        averaging=options.averaging,
        frozen_layers=options.frozen_layers,
        seed=options.seed,
    )
    torch.manual_seed(plan.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    base = read_base(options.base)
    base.tokenizer.save(str(options.out / "tokenizer.json"))
    tokenizer = HfTokenizer(options.out / "tokenizer.json")
    left_out = list(filter(None, options.without.split(",")))
    corpus = read_corpus(options.cases, options.written, left_out)
    groups = same_routes(cases_to_score(corpus, options))
    trained = AnswerEncoder(tokenizer, options.answer, max_pack=options.pack_tokens)
    scored = AnswerEncoder(tokenizer, options.answer, every=True, max_pack=options.pack_tokens)
    draws = build_mixture(corpus.families, corpus.written, trained, plan.seed)
    material = Material(draws, plan.packs_per_step, scored, groups)
    with makers(material, options.processes) as workers:
        model = base.model().to(options.device)
        batches = made_ahead(workers, max(2, 3 * options.processes))
        progress = Training(model, plan).run(batches)
        batches.close()
        results = score(model, workers, len(groups))
    record = {
        "answer": options.answer,
        **asdict(progress),
        **summary(results),
        "plan": asdict(plan),
        "command": sys.argv,
        "device": options.device,
    }
    (options.out / "result.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = (json.dumps(asdict(one)) for one in sorted(results, key=lambda one: one.id))
    (options.out / "cases.jsonl").write_text("".join(f"{line}\n" for line in lines))
    shown = {name: record[name] for name in ("answer", "steps", "decisions", "families", "macro")}
    print(json.dumps(shown, indent=1))  # noqa: T201


if __name__ == "__main__":
    run(main)
