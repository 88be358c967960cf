"""What PyTorch computes for the tiny second opinion: run it to write the fixture anew.

    PYTHONPATH=build/finetune python -m tests.engines.second_opinion_reference

It needs what training needs (build/finetune/requirements.txt).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.engines.tiny_encoder import CLS, SEP, TINY_ENCODER

FIXTURE = Path(__file__).with_name("fixtures") / "second_opinion.json"

Text = tuple[tuple[int, ...], tuple[int, ...]]

REQUESTS: tuple[Text, ...] = (
    ((CLS, 10, 11, 12, SEP, 20, 21, SEP), (0, 0, 0, 0, 0, 1, 1, 1)),
    ((CLS, 30, SEP), (0, 0, 0)),
    ((CLS, *range(40, 90), SEP, *range(90, 118), SEP), (*(0,) * 52, *(1,) * 29)),
)
ROUTES: tuple[tuple[int, ...], ...] = (
    (CLS, 10, 12, SEP),
    (CLS, 30, 31, 32, 33, SEP),
    (CLS, 40, SEP),
    (CLS, *range(50, 110), SEP),
)


def main() -> None:
    from router_training.encoder_model import load_second_opinion

    with tempfile.TemporaryDirectory() as folder:
        base = TINY_ENCODER.write(Path(folder) / "base")
        section = TINY_ENCODER.write_second_opinion(Path(folder) / "adapter", base)
        model: Any = load_second_opinion(base, Path(folder) / "adapter" / section["file"], None)
        logits = model(REQUESTS, [(route, (0,) * len(route)) for route in ROUTES])
    rows = [[round(logit, 5) for logit in row] for row in logits.tolist()]
    FIXTURE.write_text(json.dumps({"logits": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
