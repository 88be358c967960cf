"""Options that programs share, and the kinds of their values."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

CHECKPOINT = "checkpoint.pt"


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """What is trained on, and where the run's files go."""
    parser.add_argument(
        "--cases", type=Path, action="extend", nargs="*", default=[], help="case files or folders"
    )
    parser.add_argument(
        "--written",
        type=Path,
        action="extend",
        nargs="*",
        default=[],
        help="written policies (.jsonl[.gz])",
    )
    parser.add_argument(
        "--other-policies",
        type=Path,
        action="extend",
        nargs="*",
        default=[],
        help="as --written, of elsewhere: --without written leaves them in",
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
        type=whole,
        default=40,
        help="held-out cases a family to score at the end; 0 scores none",
    )


def check_run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the program where `--start`, `--resume` and `--out` do not go together."""
    if options.start and options.resume:
        parser.error("--start begins another run, --resume goes on with one: give one of the two")
    there = options.out / CHECKPOINT
    if there.exists() and not (options.resume and _same(options.resume, there)):
        parser.error(
            f"--out: {there} is that of another run; name another folder, or go on with it by "
            "--resume"
        )


def add_held_out_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--held-out", action="store_true", help="only the part train.py holds out")
    parser.add_argument("--without", default="", help="with --held-out: families left out")


def check_held_out(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the program where `--without` would be ignored."""
    if options.without and not options.held_out:
        parser.error("--without is of what a run held out: add --held-out")


def _same(one: Path, two: Path) -> bool:
    return one.resolve() == two.resolve()


def family_weight(text: str) -> tuple[str, float]:
    """`written=0.45`. Raises ValueError."""
    family, _, number = text.partition("=")
    return family, not_negative(number)


def family_count(text: str) -> tuple[str, int]:
    """`written=300`. Raises ValueError."""
    family, _, number = text.partition("=")
    return family, count(number)


def positive(text: str) -> float:
    """Raises ValueError, as all of these do."""
    number = not_negative(text)
    if not number:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError("must be a number, 0 or more")
    return number


def count(text: str) -> int:
    number = whole(text)
    if not number:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def whole(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number


def share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return number


def below_one(text: str) -> float:
    number = share(text)
    if number == 1:
        raise argparse.ArgumentTypeError("must be below 1")
    return number


def file_to_write(text: str) -> Path:
    """In a folder that is there: what is to be written has taken long to compute."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"{path.parent} is not a folder"
        raise argparse.ArgumentTypeError(f"cannot be written: {what}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError("cannot be written: it is not allowed")
    return path
