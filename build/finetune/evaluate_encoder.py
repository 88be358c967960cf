r"""Score a second opinion alone, on families that it has seen and families that it has not.

    python build/finetune/evaluate_encoder.py --encoder MINILM --checkpoint RUN/checkpoint.pt \
        --cases CASES --without clinc,bitext,metatool --also CASES/t0.jsonl.gz --blend 0.5 1

The scale of the logits and the offset of `other` are fitted on the families that it has seen: who
uses the router has no labelled cases of their own policies either.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from router_training import memory
from router_training.cases import OTHER, Case, read_all
from router_training.checkpoint import load_weights
from router_training.corpus import read_corpus
from router_training.encoder_draws import TextsEncoder, logits_of
from router_training.encoder_model import (
    SecondOpinionModel,
    base_weights,
    blended,
    trained_weights,
    untrained,
)
from router_training.fusion import Opinions, fit_fusion, fused
from router_training.options import count, share
from router_training.program import run
from router_training.scoring import Scored, stratified, summary

from sidecar.inference.tokenizer import HfTokenizer
from sidecar.prompts.second_opinion import encoder_texts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--encoder", type=Path, required=True, help="folder of the untrained one")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint.pt of a run; none: untrained")
    parser.add_argument("--cases", type=Path, action="extend", nargs="+", required=True)
    parser.add_argument("--without", default="", help="the families that the run left out")
    parser.add_argument(
        "--also", type=Path, action="extend", nargs="*", default=[], help="more unseen case files"
    )
    parser.add_argument(
        "--blend", type=share, nargs="+", default=[1.0], help="shares of the change"
    )
    parser.add_argument("--per-family", type=count, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=count, default=2)
    return parser.parse_args()


def main() -> None:
    memory.keep_freed_memory()
    options = arguments()
    torch.set_num_threads(options.threads)
    left_out = set(filter(None, options.without.split(",")))
    cases = read_corpus(options.cases, without=left_out).held_out
    seen = [case for case in cases if case.family not in left_out]
    unseen = [case for case in cases if case.family in left_out]
    unseen += read_all(options.also)
    groups = [stratified(group, options.per_family, options.seed) for group in (seen, unseen)]
    texts = encoder_texts(HfTokenizer(options.encoder / "tokenizer.json"))
    encoder = TextsEncoder(texts, max_routes=1000)
    for kept in options.blend if options.checkpoint else [0.0]:
        model = _blend(options, kept)
        print(json.dumps({"blend": kept, **_scores(model, encoder, *groups)}, indent=2))  # noqa: T201


def _blend(options: argparse.Namespace, kept: float) -> SecondOpinionModel:
    model, source = untrained(options.encoder)
    if options.checkpoint:
        trained = trained_weights(options.checkpoint)
        load_weights(model, trained, options.checkpoint)
        untuned = base_weights(source)
        mixed = blended(untuned, {name: trained[name].numpy() for name in untuned}, kept)
        model.load_state_dict(trained | {n: torch.from_numpy(w) for n, w in mixed.items()})
    model.eval()
    return model


def _scores(
    model: SecondOpinionModel, encoder: TextsEncoder, seen: list[Case], unseen: list[Case]
) -> dict[str, Any]:
    """Raises InputError without cases of families that were seen."""
    fitted_to = _opinions(model, encoder, seen)
    fusion = fit_fusion([opinions for _, opinions in fitted_to])
    scores = {}
    for name, judged in (("seen", fitted_to), ("unseen", _opinions(model, encoder, unseen))):
        scored = []
        for case, opinions in judged:
            probabilities = fused(opinions, fusion)
            names = (*(route.name for route in case.routes), OTHER)
            scored.append(Scored(case, names[int(probabilities.argmax())], probabilities))
        if scored:
            scores[name] = summary(scored)
    return scores


def _opinions(
    model: SecondOpinionModel, encoder: TextsEncoder, cases: list[Case]
) -> list[tuple[Case, Opinions]]:
    """Opinions with a language model that knows nothing."""
    opinions = []
    for case, logits in logits_of(model, encoder, cases):
        names = (*(route.name for route in case.routes), OTHER)
        right = np.array([name in case.request.right for name in names])
        silent = np.full(len(names), -np.log(len(names)))
        opinions.append((case, Opinions(case.family, silent, logits, right)))
    return opinions


if __name__ == "__main__":
    run(main)
