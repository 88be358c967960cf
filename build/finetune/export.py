r"""Write the adapter of a run, and apply one to a base. See README.md.

    python build/finetune/export.py adapter --base BASE \
        --checkpoint RUN/checkpoint.pt --out a.safetensors
    python build/finetune/export.py merge --base BASE --adapter a.safetensors --out FOLDER
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from router_training.base import read_base, write_hugging_face
from router_training.delta import sha256_of, write_delta
from router_training.loading import load_model, numpy_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=["adapter", "merge"])
    parser.add_argument("--base", type=Path, required=True, help=".gguf or Hugging Face folder")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint.pt of a run")
    parser.add_argument("--adapter", type=Path, help="merge: the adapter to apply")
    parser.add_argument("--bits", type=int, choices=[1, 2], default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    base = read_base(options.base)
    if options.action == "merge":
        model = load_model(base, options.checkpoint, options.adapter)
        write_hugging_face(options.out, model, base.tokenizer)
        return
    tuned = numpy_weights(load_model(base, options.checkpoint))
    untuned = numpy_weights(base.model())
    write_delta(options.out, untuned, tuned, options.bits, sha256_of(base.file))


if __name__ == "__main__":
    main()
