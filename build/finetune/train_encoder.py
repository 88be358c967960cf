"""Train the sentence encoder that gives the second opinion. See README.md.

python build/finetune/train_encoder.py --encoder all-MiniLM-L6-v2 --cases CASES --out RUN
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from router_training import memory
from router_training.batched import Batches
from router_training.cases import OTHER, Case
from router_training.corpus import Corpus, read_corpus
from router_training.encoder_batched import collate_texts
from router_training.encoder_draws import TextsEncoder, logits_of
from router_training.encoder_loop import EncoderPlan, EncoderTrainer
from router_training.encoder_model import SecondOpinionModel, load_second_opinion
from router_training.mixture import build_mixture
from router_training.options import (
    add_data_options,
    below_one,
    check_run,
    count,
    not_negative,
    positive,
    share,
    whole,
)
from router_training.program import run
from router_training.record import begin_record, end_record
from router_training.scoring import Scored, stratified, summary

from sidecar.inference.tokenizer import HfTokenizer
from sidecar.prompts.second_opinion import encoder_texts

log = logging.getLogger("train_encoder")

_ADAPTER = ".safetensors"
_KINDS: dict[str, Callable[[str], float]] = {
    "warmup": whole,
    "decay": share,
    "weight_decay": not_negative,
    "average": below_one,
    "save_minutes": not_negative,
    "seed": int,
}
"""Of the plan's numbers that need not be above 0."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    plan = EncoderPlan()
    parser.add_argument("--encoder", type=Path, required=True, help="folder of the untrained one")
    add_data_options(parser)
    parser.add_argument(
        "--start",
        type=Path,
        help="checkpoint.pt, or second_opinion.safetensors of an adapter, to begin with",
    )
    for field in fields(plan):
        value = getattr(plan, field.name)
        kind = _KINDS.get(field.name, count if isinstance(value, int) else positive)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=value)
    parser.add_argument("--requests-per-draw", type=count, default=24)
    parser.add_argument(
        "--routes-per-draw",
        type=count,
        default=60,
        help="cases with more routes are not trained on; memory grows with them",
    )
    parser.add_argument(
        "--processes", type=whole, default=0, help="with an accelerator: processes that make draws"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    check_run(parser, options)
    return options


def main() -> None:
    memory.keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = arguments()
    plan = EncoderPlan(
        **{field.name: getattr(options, field.name) for field in fields(EncoderPlan)}
    )
    torch.manual_seed(plan.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    without = list(filter(None, options.without.split(",")))
    corpus = read_corpus(options.cases, options.written, without, options.other_policies)
    sizes = {name: len(cases) for name, cases in corpus.families.items()}
    log.info("%d written policies, cases: %s", len(corpus.written), sizes)
    facts = {"plan": asdict(plan), "encoder": str(options.encoder), "files": corpus.files}
    record = begin_record(options.out, {**facts, "device": options.device})
    model, encoder = _train(corpus, plan, options)
    chosen = stratified(corpus.held_out, options.score_cases, plan.seed)
    scores = summary(_scored(model, encoder, chosen)) if chosen else {}
    log.info("held out: %s", json.dumps(scores))
    end_record(record, {"held_out": scores})


def _train(
    corpus: Corpus, plan: EncoderPlan, options: argparse.Namespace
) -> tuple[SecondOpinionModel, TextsEncoder]:
    """The averaged model."""
    texts = encoder_texts(HfTokenizer(options.encoder / "tokenizer.json"))
    encoder = TextsEncoder(texts, options.requests_per_draw, options.routes_per_draw)
    weights = dict(options.weight)
    mixture = build_mixture(corpus.families, corpus.written, encoder, plan.seed, weights=weights)
    adapter = options.start if options.start and options.start.suffix == _ADAPTER else None
    with ExitStack() as stack:
        batches = None
        if options.processes:
            # Before the model: the processes are forked, which CUDA does not bear.
            made = Batches(mixture, plan.draws_per_step, options.processes, collate_texts)
            batches = stack.enter_context(closing(made))
        model = load_second_opinion(options.encoder, adapter, None).to(options.device)
        trainer = EncoderTrainer(model, mixture, plan, options.out, batches)
        if options.start and not adapter:
            trainer.start_from(options.start)
        if options.resume:
            trainer.resume(options.resume)
        progress = trainer.run()
    log.info("step %d, %d decisions", progress.step, progress.decisions)
    averaged: SecondOpinionModel = trainer.averaged.module.eval()
    return averaged, encoder


def _scored(model: SecondOpinionModel, encoder: TextsEncoder, cases: list[Case]) -> list[Scored]:
    scored = []
    for case, logits in logits_of(model, encoder, cases):
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        names = (*(route.name for route in case.routes), OTHER)
        scored.append(Scored(case, names[int(logits.argmax())], probabilities))
    return scored


if __name__ == "__main__":
    run(main)
