"""Cases to train on are read as strictly as those that are measured."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from router_training.cases import Draw, case_files, read_all, read_cases, read_written
from router_training.corpus import read_corpus
from router_training.errors import InputError
from router_training.mixture import build_mixture

from sidecar.evaluation import cases as evaluation

ROUTES = [{"name": "orders", "description": "parcels"}, {"name": "bills", "description": "sums"}]
TURNS = [{"role": "user", "content": "where is my parcel"}]


def line(**changes: Any) -> dict[str, Any]:
    return {"id": "1", "conversation": TURNS, "routes": ROUTES, "label": "orders"} | changes


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


REFUSED = {
    "no_label": ({"label": None}, "label: must be a text"),
    "label_elsewhere": ({"label": "loans"}, "label: 'loans' is not among the routes"),
    "also_ok_elsewhere": ({"also_ok": ["bill"]}, "also_ok: 'bill' is not among the routes"),
    "also_ok_misspelt": ({"alsook": ["bills"]}, "alsook: unknown key"),
    "no_routes": ({"routes": []}, "routes: must be a list of at least one route"),
    "two_routes_of_one_name": ({"routes": [ROUTES[0]] * 2}, "routes: 'orders' is the name of two"),
    "route_other": (
        {"routes": [*ROUTES, {"name": "other", "description": "the rest"}]},
        "routes: 'other' may not be",
    ),
    "no_description": ({"routes": [{"name": "orders"}]}, r"routes\[0\]\.description: missing"),
    "nobody_speaks": ({"conversation": []}, "conversation: must be a list of at least one message"),
    "role_human": (
        {"conversation": [{"role": "human", "content": "hello"}]},
        r"conversation\[0\]\.role: must be one of system, developer, user",
    ),
    "content_null": (
        {"conversation": [*TURNS, {"role": "user", "content": None}]},
        r"conversation\[1\]\.content: must be a text",
    ),
    "dialogue_number": ({"dialogue_id": 3}, "dialogue_id: must be a text or null"),
    "tags_text": ({"tags": "opaque_names"}, "tags: must be a list of texts"),
    "family_null": ({"family": None}, "family: must be a text"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_line_that_eval_refuses_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = write(tmp_path / "own.jsonl", line(), line(id="2", **changes))
    with pytest.raises(InputError, match=rf"own\.jsonl, line 2: {message}"):
        list(read_cases(file))
    with pytest.raises(evaluation.CaseError):
        evaluation.read_cases([file])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}\n\n{'label': 1}\n", "line 1: conversation: missing"),
        (b"\n\n{'label': 1}\n", "line 3: not JSON: .* at column 2"),
        (b'\n{"label": "\xff"}\n', "line 2: not JSON in UTF-8"),
        (b"[]\n", "line 1: it: must be an object"),
        (b'{"turn_index": ' + b"9" * 5000 + b"}", "line 1: not JSON in UTF-8"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"own\.jsonl, {message}"):
        list(read_cases(file))


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


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(b"\n" * 9)[:-12]], ids=["no gzip", "cut off"]
)
def test_a_damaged_archive_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "own.jsonl.gz"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"own\.jsonl\.gz: cannot be read after line"):
        list(read_cases(file))


def test_a_line_that_is_no_written_policy_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "policies.jsonl", line())
    with pytest.raises(InputError, match=r"policies\.jsonl, line 1: not a written policy: .*level"):
        read_written(file)


def test_the_files_of_a_folder_are_those_that_eval_reads(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/c.jsonl", "good.jsonl.bak", "notes.txt", "a/d.jsonl.gz.part"):
        write(tmp_path / name, line())
    found = case_files([tmp_path, tmp_path / "a" / ".." / "b.jsonl"])
    assert found == [tmp_path / "a" / "c.jsonl", tmp_path / "b.jsonl"]
    assert found == sorted(evaluation.case_files([tmp_path]))
    assert len(read_all([tmp_path])) == 2


@pytest.mark.parametrize("name", ["nowhere", "empty", "cases.txt"])
def test_a_path_without_cases_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "cases.txt").write_text("")
    with pytest.raises(InputError, match=rf"{name}: there is no file that ends in \.jsonl or"):
        case_files([tmp_path / name])


def test_a_link_to_no_file_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "own.jsonl", line())
    (tmp_path / "link.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(InputError, match=r"link\.jsonl: a link to no file"):
        case_files([tmp_path])


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
    with pytest.raises(InputError, match="no cases to train on; name them with --cases"):
        build_mixture({}, [], AsDrawn(), 0)
