"""Scores of a language model kept in a file: computing them takes minutes, and they are the same
whatever the encoder beside it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from router_training.cases import OTHER, Case, check_ids
from router_training.delta import sha256_of
from router_training.errors import InputError
from router_training.scoring import Scored


def kept_scores(
    file: Path, model: Path, cases: Sequence[Case], score: Callable[[list[Case]], list[Scored]]
) -> list[Scored]:
    """Scores of `cases` from `file`; those that it lacks are computed with `score` and added.

    Args:
        file: JSON, `{"model": sha256, "probabilities": {case id and digest of what is asked:
            [routes in order, other]}}`; null for a case that the model cannot score.
        model: weights of the language model.

    Raises InputError if the file is none, or is one of another model; and for two cases with one
    id.
    """
    check_ids(cases)
    digest = sha256_of(model)
    known: dict[str, list[float] | None] = {}
    if file.exists():
        known = _kept(file, model, digest)
    if missing := [case for case in cases if _key(case) not in known]:
        known |= {_key(case): None for case in missing}
        known |= {_key(one.case): one.probabilities.tolist() for one in score(missing)}
        kept = {"model": digest, "probabilities": known}
        file.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    scored = [(case, known[_key(case)]) for case in cases]
    return [_scored(case, row) for case, row in scored if row is not None]


def _key(case: Case) -> str:
    """Of the case as it is asked: one without an id of its own is named by its line, which is
    another case's once a line is added before it."""
    asked = repr((case.routes, case.request.turns)).encode()
    return f"{case.id} {hashlib.sha256(asked).hexdigest()[:16]}"


def _kept(file: Path, model: Path, digest: str) -> dict[str, list[float] | None]:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        made_by, known = kept["model"], dict(kept["probabilities"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: not a file of scores ({error!r}); delete it") from error
    if made_by != digest:
        raise InputError(f"{file}: has the scores of another model than {model}; delete it")
    return known


def _scored(case: Case, probabilities: Sequence[float]) -> Scored:
    names = (*(route.name for route in case.routes), OTHER)
    row = np.array(probabilities)
    return Scored(case, names[int(row.argmax())], row)
