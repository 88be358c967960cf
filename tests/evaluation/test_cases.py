"""Reading cases, strictly."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.conversation import Role
from sidecar.evaluation.cases import CaseError, case_files, read_cases, sample
from tests.evaluation.making import case, line, write_cases

ROUTES = line()["routes"]


def test_every_field_is_read(tmp_path: Path) -> None:
    full = line(
        dataset="D",
        family="f",
        split="dev",
        granularity="action",
        also_ok=["billing"],
        dialogue_id="d",
        turn_index=3,
        tags=["multi_turn"],
        conversation=[
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
    )
    (read,) = read_cases([write_cases(tmp_path / "x.jsonl", [full])])
    assert (read.id, read.file, read.family, read.granularity) == ("1", "x", "f", "action")
    assert [route.name for route in read.routes] == ["billing", "code", "weather"]
    assert [m.role for m in read.conversation.messages] == [Role.USER, Role.ASSISTANT, Role.USER]
    assert (read.dialogue_id, read.turn_index, read.tags) == ("d", 3, ("multi_turn",))
    assert read.user_turns == 2
    assert [read.accepts(name) for name in ("code", "billing", "weather")] == [True, True, False]


def test_three_keys_are_enough_the_file_is_the_family_and_the_line_the_id(tmp_path: Path) -> None:
    unnamed = line(id=None)
    _, read = read_cases([write_cases(tmp_path / "mine.jsonl", [unnamed, unnamed])])
    assert (read.id, read.family, read.dialogue_id) == ("mine.jsonl:2", "mine", None)


def test_turns_without_a_number_follow_one_another(tmp_path: Path) -> None:
    said = [{"role": role, "content": "a"} for role in ("system", "user", "assistant", "user")]
    turns = [line(id=str(n), conversation=said[:n], dialogue_id="d") for n in (1, 2, 4)]
    numbers = [each.turn_index for each in read_cases([write_cases(tmp_path / "x.jsonl", turns)])]
    assert numbers == [0, 0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None}, "label: missing"),
        ({"also-ok": []}, 'unknown key "also-ok"; did you mean "also_ok"?'),
        ({"label": "codes"}, 'label: "codes" is not a route of the case; did you mean "code"?'),
        ({"also_ok": ["nothing"]}, 'also_ok: "nothing" is not a route of the case'),
        ({"label": 3}, "label: must be a text"),
        ({"routes": []}, "routes: must be a list of at least one route"),
        ({"routes": [{"name": "a"}]}, "routes[0]: description: missing"),
        ({"routes": [*ROUTES, ROUTES[0]]}, 'routes[3].name: "billing" is already the name'),
        ({"routes": [*ROUTES, {"name": "other", "description": "d"}]}, '"other" is reserved'),
        ({"conversation": []}, "conversation: must be a list of at least one message"),
        ({"conversation": [{"role": "bot", "content": "a"}]}, "conversation[0].role: must be one"),
        ({"conversation": [{"role": ["user"], "content": "a"}]}, "conversation[0].role: must be"),
        ({"conversation": [{"role": "user", "content": None}]}, "conversation[0].content: must be"),
        ({"dialogue_id": 3}, "dialogue_id: must be a text or null"),
        ({"turn_index": -1}, "turn_index: must be a whole number"),
        ({"turn_index": True}, "turn_index: must be a whole number"),
        ({"tags": "a"}, "tags: must be a list of texts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said_with_file_and_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_cases(tmp_path / "x.jsonl", [line(id="0"), line(**changes)])
    with pytest.raises(CaseError) as error:
        read_cases([path])
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)
    assert "Fix this" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "x.jsonl:1: not JSON"),
        (b'{"conversation": [],\n "routes": []}', "one JSON object on one line"),
        (b"[]", "x.jsonl:1: must be an object"),
        (b'{"id": ' + b"9" * 5000 + b"}", "x.jsonl:1: not JSON"),
        (b"\n\xff\n", "x.jsonl:2: not UTF-8"),
        (b"\n\n", "x.jsonl: there are no cases in it; add some, or remove the file"),
        (json.dumps(line()).encode() * 1 + b"\n\n" + json.dumps(line()).encode(),
         'x.jsonl:3: id: "1" is already that of line 1'),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_cases_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(CaseError, match=r"^") as error:
        read_cases([tmp_path / "x.jsonl"])
    assert message in str(error.value)


def test_a_file_without_cases_among_others_is_not_passed_over(tmp_path: Path) -> None:
    write_cases(tmp_path / "x.jsonl", [line()])
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(CaseError, match=r"empty\.jsonl: there are no cases in it"):
        read_cases([tmp_path])


def test_folders_and_compressed_files_are_read(tmp_path: Path) -> None:
    write_cases(tmp_path / "b.jsonl", [line()])
    (tmp_path / "in").mkdir()
    with gzip.open(tmp_path / "in" / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps(line(id="z")))
    (tmp_path / "notes.txt").write_text("not cases")
    assert [(c.file, c.id) for c in read_cases([tmp_path])] == [("b", "1"), ("a", "z")]


def test_a_byte_order_mark_is_passed_over_as_in_a_file_of_conversations(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(line()).encode())
    assert [each.id for each in read_cases([tmp_path])] == ["1"]


def test_a_damaged_compressed_file_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(line()).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(CaseError, match="cannot be read"):
        read_cases([tmp_path])


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.jsonl", "b.jsonl.gz"], ["a", "b"]),
        (["x/a.jsonl", "y/a.jsonl"], ["x/a", "y/a"]),
        (["x/a.jsonl", "x/b.jsonl", "y/a.jsonl"], ["x/a", "x/b", "y/a"]),
        (["a.jsonl", "a.jsonl.gz", "b.jsonl"], ["a.jsonl", "a.jsonl.gz", "b.jsonl"]),
        (["a.jsonl", "a.jsonl.1.jsonl"], ["a", "a.jsonl.1"]),
    ],
)
def test_names_tell_files_apart(tmp_path: Path, files: list[str], names: list[str]) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert list(case_files([tmp_path]).values()) == names


def test_links_into_one_store_are_named_by_where_they_are(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        stored = tmp_path / f"stored-{folder}"
        (tmp_path / "cases" / folder).mkdir(parents=True)
        write_cases(stored, [line()])
        (tmp_path / "cases" / folder / "a.jsonl").symlink_to(stored)
    assert list(case_files([tmp_path / "cases"]).values()) == ["x/a", "y/a"]


def test_a_file_that_is_named_in_two_ways_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    path = write_cases(tmp_path / "in" / "a.jsonl", [line()])
    monkeypatch.chdir(tmp_path)
    named = [Path("in/a.jsonl"), path, Path("in"), Path("in/../in/a.jsonl")]
    assert case_files(named) == {Path("in/a.jsonl"): "a"}


def test_paths_without_cases_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").touch()
    for path, message in [
        (tmp_path, "has no file that ends in"),
        (tmp_path / "x.json", "cases are in files that end in"),
        (tmp_path / "no.jsonl", "does not exist"),
    ]:
        with pytest.raises(CaseError, match=message):
            case_files([path])


@pytest.mark.parametrize("to", ["gone.jsonl", "link.jsonl"], ids=["nothing", "itself"])
def test_a_link_to_no_file_is_not_passed_over(tmp_path: Path, to: str) -> None:
    """What is measured would be less than the folder says."""
    write_cases(tmp_path / "x.jsonl", [line()])
    (tmp_path / "link.jsonl").symlink_to(to)
    with pytest.raises(CaseError, match=r"link\.jsonl: a link to no file; mend or remove it"):
        case_files([tmp_path])


def test_a_sample_is_the_same_each_time_and_keeps_dialogues_whole() -> None:
    cases = [
        *(case(id=f"s{n}", file=f"f{n % 4}") for n in range(80)),
        *(case(id=f"d{n}", dialogue=str(n // 4), turn=n % 4) for n in range(40)),
    ]
    drawn = sample(cases, 30)
    assert drawn == sample(cases, 30)
    assert 27 <= len(drawn) <= 30
    turns = [c.dialogue_id for c in drawn if c.dialogue_id]
    assert turns
    assert all(turns.count(dialogue) == 4 for dialogue in turns)
    assert {c.file for c in drawn} >= {"f0", "f1", "f2", "f3"}
    assert drawn == [c for c in cases if c in drawn]


def test_a_limit_below_every_dialogue_still_gives_one() -> None:
    assert len(sample([case(id=str(n), dialogue="d", turn=n) for n in range(4)], 2)) == 4
    assert len(sample([case(id=str(n)) for n in range(4)], 9)) == 4
