"""Measuring on families that neither the models nor the fusion have seen. Skipped where torch is
not installed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed; only training needs it")
pytest.importorskip("safetensors", reason="safetensors is not installed; only training needs it")

from router_training.errors import InputError
from router_training.fusion import Opinions
from router_training.leave_out import (
    Group,
    LeftOut,
    cross_fitted,
    group_from_json,
    group_to_json,
    measured,
    table,
)
from router_training.untrained import nearest


def case(name: str, family: str, right: int, language_model: int, encoder: int) -> LeftOut:
    """Over two routes and `other`: the candidates that are right and that each model prefers."""
    opinions = Opinions(
        family,
        np.log(np.where(np.arange(3) == language_model, 0.8, 0.1)),
        np.where(np.arange(3) == encoder, 4.0, 0.0),
        np.arange(3) == right,
    )
    return LeftOut(name, right == 2, opinions)


def group(family: str, *, seed: int = 0, count: int = 40) -> Group:
    """The language model is right in eight of ten cases, the encoder in seven."""
    rng = np.random.default_rng([seed, *family.encode()])
    cases = []
    for number in range(count):
        right = int(rng.integers(3))
        said = [right if rng.random() < sure else int(rng.integers(3)) for sure in (0.7, 0.55)]
        cases.append(case(f"{family}-{number}", family, right, *said))
    return Group((family,), tuple(cases))


def poisoned(own: Group) -> Group:
    """The same cases with their answers moved on by one."""
    return replace(
        own,
        cases=tuple(
            replace(one, opinions=replace(one.opinions, right=np.roll(one.opinions.right, 1)))
            for one in own.cases
        ),
    )


GROUPS = [group("clinc"), group("sgd"), group("written")]


@pytest.mark.parametrize("index", range(3))
def test_a_groups_own_labels_change_the_others_numbers_and_not_its_own(index: int) -> None:
    fitted = cross_fitted(GROUPS)
    groups = [poisoned(one) if at == index else one for at, one in enumerate(GROUPS)]
    for at, (before, after) in enumerate(zip(fitted, cross_fitted(groups), strict=True)):
        assert (before == after) == (at == index)


def test_a_family_that_two_groups_have_is_in_the_fit_of_neither() -> None:
    def with_shared(own: Group, shared: Group) -> Group:
        return replace(own, cases=(*own.cases, *shared.cases))

    shared = group("unseen")
    groups = [with_shared(one, shared) for one in GROUPS[:2]]
    assert cross_fitted(groups) == cross_fitted(GROUPS[:2])


def test_every_family_has_the_same_share_of_a_fit() -> None:
    once = GROUPS[1]
    copies = tuple(replace(one, id=f"{one.id}-again") for one in once.cases)
    twice = replace(once, cases=(*once.cases, *copies))
    first = cross_fitted([GROUPS[0], once, GROUPS[2]])[0].fused
    second = cross_fitted([GROUPS[0], twice, GROUPS[2]])[0].fused
    assert second.language_model == pytest.approx(first.language_model, rel=1e-3)
    assert second.encoder == pytest.approx(first.encoder, rel=1e-3)


def test_a_group_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="no other group has cases of other families than clinc"):
        cross_fitted([GROUPS[0]])


def test_a_group_reads_back_as_it_was_written() -> None:
    content = json.loads(json.dumps(group_to_json(GROUPS[0])))
    again = group_from_json(content)
    assert content["cases"][0]["routes"] == 2
    assert again.without == ("clinc",)
    for one, two in zip(GROUPS[0].cases, again.cases, strict=True):
        assert (one.id, one.other, one.opinions.family) == (two.id, two.other, two.opinions.family)
        assert two.opinions.right.tolist() == one.opinions.right.tolist()
        assert two.opinions.language_model == pytest.approx(one.opinions.language_model, abs=5e-5)
        assert two.opinions.encoder == pytest.approx(one.opinions.encoder, abs=5e-5)


@pytest.mark.parametrize("key", ["right", "language_model", "encoder"])
def test_a_case_without_a_number_for_each_candidate_is_refused(key: str) -> None:
    content = group_to_json(GROUPS[0])
    content["cases"][0][key].pop()
    with pytest.raises(ValueError, match="case clinc-0 does not have one number a route"):
        group_from_json(content)


def test_families_count_the_same_in_means_whatever_their_cases() -> None:
    """Both models are right in all ten cases of one family and in neither of the two of another."""
    right = [case(f"r{n}", "right", 0, 0, 0) for n in range(10)]
    wrong = [case(f"w{n}", "wrong", 0, 1, 1) for n in range(2)]
    judged = Group(("right", "wrong"), (*right, *wrong))
    result = measured([judged, GROUPS[0]])
    row = next(one for one in result["groups"] if one["without"] == "right,wrong")
    for way in ("language_model", "encoder", "fused"):
        assert row[way]["macro_turn_accuracy"] == 0.5
        assert row[way]["turn_accuracy"] == pytest.approx(10 / 12, abs=1e-4)
        assert row["families"]["right"][way]["turn_accuracy"] == 1.0
        assert row["families"]["wrong"][way]["turn_accuracy"] == 0.0
    clinc = result["families"]["clinc"]["fused"]["turn_accuracy"]
    overall = result["all"]["fused"]["macro_turn_accuracy"]
    assert overall == pytest.approx((1.0 + 0.0 + clinc) / 3, abs=2e-4)


def test_other_is_measured_on_the_cases_labelled_so() -> None:
    said = Group(("said",), tuple(case(f"c{n}", "said", 2, 2 if n else 0, 2) for n in range(4)))
    row = measured([said, GROUPS[0]])["groups"][0]
    assert row["language_model"]["other_accuracy"] == 0.75
    assert row["encoder"]["other_accuracy"] == 1.0


def test_points_above_the_baseline_are_those_of_the_mean_over_families() -> None:
    always_first = [{one.id: 0 for one in own.cases} for own in GROUPS]
    result = measured(GROUPS, always_first)
    row = result["groups"][1]
    firsts = np.mean([one.opinions.right[0] for one in GROUPS[1].cases])
    assert row["minilm"]["turn_accuracy"] == pytest.approx(firsts, abs=1e-4)
    assert row["minilm"]["other_accuracy"] == 0.0
    assert "ece" not in row["minilm"]
    above = 100 * (row["fused"]["turn_accuracy"] - row["minilm"]["turn_accuracy"])
    assert row["points_above_minilm"] == pytest.approx(above, abs=0.01)


@pytest.mark.parametrize("baseline", [False, True])
def test_the_table_has_a_line_for_every_family_and_group(baseline: bool) -> None:
    answers = [{one.id: 0 for one in own.cases} for own in GROUPS] if baseline else None
    lines = table(measured(GROUPS, answers)).splitlines()
    named = [line[:36].strip() for line in lines[2:]]
    of_groups = [name for own in GROUPS for name in (own.name, f"without {own.name}")]
    assert named == [*of_groups, "all"]
    assert ("minilm" in lines[0]) == baseline
    assert len({len(line) for line in lines[1:]}) == 1


def test_the_baseline_is_not_asked_about_another_case_with_the_same_id(tmp_path: Path) -> None:
    line = {
        "id": "clinc-0",
        "family": "clinc",
        "conversation": [{"role": "user", "content": "hello"}],
        "routes": [{"name": name, "description": name} for name in ("one", "two")],
        "label": "one",
    }
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match="the id 'clinc-0'"):
        nearest([tmp_path], [group("clinc", count=1)])
