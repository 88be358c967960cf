r"""Write what training changed as an adapter's files. See README.md.

    python build/finetune/export.py adapter --base BASE --checkpoint RUN/checkpoint.pt --out FOLDER
    python build/finetune/export.py second-opinion --encoder ENCODER \
        --checkpoint ENCODER_RUN/checkpoint.pt --out FOLDER
    python build/finetune/export.py describe --id my-router --fusion fusion.json --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from router_training.base import read_base
from router_training.delta import sha256_of, write_delta
from router_training.encoder_model import FloatArray, base_weights, blended, trained_weights
from router_training.loading import load_model, numpy_weights
from router_training.program import run

from sidecar.engines.adapter import SECOND_OPINION, WEIGHTS, BaseFacts, describe_adapter
from sidecar.engines.encoder import ADDED, open_encoder
from sidecar.engines.engine_directory import FusionFacts

_SEVERAL = "checkpoint.pt; of several runs, their average is taken (model soups, arXiv 2203.05482)"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    adapter = actions.add_parser("adapter", help="the language model's change")
    adapter.add_argument("--base", type=Path, required=True, help=".gguf or Hugging Face folder")
    adapter.add_argument("--checkpoint", type=Path, nargs="+", required=True, help=_SEVERAL)
    adapter.add_argument("--bits", type=int, choices=[1, 2, 4], default=2)
    second = actions.add_parser("second-opinion", help="the sentence encoder's change")
    second.add_argument("--encoder", type=Path, required=True, help="folder of the untrained one")
    second.add_argument("--checkpoint", type=Path, nargs="+", required=True, help=_SEVERAL)
    second.add_argument("--bits", type=int, choices=[1, 2, 4], default=4)
    second.add_argument(
        "--blend", type=float, default=1.0, help="share of the change that is kept (default all)"
    )
    describe = actions.add_parser("describe", help="adapter.json over what was exported")
    describe.add_argument("--id", required=True, help="lower-case letters, digits, . - _")
    describe.add_argument("--prompt-format", default="compact-v1")
    describe.add_argument("--fusion", type=Path, help="fit_fusion.py's; with a second opinion")
    describe.add_argument(
        "--temperature",
        type=float,
        help="of the language model alone; by default that of --fusion, or 1",
    )
    describe.add_argument("--base-name", default="SmolLM2-135M-Instruct, Q4_1")
    describe.add_argument("--base-licence", default="Apache-2.0")
    describe.add_argument("--encoder-name", default="all-MiniLM-L6-v2")
    describe.add_argument("--encoder-licence", default="Apache-2.0")
    describe.add_argument("--licence", default="Apache-2.0")
    describe.add_argument("--training", type=Path, help="JSON file with a record for people")
    for action in (adapter, second, describe):
        action.add_argument("--out", type=Path, required=True, help="the adapter's folder")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    write = {"adapter": _adapter, "second-opinion": _second_opinion, "describe": _describe}
    write[options.action](options)


def _adapter(options: argparse.Namespace) -> None:
    base = read_base(options.base)
    tuned = _mean([numpy_weights(load_model(base, path)) for path in options.checkpoint])
    untuned = numpy_weights(base.model())
    write_delta(options.out / WEIGHTS, untuned, tuned, options.bits, sha256_of(base.file))


def _second_opinion(options: argparse.Namespace) -> None:
    source = open_encoder(options.encoder)
    runs = [trained_weights(path) for path in options.checkpoint]
    tuned = _mean([{name: tensor.numpy() for name, tensor in run.items()} for run in runs])
    added = {name: tuned.pop(name) for name in ADDED}
    out = options.out / SECOND_OPINION
    digest = sha256_of(source.weights_file)
    untuned = base_weights(source)
    kept = blended(untuned, tuned, options.blend)
    write_delta(out, untuned, kept, options.bits, digest, added)


def _mean(runs: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    return {name: np.mean([run[name] for run in runs], 0, dtype=np.float32) for name in runs[0]}


def _describe(options: argparse.Namespace) -> None:
    fitted = _read(options.fusion) if options.fusion else {}
    temperature = options.temperature or fitted.get("temperature", 1.0)
    describe_adapter(
        options.out,
        model_id=options.id,
        prompt_format=options.prompt_format,
        base_name=options.base_name,
        base_licence=options.base_licence,
        licence=options.licence,
        temperature={"openvino": temperature},
        training=_read(options.training) if options.training else {},
        fusion=FusionFacts.of(fitted["fusion"]) if fitted else None,
        encoder_base=BaseFacts(options.encoder_name, "", options.encoder_licence),
    )


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    run(main)
