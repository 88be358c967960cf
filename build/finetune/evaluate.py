"""Quick accuracy of a checkpoint, an adapter or a base over case files, in PyTorch. See README.md.

python build/finetune/evaluate.py --base BASE --checkpoint RUN/checkpoint.pt --cases DEV
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tempfile

import torch
from router_training import memory
from router_training.base import read_base
from router_training.cases import Case, read_all
from router_training.corpus import read_corpus
from router_training.encoding import Encoder
from router_training.errors import InputError
from router_training.loading import load_model
from router_training.options import (
    add_held_out_options,
    check_held_out,
    count,
    file_to_write,
)
from router_training.program import run
from router_training.scoring import score, stratified, summary

from sidecar.inference.tokenizer import HfTokenizer


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, required=True, help=".gguf or Hugging Face folder")
    tuned = parser.add_mutually_exclusive_group()
    tuned.add_argument("--checkpoint", type=Path, help="checkpoint.pt of a run")
    tuned.add_argument("--adapter", type=Path, help="delta written by export.py")
    parser.add_argument("--cases", type=Path, action="extend", nargs="+", required=True)
    add_held_out_options(parser)
    parser.add_argument("--families", default="", help="score these only, comma-separated")
    parser.add_argument("--per-family", type=count, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=file_to_write, help="write the scores and every answer here")
    options = parser.parse_args()
    check_held_out(parser, options)
    return options


def main() -> None:
    memory.keep_freed_memory()
    options = arguments()
    chosen = _chosen(options)
    base = read_base(options.base)
    model = load_model(base, options.checkpoint, options.adapter).to(options.device)
    with tempfile.TemporaryDirectory() as folder:
        base.tokenizer.save(f"{folder}/tokenizer.json")
        encoder = Encoder(HfTokenizer(f"{folder}/tokenizer.json"))
    scored = score(model, encoder, chosen, options.threads)
    scores = summary(scored)
    print(json.dumps(scores, indent=2))  # noqa: T201
    if options.json:
        answers = [
            {"id": one.case.id, "label": one.case.label, "answer": one.answer,
             "right": one.right, "confidence": round(one.confidence, 4)}
            for one in scored
        ]  # fmt: skip
        options.json.write_text(json.dumps({"scores": scores, "answers": answers}, indent=1))


def _chosen(options: argparse.Namespace) -> list[Case]:
    """Raises InputError where that leaves none."""
    if options.held_out:
        without = list(filter(None, options.without.split(",")))
        cases = read_corpus(options.cases, without=without).held_out
    else:
        cases = read_all(options.cases)
    wanted = set(filter(None, options.families.split(",")))
    if missing := sorted(wanted - {case.family for case in cases}):
        raise InputError(f"--families: there are no cases of {', '.join(missing)}")
    if not cases:
        raise InputError("there are no cases to score")
    chosen = [case for case in cases if not wanted or case.family in wanted]
    return stratified(chosen, options.per_family, options.seed)


if __name__ == "__main__":
    run(main)
