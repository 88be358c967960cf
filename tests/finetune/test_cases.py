"""Cases to train on are read as those that are measured, and policies as strictly."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from router_training.cases import (
    Draw,
    WrittenRoute,
    case_files,
    read_all,
    read_cases,
    read_written,
)
from router_training.corpus import read_corpus
from router_training.errors import InputError
from router_training.mixture import build_mixture

from sidecar.evaluation import cases as evaluation
from sidecar.evaluation.cases import CaseError

ROUTES = [{"name": "orders", "description": "parcels"}, {"name": "bills", "description": "sums"}]
TURNS = [{"role": "user", "content": "where is my parcel"}]


def line(**changes: Any) -> dict[str, Any]:
    return {"id": "1", "conversation": TURNS, "routes": ROUTES, "label": "orders"} | changes


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


REFUSED = {
    "no_label": {"label": None},
    "label_elsewhere": {"label": "bill"},
    "also_ok_elsewhere": {"also_ok": ["bill"]},
    "also_ok_misspelt": {"alsook": ["bills"]},
    "no_routes": {"routes": []},
    "two_routes_of_one_name": {"routes": [ROUTES[0]] * 2},
    "route_other": {"routes": [*ROUTES, {"name": "Other", "description": "the rest"}]},
    "route_without_a_name": {"routes": [*ROUTES, {"name": "", "description": "the rest"}]},
    "route_without_words": {"routes": [*ROUTES, {"name": "loans", "description": " "}]},
    "no_description": {"routes": [{"name": "orders"}]},
    "nobody_speaks": {"conversation": []},
    "role_human": {"conversation": [{"role": "human", "content": "hello"}]},
    "content_null": {"conversation": [*TURNS, {"role": "user", "content": None}]},
    "dialogue_number": {"dialogue_id": 3},
    "turn_text": {"turn_index": "3"},
    "tags_text": {"tags": "opaque_names"},
    "family_null": {"family": None},
    "id_of_another": {"id": "1"},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED.keys())
def test_a_line_that_eval_refuses_is_refused_in_its_words(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    file = write(tmp_path / "own.jsonl", line(), line(id="2") | changes)
    with pytest.raises(CaseError) as of_eval:
        evaluation.read_cases([file])
    assert str(of_eval.value).startswith(f"{file}:2: ")
    for read in (read_all, read_corpus):
        with pytest.raises(CaseError) as error:
            read([file])
        assert str(error.value) == str(of_eval.value)


def test_what_a_line_leaves_out_is_filled_in(tmp_path: Path) -> None:
    said = [{"role": "system", "content": "a shop"}, *TURNS]
    short = {"conversation": said, "routes": ROUTES, "label": "orders"}
    full = line(id="7", family="shop", granularity="action", dialogue_id="d", also_ok=["bills"])
    own, shop = read_all([write(tmp_path / "own.jsonl", short, full | {"tags": ["long"]})])
    assert (own.id, own.family, own.dialogue) == ("own.jsonl:1", "own", "own.jsonl:1")
    assert own.request.turns == (("system", "a shop"), ("user", TURNS[0]["content"]))
    assert type(own.request.turns[0][0]) is str
    assert (shop.family, shop.granularity, shop.dialogue) == ("shop", "action", "d")
    assert shop.request.right == {"orders", "bills"}
    assert shop.tags == {"long"}
    assert own.routes[0] is shop.routes[0]


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "user", "content": ""}],
        [{"role": "system", "content": "You are a shop."}],
        [{"role": "user", "content": ""}, {"role": "tool", "content": "42"}],
    ],
)
def test_cases_of_which_no_model_is_asked_are_not_trained_on(
    tmp_path: Path, turns: list[dict[str, str]]
) -> None:
    file = write(tmp_path / "own.jsonl", line(), line(id="2", conversation=turns, label="other"))
    assert [case.id for case in read_cases(file)] == ["1"]
    _, unasked = evaluation.read_cases([file])
    assert not unasked.conversation.shown_to_router()


def test_a_byte_order_mark_is_passed_over_as_by_eval(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_bytes(codecs.BOM_UTF8 + json.dumps(line()).encode())
    assert [case.id for case in read_cases(file)] == ["1"]
    assert [case.id for case in evaluation.read_cases([file])] == ["1"]


def test_half_an_emoji_in_a_name_is_no_mistake(tmp_path: Path) -> None:
    file = write(tmp_path / "own.jsonl", line(id="\ud83d", dialogue_id="\ud83d"))
    assert len(read_corpus([file]).families["own"]) == 1


def test_a_file_without_cases_among_others_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "own.jsonl", line())
    empty = write(tmp_path / "empty.jsonl")
    with pytest.raises(CaseError, match=r"empty\.jsonl: there are no cases in it"):
        read_all([tmp_path])
    with pytest.raises(InputError, match=r"empty\.jsonl: there are no policies in it"):
        read_written(empty)


def test_a_written_policy_is_read(tmp_path: Path) -> None:
    (policy,) = read_written(write(tmp_path / "policies.jsonl", written()))
    assert policy.routes == (WrittenRoute("orders", ("parcels", "what was sent")),)
    assert policy.singles == (("orders", "where is it"), ("other", "thanks"))
    assert policy.dialogues == ((("user", "where", "orders"), ("assistant", "here", "")),)


def written(**changes: Any) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": "where", "label": "orders"},
        {"role": "assistant", "content": "here"},
    ]
    return {
        "id": "p",
        "level": "action",
        "routes": [{"name": "orders", "descriptions": ["parcels", "what was sent"]}],
        "singles": {"orders": ["where is it"], "other": ["thanks"]},
        "dialogues": [turns],
    } | changes


NO_POLICIES: dict[str, tuple[dict[str, Any], str]] = {
    "a_case": (line(), "KeyError\\('level'\\)"),
    "no_level": (written(level=None), "id, level and the routes' names must be texts"),
    "no_routes": (written(routes=[]), "routes: must be one or more"),
    "route_other": (
        written(routes=[{"name": "other", "descriptions": ["the rest"]}]),
        "routes: must be one or more, each with a name of its own, none 'other'",
    ),
    "one_description": (
        written(routes=[{"name": "orders", "descriptions": "parcels"}]),
        "descriptions: must be lists of texts",
    ),
    "no_descriptions": (
        written(routes=[{"name": "orders", "descriptions": []}]),
        "routes: 'orders' has no descriptions",
    ),
    "one_request": (written(singles={"orders": "where is it"}), "singles: must be lists of texts"),
    "blank_request": (written(singles={"orders": [" "]}), "singles: must be lists of texts, none"),
    "label_elsewhere": (written(singles={"order": ["where"]}), "'order' is not a route of the"),
    "turn_elsewhere": (
        written(dialogues=[[{"role": "user", "content": "a", "label": "order"}]]),
        "'order' is not a route of the policy",
    ),
    "role_human": (
        written(dialogues=[[{"role": "human", "content": "a", "label": "orders"}]]),
        "dialogues: a turn is of user or assistant",
    ),
    "label_of_the_assistant": (
        written(dialogues=[[{"role": "assistant", "content": "a", "label": "orders"}]]),
        "dialogues: a turn is .* has a label only of the user",
    ),
    "no_request": (written(singles={}, dialogues=[]), "singles, dialogues: there is no request"),
}


@pytest.mark.parametrize(("policy", "message"), NO_POLICIES.values(), ids=NO_POLICIES.keys())
def test_a_line_that_is_no_written_policy_is_named(
    tmp_path: Path, policy: dict[str, Any], message: str
) -> None:
    file = write(tmp_path / "policies.jsonl", written(), policy)
    with pytest.raises(InputError, match=rf"policies\.jsonl:2: not a written policy: {message}"):
        read_written(file)


def test_a_line_of_policies_that_is_not_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "policies.jsonl"
    file.write_text("\n{")
    with pytest.raises(
        CaseError, match=r"policies\.jsonl:2: not JSON: .*; a written policy is one"
    ):
        read_written(file)


def test_the_files_of_a_folder_are_those_that_eval_reads(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/c.jsonl", "good.jsonl.bak", "notes.txt", "a/d.jsonl.gz.part"):
        write(tmp_path / name, line())
    found = case_files([tmp_path, tmp_path / "a" / ".." / "b.jsonl"])
    assert found == [tmp_path / "a" / "c.jsonl", tmp_path / "b.jsonl"]
    assert len(read_all([tmp_path])) == 2
    assert read_all([]) == []


class AsDrawn:
    limit = ""

    def encode(self, draw: Draw) -> Draw:
        return draw


def test_families_that_nobody_knows_are_no_families_to_leave_out(tmp_path: Path) -> None:
    file = write(tmp_path / "own.jsonl", line(family="shop"))
    for known in ("shop", "clinc", "t0"):
        read_corpus([file], without=[known])
    with pytest.raises(InputError, match="--without: no cases of the family nosuch"):
        read_corpus([file], without=["nosuch", "shop"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"bogus": 1.0}, "--weight: no cases of the family bogus; there are shop"),
        ({"shop": 0.0}, "--weight: every family's is 0"),
    ],
)
def test_weights_that_cannot_be_are_refused(
    tmp_path: Path, weights: dict[str, float], message: str
) -> None:
    cases = list(read_cases(write(tmp_path / "own.jsonl", line(family="shop"))))
    build_mixture({"shop": cases}, [], AsDrawn(), 0, weights={"shop": 1.0, "clinc": 1.0})
    with pytest.raises(InputError, match=message):
        build_mixture({"shop": cases}, [], AsDrawn(), 0, weights=weights)


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(
        InputError, match="no cases to train on, but those held out or left out; name"
    ):
        build_mixture({}, [], AsDrawn(), 0)
