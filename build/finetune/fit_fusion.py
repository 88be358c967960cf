r"""Fit how the language model's and the encoder's opinions become one. See README.md.

    python build/finetune/fit_fusion.py --base BASE --adapter ADAPTER/adapter.safetensors \
        --encoder ENCODER --second-opinion ADAPTER/second_opinion.safetensors \
        --cases CASES --held-out --out fusion.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from router_training import memory
from router_training.base import read_base
from router_training.cases import Case, check_ids, read_all
from router_training.corpus import read_corpus
from router_training.encoder_draws import TextsEncoder
from router_training.encoder_model import load_second_opinion
from router_training.encoding import Encoder
from router_training.errors import InputError
from router_training.fusion import (
    Opinions,
    check_shares,
    encoder_alone,
    fit_fusion,
    fit_temperature,
    fused,
)
from router_training.kept_scores import kept_scores
from router_training.loading import load_model
from router_training.opinions import candidates, opinions_of
from router_training.options import (
    add_held_out_options,
    check_held_out,
    count,
    family_count,
    family_weight,
    file_to_write,
)
from router_training.program import run
from router_training.scoring import Scored, score, stratified, summary

from sidecar.engines.engine_directory import FusionFacts
from sidecar.inference.tokenizer import HfTokenizer
from sidecar.prompts.second_opinion import encoder_texts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--base", type=Path, required=True, help=".gguf or Hugging Face folder")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--adapter", type=Path, help="what export.py wrote")
    model.add_argument("--checkpoint", type=Path, help="instead: checkpoint.pt of a run")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of the untrained one")
    second = parser.add_mutually_exclusive_group(required=True)
    second.add_argument("--second-opinion", type=Path, help="what export.py wrote")
    second.add_argument("--encoder-checkpoint", type=Path, help="instead: checkpoint.pt of a run")
    parser.add_argument("--cases", type=Path, action="extend", nargs="+", required=True)
    add_held_out_options(parser)
    parser.add_argument(
        "--also",
        type=Path,
        action="extend",
        nargs="*",
        default=[],
        help="more case files, all of them held out",
    )
    parser.add_argument("--per-family", type=count, default=150)
    parser.add_argument(
        "--share",
        type=family_weight,
        action="append",
        default=[],
        metavar="FAMILY=NUMBER",
        help="of a family in the loss, of 1; give those more whose policies training has not seen",
    )
    parser.add_argument(
        "--family-cases",
        type=family_count,
        action="append",
        default=[],
        metavar="FAMILY=NUMBER",
        help="cases of a family, instead of --per-family; repeatable, as --share",
    )
    parser.add_argument(
        "--keep-scores",
        type=file_to_write,
        help="JSON file for the language model's scores, read where it exists: "
        "fits again after training the encoder alone within a minute",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cuda computes in bfloat16, the CPU engine in float32: probabilities differ a little",
    )
    parser.add_argument(
        "--out", type=file_to_write, required=True, help="JSON, for export.py describe"
    )
    options = parser.parse_args()
    check_held_out(parser, options)
    return options


def main() -> None:
    memory.keep_freed_memory()
    options = arguments()
    chosen = _chosen(options)
    scored = _language_model(options, chosen)
    opinions = _opinions(options, scored)
    fusion = fit_fusion(list(opinions.values()), dict(options.share))
    temperature = fit_temperature([*opinions.values()])
    only_encoder = FusionFacts(language_model=0.0, encoder=1.0)
    result = {
        "fusion": asdict(fusion),
        "temperature": temperature,
        "cases": len(opinions),
        "shares": dict(options.share),
        "scores": {
            "language_model": summary([one for one in scored if one.case.id in opinions]),
            "encoder": summary(_decided(scored, opinions, only_encoder)),
            "fused": summary(_decided(scored, opinions, fusion)),
        },
        "encoder_alone": encoder_alone(list(opinions.values()), fusion),
    }
    print(json.dumps({**result, "scores": _short(result["scores"])}, indent=2))  # noqa: T201
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _chosen(options: argparse.Namespace) -> list[Case]:
    """How many are wanted of one family changes nothing of what is drawn of the others. Raises
    InputError for no cases, for two with one id, for families that there are none of, and for
    shares that cannot be."""
    cases, wanted = _cases(options), dict(options.family_cases)
    check_ids(cases)
    if not cases:
        raise InputError("there are no cases to fit to")
    if missing := sorted(wanted.keys() - {case.family for case in cases}):
        raise InputError(f"--family-cases: there are no cases of {', '.join(missing)}")
    check_shares({case.family for case in cases}, dict(options.share))
    chosen = stratified(cases, options.per_family, options.seed)
    chosen = [case for case in chosen if case.family not in wanted]
    for family, number in wanted.items():
        own = [case for case in cases if case.family == family]
        chosen += stratified(own, number, options.seed)
    return chosen


def _cases(options: argparse.Namespace) -> list[Case]:
    also = read_all(options.also)
    if options.held_out:
        without = list(filter(None, options.without.split(",")))
        return read_corpus(options.cases, without=without).held_out + also
    return read_all(options.cases) + also


def _language_model(options: argparse.Namespace, cases: list[Case]) -> list[Scored]:
    def computed(missing: list[Case]) -> list[Scored]:
        base = read_base(options.base)
        model = load_model(base, options.checkpoint, options.adapter)
        with tempfile.TemporaryDirectory() as folder:
            base.tokenizer.save(f"{folder}/tokenizer.json")
            encoder = Encoder(HfTokenizer(f"{folder}/tokenizer.json"))
        return score(model.to(options.device), encoder, missing, options.threads)

    if not options.keep_scores:
        return computed(cases)
    weights = options.checkpoint or options.adapter or options.base
    return kept_scores(options.keep_scores, weights, cases, computed)


def _opinions(options: argparse.Namespace, scored: list[Scored]) -> dict[str, Opinions]:
    model = load_second_opinion(options.encoder, options.second_opinion, options.encoder_checkpoint)
    texts = encoder_texts(HfTokenizer(options.encoder / "tokenizer.json"))
    return opinions_of(scored, model.to(options.device), TextsEncoder(texts, max_routes=1000))


def _decided(
    scored: list[Scored], opinions: dict[str, Opinions], fusion: FusionFacts
) -> list[Scored]:
    decided = []
    for one in scored:
        if one.case.id in opinions:
            probabilities = fused(opinions[one.case.id], fusion)
            answer = candidates(one.case)[int(probabilities.argmax())]
            decided.append(Scored(one.case, answer, probabilities))
    return decided


def _short(scores: Any) -> dict[str, Any]:
    keys = ("turn_accuracy", "macro_turn_accuracy", "other_accuracy", "ece", "log_loss")
    return {name: {key: each[key] for key in keys} for name, each in scores.items()}


if __name__ == "__main__":
    run(main)
