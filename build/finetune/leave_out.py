r"""Measure a training on families that it has left out. See README.md.

    python build/finetune/leave_out.py opinions --base BASE --checkpoint RUN/checkpoint.pt \
        --encoder MINILM --encoder-checkpoint ENCODER-RUN/checkpoint.pt \
        --cases CASES --without clinc,bitext --out a.json
    python build/finetune/leave_out.py measure a.json b.json --baseline CASES --out leave-out.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from router_training import memory
from router_training.base import read_base
from router_training.cases import OTHER, Case, check_ids, read_all
from router_training.corpus import read_corpus
from router_training.encoder_draws import TextsEncoder
from router_training.encoder_model import load_second_opinion
from router_training.encoding import Encoder
from router_training.errors import InputError
from router_training.leave_out import (
    Group,
    LeftOut,
    group_from_json,
    group_to_json,
    measured,
    table,
)
from router_training.loading import load_model
from router_training.opinions import opinions_of
from router_training.options import count, file_to_write
from router_training.program import run
from router_training.scoring import Scored, score, stratified
from router_training.untrained import nearest

from sidecar.inference.tokenizer import HfTokenizer
from sidecar.prompts.second_opinion import encoder_texts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    own = actions.add_parser("opinions", help="what both models say of the families left out")
    own.add_argument("--base", type=Path, required=True, help=".gguf or Hugging Face folder")
    model = own.add_mutually_exclusive_group()
    model.add_argument("--checkpoint", type=Path, help="checkpoint.pt of a run; none: untrained")
    model.add_argument("--adapter", type=Path, help="instead: what export.py wrote")
    own.add_argument("--encoder", type=Path, required=True, help="folder of the untrained one")
    second = own.add_mutually_exclusive_group()
    second.add_argument("--encoder-checkpoint", type=Path, help="checkpoint.pt; none: untrained")
    second.add_argument("--second-opinion", type=Path, help="instead: what export.py wrote")
    own.add_argument("--cases", type=Path, action="extend", nargs="+", required=True)
    own.add_argument(
        "--also", type=Path, action="extend", nargs="*", default=[], help="more unseen case files"
    )
    own.add_argument("--without", required=True, help="the families that both runs left out")
    own.add_argument("--per-family", type=count, default=300)
    own.add_argument("--seed", type=int, default=0)
    own.add_argument("--threads", type=count, default=2)
    own.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    own.add_argument("--out", type=file_to_write, required=True, help="JSON, for `measure`")
    judged = actions.add_parser("measure", help="fits on the other groups, measures on each")
    judged.add_argument("groups", type=Path, nargs="+", help="what `opinions` wrote")
    judged.add_argument(
        "--baseline",
        type=Path,
        action="extend",
        nargs="+",
        help="the case files: measures untrained MiniLM too",
    )
    judged.add_argument("--out", type=file_to_write, required=True, help="JSON")
    return parser.parse_args()


def main() -> None:
    memory.keep_freed_memory()
    options = arguments()
    _opinions(options) if options.action == "opinions" else _measure(options)


def _opinions(options: argparse.Namespace) -> None:
    without = tuple(filter(None, options.without.split(",")))
    chosen = _chosen(options, without)
    scored = _language_model(options, chosen)
    model = load_second_opinion(options.encoder, options.second_opinion, options.encoder_checkpoint)
    texts = encoder_texts(HfTokenizer(options.encoder / "tokenizer.json"))
    encoder = TextsEncoder(texts, max_routes=1000)
    opinions = opinions_of(scored, model.to(options.device), encoder)
    cases = [
        LeftOut(case.id, case.label == OTHER, opinions[case.id])
        for case in chosen
        if case.id in opinions
    ]
    content = {
        **group_to_json(Group(without, tuple(cases))),
        "unread": [case.id for case in chosen if case.id not in opinions],
        "checkpoint": str(options.checkpoint or options.adapter),
        "encoder_checkpoint": str(options.encoder_checkpoint or options.second_opinion),
        "per_family": options.per_family,
        "seed": options.seed,
    }
    options.out.write_text(json.dumps(content) + "\n", encoding="utf-8")
    found = Counter(case.opinions.family for case in cases)
    unread = len(content["unread"])
    print(f"{options.out}: {dict(found)}, {unread} that a model cannot read")  # noqa: T201


def _chosen(options: argparse.Namespace, without: Sequence[str]) -> list[Case]:
    """Raises InputError for a family without cases, and for two cases with one id."""
    cases = [
        case
        for case in read_corpus(options.cases, without=without).held_out
        if case.family in without
    ]
    if missing := sorted(set(without) - {case.family for case in cases}):
        raise InputError(f"--cases has no cases of families that --without names: {missing}")
    cases += read_all(options.also)
    check_ids(cases)
    return stratified(cases, options.per_family, options.seed)


def _language_model(options: argparse.Namespace, cases: Sequence[Case]) -> list[Scored]:
    base = read_base(options.base)
    model = load_model(base, options.checkpoint, options.adapter).to(options.device)
    with tempfile.TemporaryDirectory() as folder:
        base.tokenizer.save(f"{folder}/tokenizer.json")
        encoder = Encoder(HfTokenizer(f"{folder}/tokenizer.json"))
    return score(model, encoder, cases, options.threads)


def _measure(options: argparse.Namespace) -> None:
    groups = [_read(path) for path in options.groups]
    answers = None
    if options.baseline:
        answers = nearest(options.baseline, groups)
    result = measured(groups, answers)
    print(table(result))  # noqa: T201
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> Group:
    try:
        return group_from_json(json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not what `opinions` writes: {error!r}") from error


if __name__ == "__main__":
    run(main)
