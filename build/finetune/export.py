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
from router_training.base import Base, read_base
from router_training.checkpoint import load_weights
from router_training.delta import sha256_of, write_delta
from router_training.encoder_model import (
    FloatArray,
    base_weights,
    blended,
    load_second_opinion,
    trained_weights,
    untrained,
)
from router_training.errors import InputError
from router_training.loading import load_model, numpy_weights
from router_training.options import positive, share
from router_training.program import run
from torch import Tensor

from sidecar.engines.adapter import (
    SECOND_OPINION,
    WEIGHTS,
    BaseFacts,
    describe_adapter,
    open_adapter,
    shipped_adapter,
)
from sidecar.engines.delta import Delta
from sidecar.engines.encoder import ADDED
from sidecar.engines.engine_directory import FusionFacts
from sidecar.prompts import FORMATS

_SEVERAL = (
    "checkpoint.pt, or .safetensors of an adapter; of several, their average is taken (model "
    "soups, arXiv 2203.05482)"
)
_ADAPTER = ".safetensors"

_KNOWN = "by default that of the router that comes along, if it was made from the same file"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    adapter = actions.add_parser("adapter", help="the language model's change")
    adapter.add_argument("--base", type=Path, required=True, help=".gguf or Hugging Face folder")
    adapter.add_argument(
        "--checkpoint", type=Path, action="extend", nargs="+", required=True, help=_SEVERAL
    )
    adapter.add_argument("--bits", type=int, choices=[1, 2, 4], default=2)
    second = actions.add_parser("second-opinion", help="the sentence encoder's change")
    second.add_argument("--encoder", type=Path, required=True, help="folder of the untrained one")
    second.add_argument(
        "--checkpoint", type=Path, action="extend", nargs="+", required=True, help=_SEVERAL
    )
    second.add_argument("--bits", type=int, choices=[1, 2, 4], default=4)
    second.add_argument(
        "--blend", type=share, default=1.0, help="share of the change that is kept (default all)"
    )
    describe = actions.add_parser("describe", help="adapter.json over what was exported")
    describe.add_argument("--id", required=True, help="lower-case letters, digits, . - _")
    describe.add_argument("--prompt-format", choices=sorted(FORMATS), default="compact-v1")
    describe.add_argument("--fusion", type=Path, help="fit_fusion.py's; with a second opinion")
    describe.add_argument(
        "--temperature",
        type=positive,
        help="of the language model alone; by default that of --fusion, or 1",
    )
    describe.add_argument("--base-name", default="", help=f"for people: what to fetch; {_KNOWN}")
    describe.add_argument("--base-licence", default="", help=_KNOWN)
    describe.add_argument("--encoder-name", default="", help=_KNOWN)
    describe.add_argument("--encoder-licence", default="", help=_KNOWN)
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
    tuned = _mean([_language_model(base, path) for path in options.checkpoint])
    untuned = numpy_weights(base.model())
    write_delta(options.out / WEIGHTS, untuned, tuned, options.bits, sha256_of(base.file))


def _language_model(base: Base, path: Path) -> dict[str, FloatArray]:
    adapter = path if path.suffix == _ADAPTER else None
    return numpy_weights(load_model(base, None if adapter else path, adapter))


def _encoder(untuned: Path, path: Path) -> dict[str, Tensor]:
    if path.suffix != _ADAPTER:
        return trained_weights(path)
    weights: dict[str, Tensor] = load_second_opinion(untuned, path, None).state_dict()
    return weights


def _second_opinion(options: argparse.Namespace) -> None:
    model, source = untrained(options.encoder)
    runs = [_encoder(options.encoder, path) for path in options.checkpoint]
    for path, run_weights in zip(options.checkpoint, runs, strict=True):
        load_weights(model, run_weights, path)
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
    temperature, fusion = _fitted(options.fusion) if options.fusion else (1.0, None)
    if options.temperature is not None:
        temperature = options.temperature
    base = _base(options.out / WEIGHTS, options.base_name, options.base_licence)
    encoder = options.out / SECOND_OPINION
    encoder_base = None
    if encoder.is_file():
        encoder_base = _base(encoder, options.encoder_name, options.encoder_licence)
    describe_adapter(
        options.out,
        model_id=options.id,
        prompt_format=options.prompt_format,
        base_name=base.name,
        base_licence=base.licence,
        licence=options.licence,
        temperature={"openvino": temperature},
        training=_read(options.training) if options.training else {},
        fusion=fusion,
        encoder_base=encoder_base,
    )


def _fitted(path: Path) -> tuple[float, FusionFacts]:
    """The temperature of the language model alone, and the fusion."""
    content = _read(path)
    try:
        return float(content.get("temperature", 1.0)), FusionFacts.of(content["fusion"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not what fit_fusion.py writes: {error!r}") from error


def _base(delta: Path, name: str, licence: str) -> BaseFacts:
    """What `delta` is the change of, with what is known of it where nothing is given."""
    sha256 = Delta(delta).base_sha256
    known = {base.sha256: base for base in _known_bases()}.get(sha256, BaseFacts("", sha256))
    return BaseFacts(name or known.name, sha256, licence or known.licence)


def _known_bases() -> list[BaseFacts]:
    shipped = shipped_adapter()
    if shipped is None:
        return []
    facts = open_adapter(shipped).facts
    return [facts.base, *([facts.second_opinion.base] if facts.second_opinion else [])]


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: not an object in JSON: {error}") from error


if __name__ == "__main__":
    run(main)
