"""Options that all trainings have."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """What is trained on, and where the run's files go."""
    parser.add_argument("--cases", type=Path, nargs="*", default=[], help="case files or folders")
    parser.add_argument(
        "--written", type=Path, nargs="*", default=[], help="written policies (.jsonl[.gz])"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of this run")
    parser.add_argument("--without", default="", help="families to leave out, comma-separated")
    parser.add_argument("--resume", type=Path, help="checkpoint.pt to go on from")
    parser.add_argument(
        "--weight",
        type=family_weight,
        action="append",
        default=[],
        metavar="FAMILY=NUMBER",
        help="share of a family in the draws, instead of that in mixture.py; repeatable",
    )
    parser.add_argument(
        "--score-cases",
        type=int,
        default=40,
        help="held-out cases a family to score at the end; 0 scores none",
    )


def family_weight(text: str) -> tuple[str, float]:
    """`written=0.45`. Raises ValueError."""
    family, _, number = text.partition("=")
    return family, float(number)
