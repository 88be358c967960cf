"""The language model's scores in a file, so that a fusion is fitted again without computing them.
Skipped where torch is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed; only training needs it")
pytest.importorskip("safetensors", reason="safetensors is not installed; only training needs it")

from router_training.cases import Case, Request, RouteText
from router_training.errors import InputError
from router_training.kept_scores import kept_scores
from router_training.opinions import opinions_of
from router_training.scoring import Scored


def case(name: str, routes: Sequence[str] = ("a", "b")) -> Case:
    request = Request((("user", "hello"),), frozenset({"a"}))
    texts = tuple(RouteText(name, f"what {name} is") for name in routes)
    return Case(name, "own", "mixed", texts, request, "a", name, frozenset())


class Model:
    """Stands in for the language model: notes what it is asked, and cannot read `unread`."""

    def __init__(self, folder: Path, content: str = "weights") -> None:
        self.asked: list[str] = []
        self.path = folder / "model"
        self.path.write_text(content)

    def scores(self, file: Path, *names: str) -> dict[str, str]:
        cases = [case(name) for name in names]
        return {one.case.id: one.answer for one in kept_scores(file, self.path, cases, self._score)}

    def _score(self, cases: list[Case]) -> list[Scored]:
        self.asked += [one.id for one in cases]
        row = np.array([0.25, 0.5, 0.25])
        return [Scored(one, "b", row) for one in cases if one.id != "unread"]


def test_only_what_the_file_lacks_is_computed(tmp_path: Path) -> None:
    model, file = Model(tmp_path), tmp_path / "scores.json"
    assert model.scores(file, "one") == {"one": "b"}
    assert model.scores(file, "one", "two") == {"one": "b", "two": "b"}
    assert model.asked == ["one", "two"]


def test_cases_that_the_model_cannot_read_have_no_score_and_are_tried_once(tmp_path: Path) -> None:
    model, file = Model(tmp_path), tmp_path / "scores.json"
    assert model.scores(file, "unread", "one") == {"one": "b"}
    assert model.scores(file, "unread", "one") == {"one": "b"}
    assert model.asked == ["unread", "one"]


@pytest.mark.parametrize(
    "other",
    [
        case("one", routes=("a", "b", "c")),
        case("one", routes=("b", "a")),
        replace(case("one"), request=Request((("user", "goodbye"),), frozenset({"a"}))),
    ],
    ids=["another number of routes", "another order", "another request"],
)
def test_scores_of_another_case_with_the_same_id_are_not_taken(tmp_path: Path, other: Case) -> None:
    model, file = Model(tmp_path), tmp_path / "scores.json"
    model.scores(file, "one")
    kept_scores(file, model.path, [other], model._score)
    assert model.asked == ["one", "one"]


def test_scores_of_another_model_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    Model(tmp_path).scores(file, "one")
    with pytest.raises(ValueError, match=r"scores\.json: has the scores of another model"):
        Model(tmp_path, "other weights").scores(file, "one")


def test_two_cases_with_one_id_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    model, file = Model(tmp_path), tmp_path / "scores.json"
    with pytest.raises(InputError, match=r"several cases have the id 'one';"):
        model.scores(file, "one", "two", "one")
    assert not model.asked
    assert not file.exists()


def test_opinions_of_two_cases_with_one_id_are_not_mixed_up() -> None:
    scored = [Scored(case("one"), "b", np.array([0.25, 0.5, 0.25]))] * 2
    with pytest.raises(InputError, match="the id 'one'"):
        opinions_of(scored, None, None)  # type: ignore[arg-type]
