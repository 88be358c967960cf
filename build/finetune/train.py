"""Fine-tune a small Llama model to route. See README.md.

python build/finetune/train.py --base SmolLM2-135M-Instruct.Q4_1.gguf --cases CASES --out RUN
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from router_training import memory
from router_training.base import Base, read_base, write_hugging_face
from router_training.batched import Batches, by_length
from router_training.corpus import Corpus, read_corpus
from router_training.encoding import Encoder
from router_training.llama import Llama
from router_training.loading import load_model
from router_training.loop import Plan, Trainer
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
from router_training.scoring import score, stratified, summary

from sidecar.inference.tokenizer import HfTokenizer

log = logging.getLogger("train")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    plan = Plan()
    parser.add_argument("--base", type=Path, required=True, help=".gguf or Hugging Face folder")
    add_data_options(parser)
    parser.add_argument(
        "--start",
        type=Path,
        help="checkpoint.pt of another run, or adapter.safetensors, to begin with",
    )
    parser.add_argument("--minutes", type=positive, default=plan.minutes)
    parser.add_argument("--steps", type=count, default=plan.steps)
    parser.add_argument("--packs-per-step", type=count, default=plan.packs_per_step)
    parser.add_argument("--pack-tokens", type=count, default=704)
    parser.add_argument("--rate", type=positive, default=plan.rate)
    parser.add_argument("--decay", type=share, default=plan.decay)
    parser.add_argument("--averaging", type=below_one, default=plan.averaging)
    parser.add_argument("--dropout", type=below_one, default=plan.dropout, help="with --processes")
    parser.add_argument("--frozen-layers", type=whole, default=plan.frozen_layers)
    parser.add_argument("--threads", type=count, default=plan.threads)
    parser.add_argument(
        "--processes", type=whole, default=0, help="with an accelerator: processes that make packs"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="with --processes: nearly twice the decisions a second, after a minute of compiling",
    )
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--save-minutes", type=not_negative, default=plan.save_minutes)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    check_run(parser, options)
    for name in ("dropout", "compile"):
        if getattr(options, name) and not options.processes:
            parser.error(f"--{name} works on batches alone: add --processes")
    return options


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
        dropout=options.dropout,
        frozen_layers=options.frozen_layers,
        threads=options.threads if options.device == "cpu" else 1,
        seed=options.seed,
        save_minutes=options.save_minutes,
    )
    torch.manual_seed(plan.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    base = read_base(options.base)
    without = list(filter(None, options.without.split(",")))
    corpus = read_corpus(options.cases, options.written, without, options.other_policies)
    sizes = {name: len(cases) for name, cases in corpus.families.items()}
    log.info("%d written policies, cases: %s", len(corpus.written), sizes)
    facts = {"plan": asdict(plan), "base": str(options.base), "files": corpus.files}
    record = begin_record(options.out, {**facts, "device": options.device})
    model, encoder = _train(base, corpus, plan, options)
    write_hugging_face(options.out / "model", model, base.tokenizer)
    chosen = stratified(corpus.held_out, options.score_cases, plan.seed)
    scores = summary(score(model, encoder, chosen, plan.threads)) if chosen else {}
    log.info("held out: %s", json.dumps(scores))
    end_record(record, {"held_out": scores})


def _train(
    base: Base, corpus: Corpus, plan: Plan, options: argparse.Namespace
) -> tuple[Llama, Encoder]:
    base.tokenizer.save(str(options.out / "tokenizer.json"))
    tokenizer = HfTokenizer(options.out / "tokenizer.json")
    encoder = Encoder(tokenizer, max_pack=options.pack_tokens)
    mixture = build_mixture(
        corpus.families, corpus.written, encoder, plan.seed, weights=dict(options.weight)
    )
    with ExitStack() as stack:
        batches = None
        if options.processes:
            made = Batches(mixture, plan.packs_per_step, options.processes, by_length)
            batches = stack.enter_context(closing(made))
        model = _begin(base, options.start).to(options.device)
        model.compiled = options.compile
        trainer = Trainer(model, mixture, plan, options.out, batches)
        if options.resume:
            trainer.resume(options.resume)
        progress = trainer.run()
        model.compiled = False
    log.info("step %d, %d decisions", progress.step, progress.decisions)
    return model, encoder


def _begin(base: Base, start: Path | None) -> Llama:
    adapter = start if start and start.suffix == ".safetensors" else None
    return load_model(base, None if adapter else start, adapter)


if __name__ == "__main__":
    run(main)
