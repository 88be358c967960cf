"""What is trained on and what is held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from router_training.cases import read_cases, read_written
from router_training.corpus import held_out, read_corpus

OURS = Path(__file__).parents[2] / "build" / "finetune" / "written_policies.jsonl.gz"
UNSEEN = OURS.with_name("unseen_cases.jsonl.gz")
FRESH = OURS.with_name("fresh_cases.jsonl.gz")


def written(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "policy": name,
        "level": "action",
        "routes": [{"name": "billing", "descriptions": ["invoices"]}],
        "singles": {"billing": ["where is my invoice"], "other": ["thanks"]},
        "dialogues": [[{"role": "user", "content": "pay it", "label": "billing"}]],
    }


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def kept_and_held() -> tuple[str, str]:
    names = [f"policy-{number}" for number in range(400)]
    return (
        next(name for name in names if not held_out(name)),
        next(name for name in names if held_out(name)),
    )


def test_policies_of_all_files_are_trained_on_but_those_held_out(
    tmp_path: Path, kept_and_held: tuple[str, str]
) -> None:
    kept, held = kept_and_held
    first = write(tmp_path / "first.jsonl", written(kept), written(held))
    second = write(tmp_path / "second.jsonl", written(f"{kept}-again"))
    corpus = read_corpus([], [first, second])
    ids = {policy.id for policy in corpus.written}
    assert kept in ids
    assert held not in ids
    assert held_out(f"{kept}-again") or f"{kept}-again" in ids
    assert corpus.files == [str(first), str(second)]


def test_policies_of_elsewhere_stay_where_the_written_ones_are_left_out(
    tmp_path: Path, kept_and_held: tuple[str, str]
) -> None:
    kept, held = kept_and_held
    case = {
        "family": "written",
        "conversation": [{"role": "user", "content": "hi"}],
        "routes": [{"name": "billing", "description": "invoices"}],
        "label": "other",
    }
    cases = write(tmp_path / "cases.jsonl", {"id": "train-written-a-1-0001", **case})
    theirs = write(tmp_path / "theirs.jsonl", written(f"{kept}-theirs"))
    ours = write(tmp_path / "ours.jsonl", written(kept), written(held))
    corpus = read_corpus([cases], [theirs], without=["written"], others=[ours])
    assert [policy.id for policy in corpus.written] == [kept]
    assert [each.id for each in corpus.held_out] == ["train-written-a-1-0001"]


def test_cases_drawn_from_written_policies_are_left_to_the_policies(
    tmp_path: Path, kept_and_held: tuple[str, str]
) -> None:
    kept, held = kept_and_held
    routes = [{"name": "billing", "description": "invoices"}]
    turns = [{"role": "user", "content": "where is my invoice"}]
    cases = [
        {
            "id": f"train-written-{policy}-1-0001",
            "family": "written",
            "conversation": turns,
            "routes": routes,
            "label": "billing",
        }
        for policy in (kept, held)
    ]
    path = write(tmp_path / "cases.jsonl", *cases)
    policies = write(tmp_path / "policies.jsonl", written(kept), written(held))
    with_policies, alone = read_corpus([path], [policies]), read_corpus([path])
    assert with_policies.families == {}
    assert [case.id for case in with_policies.held_out] == [f"train-written-{held}-1-0001"]
    assert [case.id for case in alone.families["written"]] == [f"train-written-{kept}-1-0001"]


@pytest.mark.parametrize(("file", "policies"), [(UNSEEN, 100), (FRESH, 60)])
def test_no_unseen_case_is_of_a_policy_to_train_on(file: Path, policies: int) -> None:
    cases = list(read_cases(file))
    family = file.name.split("_")[0]
    found = {case.id.removeprefix(f"{family}-").rsplit("-", 1)[0] for case in cases}
    assert len(found) >= policies
    assert len({case.id for case in cases}) == len(cases)
    assert {case.family for case in cases} == {family}
    assert not found & {policy.id.split("-", 2)[-1] for policy in read_written(OURS)}
    routes = [{(route.name, route.description) for route in case.routes} for case in cases]
    shown = [
        {(route.name, text) for route in policy.routes for text in route.descriptions}
        for policy in read_written(OURS)
    ]
    assert not any(case <= policy for case in routes for policy in shown)


def test_our_own_policies_can_be_drawn_from() -> None:
    policies = read_written(OURS)
    assert len({policy.id for policy in policies}) == len(policies) > 2000
    for policy in policies:
        names = [route.name for route in policy.routes]
        labels = {name for name, _ in policy.singles}
        labels |= {
            label for turns in policy.dialogues for role, _, label in turns if role == "user"
        }
        assert len(set(names)) == len(names) >= 2, policy.id
        assert labels <= {*names, "other"}, policy.id
        assert all(route.descriptions for route in policy.routes), policy.id
