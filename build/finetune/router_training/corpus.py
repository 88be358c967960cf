"""What of the data is trained on and what is held out."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from router_training.cases import (
    Case,
    WrittenPolicy,
    case_files,
    read_cases,
    read_written,
)
from router_training.errors import InputError
from router_training.mixture import MEASURE_ONLY, WEIGHTS

_HELD_OUT_PER_MILLE = 20
_WRITTEN = "written"


@dataclass(slots=True)
class Corpus:
    """Cases by family and hand-written policies to train on, and the cases held out of them."""

    families: dict[str, list[Case]] = field(default_factory=dict)
    written: list[WrittenPolicy] = field(default_factory=list)
    held_out: list[Case] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def held_out(key: str) -> bool:
    """Two in a hundred, by the name of the policy or dialogue, the same in every run."""
    # Half an emoji, which JSON can hold, has no UTF-8.
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % 1000 < _HELD_OUT_PER_MILLE


def read_corpus(
    cases: Sequence[Path],
    written: Sequence[Path] = (),
    without: Collection[str] = (),
    others: Sequence[Path] = (),
) -> Corpus:
    """Families `without` are left out and go, like two in a hundred of the rest, to `held_out`.

    Where the policies of `written` are given, the cases drawn from them are not read, except those
    of held-out policies. `others` are policies like these from elsewhere, which stay where the
    family `written` is left out. A family that mixes others is left out whenever any other is.

    Raises CaseError or InputError for files that cannot be read, InputError for `without` of
    unknown families.
    """
    corpus = Corpus()
    left_out = {*without, *(("mix",) if without else ())}
    kept = () if _WRITTEN in left_out else written
    for path in (*written, *others):
        corpus.files.append(str(path))
        policies = read_written(path)
        if path in kept or path in others:
            corpus.written += [policy for policy in policies if not held_out(policy.id)]
    known = {*WEIGHTS, *MEASURE_ONLY}
    for path in case_files(cases):
        corpus.files.append(str(path))
        for case in read_cases(path):
            known.add(case.family)
            _place(case, corpus, left_out, drawn_afresh=bool(written))
    if unknown := sorted({*without} - known):
        raise InputError(f"--without: no cases of the family {', '.join(unknown)}")
    return corpus


def _place(case: Case, corpus: Corpus, left_out: Collection[str], drawn_afresh: bool) -> None:
    if case.family in MEASURE_ONLY:
        return
    policy = _policy_of(case) if case.family == _WRITTEN else ""
    if case.family in left_out or held_out(policy or case.dialogue):
        if case.family in left_out and case.family == "mix":
            return
        corpus.held_out.append(case)
    elif not (drawn_afresh and policy):
        corpus.families.setdefault(case.family, []).append(case)


def _policy_of(case: Case) -> str:
    """`train-written-08-13-game_studio_close-1-0010` -> `08-13-game_studio_close`."""
    return case.id.split("-", 2)[-1].rsplit("-", 2)[0]
