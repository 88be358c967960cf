"""`sidecar policy` against a store, files and a running sidecar: what it prints, how it exits."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from ruamel.yaml import YAML

from sidecar.policies.documents import catalog_document, policy_document, yaml_text
from sidecar.policies.stores import ChangeKind
from tests.cli.policy_commands import SUPPORT, beside, done, edit, only_fast, plain, sidecar
from tests.grpc_api.stored import stored
from tests.policies.stores import parts
from tests.policies.stores.parts import CATALOG, FAST, LARGE, policy
from tests.waiting import until


def test_history_tells_who_and_why(at: str, folder: Path) -> None:
    done("apply", edit(folder), "--at", at, "--author", "grace", "-m", "clearer")

    history = plain("history", "support", "--at", at)

    assert [(h["revision"], h["author"], h["message"]) for h in history] == [
        (2, "grace", "clearer"),
        (1, "ada", "first steps"),
    ]
    assert not history[0]["author_verified"]
    assert "grace (claimed): clearer" in done("history", "support", "--at", at)


@pytest.mark.parametrize("command", [("history", "support"), ("list",)], ids=lambda each: each[0])
def test_change_is_a_line_of_a_table_whatever_its_message(
    at: str, folder: Path, command: tuple[str, ...]
) -> None:
    done("apply", edit(folder), "--at", at, "-m", "first line\nand " + "more " * 300)

    lines = done(*command, "--at", at).splitlines()

    assert len(lines) == (3 if command[0] == "history" else 2)
    assert "(claimed): first line and more" in lines[1]


@pytest.mark.parametrize("name", ["\udcff", "two\nlines"])
def test_login_name_that_no_place_keeps_is_left_out(
    at: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("LOGNAME", name)

    done("delete", "support", "--at", at)

    assert [each["author"] for each in plain("history", "support", "--at", at)] == ["", "ada"]


def test_diff_of_revisions_and_of_a_file(at: str, folder: Path) -> None:
    done("apply", edit(folder), "--at", at)
    file = edit(folder, "third")

    assert plain("diff", "support", "--at", at) == [
        {"path": "description", "before": "first", "after": "second"}
    ]
    assert "-description: second\n+description: third" in done(
        "diff", "support", "--file", file, "--at", at
    )
    assert sidecar("diff", "support", "--exit-code", "--at", at).exit_code == 1
    same = sidecar("diff", "support", "--from", 2, "--to", 2, "--exit-code", "--at", at)
    assert (same.exit_code, same.output) == (0, "")


def test_diff_of_a_policy_that_is_not_there_yet_is_all_of_it(at: str, folder: Path) -> None:
    file = folder / "new.yaml"
    file.write_text(yaml_text(only_fast()).replace("support", "new"))

    shown = sidecar("diff", "new", "--file", file, "--exit-code", "--at", at)

    assert (shown.exit_code, "+name: new\n" in shown.output) == (1, True)
    assert {"path": "name", "before": None, "after": "new"} in plain(
        "diff", "new", "--file", file, "--at", at
    )


def test_file_without_the_policy_says_so_whatever_else_is_doubtful(at: str, folder: Path) -> None:
    """A policy without routes is a warning."""
    file = folder / "new.yaml"
    file.write_text(yaml_text(only_fast()).replace("support", "new"))

    result = sidecar("diff", "support", "--file", file, "--at", at)

    assert result.exit_code == 1
    assert f"{file}: it has no policy {SUPPORT}" in result.stderr


def test_rollback_delete_and_undelete(at: str, folder: Path) -> None:
    done("apply", edit(folder), "--at", at)

    assert "rolled back to revision 1 (revision 3)" in done("rollback", "support", 1, "--at", at)
    assert "deleted (revision 4)" in done("delete", SUPPORT, "--at", at)
    assert plain("list", "--at", at) == []
    assert [each["deleted"] for each in plain("list", "--deleted", "--at", at)] == [True]
    assert "undeleted (revision 5)" in done("undelete", "support", "--at", at)
    assert plain("get", "support", "--at", at)["policy"]["description"] == "first"


def test_get_prints_what_apply_takes(at: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.yaml"
    out.write_text(done("get", "support", "--at", at))

    assert out.read_text().startswith(f"# {SUPPORT}, revision 1\n# etag 1-")
    assert "unchanged" in done("apply", out, "--at", at)


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_outputs_for_programs_say_the_same(at: str, output: str) -> None:
    text = done("get", "support", "--at", at, "--output", output)
    value = json.loads(text) if output == "json" else YAML(typ="safe").load(text)

    assert value["name"] == SUPPORT
    assert value["policy"] == policy_document(policy())


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("get", "gone"), 4, "`sidecar policy list`, gives those"),
        (("get", "support", "--revision", "9"), 4, "no revision 9"),
        (("rollback", "support", "9"), 4, "no revision 9"),
        (("delete", "support", "--etag", "1-x"), 3, "whose etag now is"),
        (("undelete", "support"), 1, "not deleted"),
        (("list", "--filter", "colour:red"), 1, "filter"),
        (("get",), 2, "Missing argument"),
        (("get", "Support Team"), 2, '"Support Team" names no policy'),
        (("get", "namespaces/a/policies/"), 2, "names no policy"),
        (("get", "support", "--revision", "0"), 2, "--revision"),
        (("diff", "support", "--from", "-1"), 2, "--from"),
        (("rollback", "support", "first"), 2, "REVISION"),
        (("list", "--output", "xml"), 2, "--output"),
        (("list", "--namespace", "NO PE"), 2, "--namespace"),
        (("get", "support", "--revision", "9" * 23), 2, "--revision"),
        (("diff", "support", "--from", "9" * 23), 2, "--from"),
        (("rollback", "support", "9" * 23), 2, "REVISION"),
        (("watch", "--after", "9" * 23), 2, "--after"),
        (("delete", "support", "--author", "a" * 201), 2, "--author must have at most 200"),
        (("delete", "support", "-m", "m" * 2001), 2, "--message must have at most 2000"),
        (("delete", "support", "-m", "half \udcff"), 2, "--message"),
        (("delete", "support", "--etag", ""), 2, "'--etag': is empty; leave it out"),
        (("rollback", "support", 1, "--etag", ""), 2, "'--etag': is empty; leave it out"),
        (("delete", "support", "--etag", "half \udcff"), 2, "'--etag': has a byte that is not"),
        (("list", "--filter", "author:\udcff"), 2, "'--filter': has a byte that is not"),
        (("export", "support", "--to", "plano", "-o", "/no/folder/x"), 1, "--out /no/folder/x: No"),
    ],
)
def test_exit_statuses(at: str, arguments: tuple[str, ...], status: int, says: str) -> None:
    result = sidecar(*arguments, "--at", at)

    assert result.exit_code == status
    assert says in result.output


@pytest.mark.parametrize(
    ("place", "status"),
    [("127.0.0.1:1", 5), ("unix:/nowhere.sock", 5), ("sqlite:/no/folder/p.db", 5), ("what", 1)],
)
def test_place_that_cannot_be_reached(place: str, status: int) -> None:
    result = sidecar("list", "--at", place)

    assert result.exit_code == status
    assert result.output.startswith("Error: ")


async def test_sidecar_that_is_late_is_not_called_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.cli.policy_options._TIMEOUT_S", 0.5)
    store = parts.sqlite(tmp_path, policy("other"), policy())
    last_change = store.last_change

    def late() -> int:
        time.sleep(1)
        return last_change()

    async with stored(store) as api:
        monkeypatch.setattr(store, "last_change", late)
        result = await beside(api, "list")

    assert result.exit_code == 5
    assert "did not answer in time; what it was asked to change may" in result.stderr


@pytest.mark.parametrize(
    ("place", "says"), [("", "--at is empty; "), ("a" * 300, "File name too long; name another")]
)
def test_place_that_is_none_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, says: str
) -> None:
    monkeypatch.chdir(folder)

    result = sidecar("list", "--at", place)

    assert result.exit_code == 1
    assert says in result.stderr


@pytest.mark.parametrize("content", [None, "empty", "another program's"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("get", "support"),
        ("history", "support"),
        ("catalog",),
        ("diff", "support"),
        ("export", "--to", "litellm"),
        ("watch", "--count", 1),
        ("delete", "support"),
        ("undelete", "support"),
        ("rollback", "support", 1),
        ("prune", "--keep", 1),
    ],
)
def test_database_without_policies_is_named_and_left_as_it_is(
    tmp_path: Path, arguments: tuple[object, ...], content: str | None
) -> None:
    file = tmp_path / "typo.db"
    if content is not None:
        file.touch()
    if content == "another program's":
        with closing(sqlite3.connect(file)) as database:
            database.execute("CREATE TABLE mine (id INTEGER)")
    before = file.read_bytes() if content is not None else b""

    result = sidecar(*arguments, "--at", f"sqlite:{file}")

    why = "there is no such file" if content is None else "it has no tables of policies"
    assert result.exit_code == 5
    assert f"typo.db cannot be opened: {why}; name another one, or make it" in result.stderr
    left = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    assert left == ({} if content is None else {"typo.db": before})


def test_file_to_compare_with_is_named_once(at: str, tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("kind: Nothing\n")

    result = sidecar("diff", "support", "--file", file, "--at", at)

    assert result.exit_code == 1
    assert result.stderr.count(str(file)) == 1


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_validate_tells_programs_what_is_wrong(folder: Path, output: str) -> None:
    file = edit(folder)
    file.write_text(file.read_text().replace("acme/fast", "acme/fats"))

    result = sidecar("validate", folder, "--output", output)

    read: Any = json.loads if output == "json" else YAML(typ="safe").load
    told = read(result.stdout)
    assert result.exit_code == 1
    assert not told["valid"]
    assert {each["severity"] for each in told["findings"]} == {"error"}


def test_files_are_read_and_not_written(folder: Path) -> None:
    assert plain("get", "support", "--at", folder)["policy"] == policy_document(policy())

    assert plain("get", "support", "--revision", 1, "--at", folder)["revision"] == 1
    assert sidecar("get", "support", "--revision", 2, "--at", folder).exit_code == 4
    assert done("diff", "support", "--at", folder) == ""

    result = sidecar("delete", "support", "--at", folder)

    assert result.exit_code == 1
    assert "default-support.yaml" in result.output


@pytest.mark.parametrize(
    "command", [("export", "--to", "plano"), ("diff", "--file", "FILE")], ids=lambda each: each[0]
)
def test_deleted_policy_is_not_taken_for_a_present_one(
    at: str, folder: Path, command: tuple[str, ...]
) -> None:
    """Its models may have left the catalog since."""
    (folder / "catalog.yaml").write_text(yaml_text(catalog_document([FAST])))
    done("delete", "support", "--at", at)
    done("apply", folder / "catalog.yaml", "--at", at)
    file = folder / "default-support.yaml"
    file.write_text(yaml_text(only_fast()))
    name, *options = command

    given = [str(file) if each == "FILE" else each for each in options]
    result = sidecar(name, "support", *given, "--at", at)

    assert result.exit_code == 4, result.output
    assert f"{SUPPORT} has been deleted; undelete it first" in result.stderr


async def test_against_a_running_sidecar(tmp_path: Path, folder: Path) -> None:
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        applied = await beside(api, "apply", edit(folder), "-m", "over the wire")
        dry = await beside(api, "apply", folder, "--dry-run")
        got = await beside(api, "get", "support", "--output", "json")
        listed = await beside(api, "list", "--output", "json")
        history = await beside(api, "history", "support", "--output", "json")
        conflict = await beside(api, "rollback", "support", 1, "--etag", "9-x")
        rolled = await beside(api, "rollback", "support", 1)
        missing = await beside(api, "get", "gone")
        watched = await beside(api, "watch", "--after", 0, "--count", 4)
        catalog = await beside(api, "catalog", "--output", "json")

    assert "updated (revision 2)" in applied.output, applied.output
    assert "unchanged (revision 2)" in dry.output
    assert json.loads(got.output)["policy"] == policy_document(policy(description="second"))
    assert [each["name"] for each in json.loads(listed.output)] == [SUPPORT]
    assert [each["message"] for each in json.loads(history.output)] == [
        "over the wire",
        "from files",
    ]
    assert (conflict.exit_code, rolled.exit_code, missing.exit_code) == (3, 0, 4)
    # What the sidecar of this process logs meanwhile is caught, too.
    changes = [line for line in watched.output.splitlines() if " UTC, " in line]
    assert [line.split()[:2] for line in changes] == [
        ["1", "catalog"],
        ["2", "create"],
        ["3", "update"],
        ["4", "rollback"],
    ]
    assert len(json.loads(catalog.output)["catalog"]["models"]) == len(CATALOG)


async def test_history_is_pruned_beside_a_running_sidecar(tmp_path: Path, folder: Path) -> None:
    store = parts.sqlite(tmp_path, policy())
    for description in ("second", "third"):
        parts.write(store, ChangeKind.UPDATE, policy(description=description))
    database = ("--at", f"sqlite:{tmp_path / 'policies.db'}")
    async with stored(store) as api:
        refused = await beside(api, "prune", "--keep", 1)
        pruned = await asyncio.to_thread(sidecar, "prune", "--keep", 1, *database)
        again = await asyncio.to_thread(
            sidecar, "prune", "--keep", 1, "--output", "json", *database
        )
        await beside(api, "apply", edit(folder, "fourth"))
        await until(lambda: api.live.snapshot.records[SUPPORT].policy.description == "fourth")
        await api.live.settled()
        history = await beside(api, "history", "support", "--output", "json")
        rolled = await beside(api, "rollback", "support", 1)

    assert refused.exit_code == 1
    assert "name its database with --at" in refused.stderr
    assert pruned.stdout == "2 revisions pruned\n"
    assert json.loads(again.stdout) == {"pruned": 0}
    assert [each["revision"] for each in json.loads(history.stdout)] == [4, 3]
    assert rolled.exit_code == 4
    assert f"{SUPPORT}, revision 1, was pruned" in rolled.stderr


def test_files_have_no_history_to_prune(folder: Path) -> None:
    result = sidecar("prune", "--keep", 1, "--at", folder)

    assert result.exit_code == 1
    assert "files have no history to prune" in result.stderr


@pytest.mark.parametrize("running", [False, True])
async def test_earlier_catalog_is_printed_as_apply_takes_it(tmp_path: Path, running: bool) -> None:
    store = parts.sqlite(tmp_path, policy())
    parts.write_catalog(store, FAST, LARGE, replace(FAST, id="acme/new"))
    file = tmp_path / "earlier.yaml"
    async with stored(store) as api:
        at = f"127.0.0.1:{api.server.port}" if running else f"sqlite:{tmp_path / 'policies.db'}"

        async def run(*arguments: object) -> Result:
            return await asyncio.to_thread(sidecar, *arguments, "--at", at)

        earlier = await run("catalog", "--revision", 1)
        file.write_text(earlier.stdout[earlier.stdout.index("# model catalog") :])
        applied = await run("apply", file)
        missing = await run("catalog", "--revision", 9)
        present = store.catalog()

    assert "# model catalog, revision 1\n" in earlier.stdout
    assert "model catalog: updated (revision 3)\n" in applied.stdout
    assert present.models == CATALOG
    assert missing.exit_code == 4
    assert "the model catalog has no revision 9; its revisions are 1 to 3" in missing.stderr


async def test_earlier_catalog_of_a_sidecar_that_knows_none_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = parts.sqlite(tmp_path, policy())
    parts.write_catalog(store, FAST, LARGE, replace(FAST, id="acme/new"))
    monkeypatch.setattr(store, "catalog_revision", lambda _: store.catalog())
    async with stored(store) as api:
        result = await beside(api, "catalog", "--revision", 1)

    assert result.exit_code == 1
    assert "gives the present model catalog alone" in result.stderr


def test_files_have_the_present_catalog_alone(folder: Path) -> None:
    assert sidecar("catalog", "--revision", 1, "--at", folder).exit_code == 0
    assert sidecar("catalog", "--revision", 2, "--at", folder).exit_code == 4
