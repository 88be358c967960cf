"""`sidecar policy` against a store, files and a running sidecar: what it prints, how it exits."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.cli import cli
from sidecar.cli.policy_exchange import grouped
from sidecar.core.decision import Reason, Source
from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.model import CompiledPrompt
from sidecar.core.policy import Capability, Model, PinMode, Policy, PolicyRecord
from sidecar.grpc_api.convert.policies import record_to_proto
from sidecar.policies import PolicySet, load_policies
from sidecar.policies.documents import catalog_document, policy_document, yaml_text
from sidecar.policies.stores import ChangeKind, FileStore
from sidecar.policies.stores.sqlite import SqliteStore
from sidecar.routing import PolicyRegistry
from tests.doubles import StubPrompt
from tests.grpc_api.standins import decision
from tests.grpc_api.stored import Stored, stored
from tests.policies.exchange.test_exchange import SAMPLES
from tests.policies.stores import parts
from tests.policies.stores.parts import CATALOG, FAST, LARGE, name_of, policy
from tests.silenced import way_to
from tests.waiting import until

SUPPORT = name_of("support")


def sidecar(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["policy", *map(str, arguments)])


def done(*arguments: object) -> str:
    result = sidecar(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def plain(*arguments: object) -> Any:
    return json.loads(done(*arguments, "--output", "json"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parts.write_files(tmp_path / "mine", policy())
    return tmp_path / "mine"


@pytest.fixture
def at(tmp_path: Path, folder: Path) -> str:
    """A store with one policy."""
    where = f"sqlite:{tmp_path / 'policies.db'}"
    done("apply", folder, "--at", where, "--author", "ada", "-m", "first steps")
    return where


def edited(content: Policy) -> str:
    return yaml_text(policy_document(content))


def edit(folder: Path, description: str = "second", **more: Any) -> Path:
    file = folder / "default-support.yaml"
    file.write_text(edited(policy(description=description, **more)))
    return file


def test_apply_creates_updates_and_leaves_alone(at: str, folder: Path) -> None:
    assert done("apply", folder, "--at", at) == (
        f"model catalog: unchanged (revision 1)\n{SUPPORT}: unchanged (revision 1)\n"
    )

    file = edit(folder)

    # A policy alone: its models are those of the place.
    assert f"{SUPPORT}: updated (revision 2)\n" in done("apply", file, "--at", at)
    assert plain("get", "support", "--at", at)["policy"]["description"] == "second"


def test_catalog_in_another_order_is_left_alone(at: str, folder: Path) -> None:
    (folder / "catalog.yaml").write_text(yaml_text(catalog_document([LARGE, FAST])))

    for dry_run in ((), ("--dry-run",)):
        applied = done("apply", folder, "--at", at, *dry_run)
        assert "model catalog: unchanged (revision 1)\n" in applied


def test_policy_that_comes_by_a_pipe_is_applied(at: str, folder: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, edit(folder).read_bytes())
    os.close(writing)

    applied = done("apply", f"/dev/fd/{reading}", "--at", at)
    os.close(reading)

    assert f"{SUPPORT}: updated (revision 2)\n" in applied


def test_dry_run_shows_the_difference_and_changes_nothing(at: str, folder: Path) -> None:
    shown = done("apply", edit(folder), "--at", at, "--dry-run")

    assert "would be updated (revision 2)" in shown
    assert "-description: first\n+description: second" in shown
    assert plain("get", "support", "--at", at)["revision"] == 1


def test_dry_run_shows_what_would_become_of_the_catalog(at: str, folder: Path) -> None:
    file = folder / "catalog.yaml"
    file.write_text(file.read_text().replace("input: 0.5", "input: 0.6"))

    shown = done("apply", file, "--at", at, "--dry-run")

    assert "model catalog: would be updated (revision 2)" in shown
    assert "-      input: 0.5\n+      input: 0.6" in shown


def test_apply_takes_models_away_after_the_policies_that_named_them(at: str, folder: Path) -> None:
    file = folder / "all.yaml"
    file.write_text(yaml_text(catalog_document([FAST]), only_fast()))

    done("apply", file, "--at", at)

    models = plain("catalog", "--at", at)["catalog"]["models"]
    assert [model["id"] for model in models] == ["acme/fast"]


def test_dry_run_shows_which_models_would_go(at: str, folder: Path) -> None:
    file = folder / "all.yaml"
    file.write_text(yaml_text(catalog_document([FAST]), only_fast()))

    shown = done("apply", file, "--at", at, "--dry-run")

    assert "model catalog: would be updated (revision 2)\n" in shown
    assert "-  - id: acme/large\n" in shown


def test_dry_run_refuses_to_take_a_model_from_another_policy(at: str, folder: Path) -> None:
    done("apply", edit(folder, name="other"), "--at", at)
    file = folder / "all.yaml"
    file.write_text(yaml_text(catalog_document([FAST]), only_fast()))

    dry, wet = sidecar("apply", file, "--at", at, "--dry-run"), sidecar("apply", file, "--at", at)

    assert (dry.exit_code, wet.exit_code) == (1, 1)
    assert f"{name_of('other')} would be wrong with this catalog" in dry.stderr


def test_policy_alone_leaves_a_catalog_that_changes_while_it_is_read(
    at: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, more = edit(folder), folder / "catalog.yaml"
    more.write_text(yaml_text(catalog_document([*CATALOG.values(), replace(FAST, id="new")])))

    def meanwhile(*given: Any, **known: Any) -> PolicySet:
        if known:
            monkeypatch.undo()
            done("apply", more, "--at", at)
        return load_policies(*given, **known)

    monkeypatch.setattr("sidecar.cli.policy_change.load_policies", meanwhile)

    assert f"{SUPPORT}: updated (revision 2)\n" in done("apply", file, "--at", at)
    models = plain("catalog", "--at", at)["catalog"]["models"]
    assert "new" in [model["id"] for model in models]


def only_fast() -> dict[str, object]:
    return {
        "apiVersion": "llmrouter.v1",
        "kind": "Policy",
        "name": "support",
        "default": {"models": ["acme/fast"]},
    }


def test_history_tells_who_and_why(at: str, folder: Path) -> None:
    done("apply", edit(folder), "--at", at, "--author", "grace", "-m", "clearer")

    history = plain("history", "support", "--at", at)

    assert [(h["revision"], h["author"], h["message"]) for h in history] == [
        (2, "grace", "clearer"),
        (1, "ada", "first steps"),
    ]
    assert not history[0]["author_verified"]
    assert "grace (claimed): clearer" in done("history", "support", "--at", at)


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


def test_watch_keeps_a_change_on_its_line(at: str, folder: Path) -> None:
    forged = f"innocent\n4  delete   {SUPPORT}, revision 3"
    done("apply", edit(folder), "--at", at, "-m", forged)

    (line,) = done("watch", "--after", 2, "--count", 1, "--at", at).splitlines()

    assert line.startswith("3  update ")


def test_watch_prints_changes_in_order(at: str) -> None:
    text = done("watch", "--after", 0, "--count", 2, "--at", at)

    assert [line.split()[:2] for line in text.splitlines()] == [["1", "catalog"], ["2", "create"]]
    lines = done("watch", "--after", 1, "--count", 1, "--at", at, "--output", "json").splitlines()
    assert [(each["change"], each["name"]) for each in map(json.loads, lines)] == [(2, SUPPORT)]
    documents = list(
        YAML(typ="safe").load_all(
            done("watch", "--after", 0, "--count", 2, "--at", at, "--output", "yaml")
        )
    )
    assert [(each["change"], each["kind"]) for each in documents] == [(1, "catalog"), (2, "create")]


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


def test_files_with_errors_change_nothing(at: str, folder: Path) -> None:
    file = edit(folder)
    file.write_text(file.read_text().replace("acme/fast", "acme/fats"))

    result = sidecar("apply", folder, "--at", at)

    assert result.exit_code == 1
    assert 'did you mean "acme/fast"?' in result.output
    assert plain("get", "support", "--at", at)["revision"] == 1


@pytest.mark.parametrize("content", [None, b""])
@pytest.mark.parametrize("wrong", [False, True])
def test_what_changes_nothing_makes_no_database(
    folder: Path, tmp_path: Path, wrong: bool, content: bytes | None
) -> None:
    file = tmp_path / "store" / "new.db"
    file.parent.mkdir()
    if content is not None:
        file.write_bytes(content)
    if wrong:
        (folder / "catalog.yaml").write_text("kind: Nothing\n")

    result = sidecar("apply", folder, "--at", f"sqlite:{file}", *([] if wrong else ["--dry-run"]))

    assert result.exit_code == (1 if wrong else 0)
    assert (f"{SUPPORT}: would be created (revision 1)\n" in result.stdout) is not wrong
    left = {each.name: each.read_bytes() for each in file.parent.iterdir()}
    assert left == ({} if content is None else {"new.db": content})


def test_file_without_anything_is_no_file_to_apply(at: str, tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing yet\n")

    for place in (at, f"sqlite:{tmp_path / 'empty.db'}"):
        result = sidecar("apply", file, "--at", place)

        assert (result.exit_code, result.stdout) == (1, "")
        assert "hold no policy and no model catalog" in result.stderr


def test_file_to_compare_with_is_named_once(at: str, tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("kind: Nothing\n")

    result = sidecar("diff", "support", "--file", file, "--at", at)

    assert result.exit_code == 1
    assert result.stderr.count(str(file)) == 1


def test_what_was_changed_before_a_refusal_is_told(at: str, folder: Path, tmp_path: Path) -> None:
    done("apply", edit(folder), "--at", at)
    done("delete", "support", "--at", at)
    parts.write_files(folder, policy("another"))

    for output in ("text", "json"):
        result = sidecar("apply", folder, "--at", at, "--output", output)

        assert result.exit_code == 1
        assert "was deleted; undelete it first" in result.stderr
        assert name_of("another") in result.stdout
    assert [each["revision"] for each in plain("history", "another", "--at", at)] == [1]


def test_examples_are_routed_by_a_sidecar_alone(at: str, folder: Path) -> None:
    result = sidecar("apply", edit(folder), "--at", at, "--require-examples-pass")

    assert result.exit_code == 1
    assert "name a running sidecar with --at" in result.output
    assert plain("get", "support", "--at", at)["revision"] == 1


@pytest.mark.parametrize("command", ["test", "lint"])
def test_asking_the_model_takes_a_sidecar(at: str, folder: Path, command: str) -> None:
    more = ["--by-model"] if command == "lint" else []
    result = sidecar(command, folder, "--at", at, *more)

    assert result.exit_code == 1
    assert "is not the address of a running sidecar" in result.output


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


async def test_conversations_are_not_compared_with_a_deleted_policy(
    tmp_path: Path, folder: Path, conversations: Path
) -> None:
    store = parts.sqlite(tmp_path, policy("other"), policy())
    parts.write(store, ChangeKind.DELETE, "other")
    async with stored(store) as api:
        result = await beside(
            api, "test", folder, "--conversations", conversations, "--against", "other"
        )

    assert result.exit_code == 4, result.output
    assert "has been deleted" in result.stderr


@pytest.mark.parametrize("kind", SAMPLES)
def test_import_and_export(kind: str, tmp_path: Path) -> None:
    theirs, ours, back = tmp_path / "theirs", tmp_path / "ours.yaml", tmp_path / "back"
    theirs.write_text(SAMPLES[kind])

    imported = sidecar("import", theirs, "--from", kind, "--name", "mine", "-o", ours)
    exported = sidecar("export", "mine", "--to", kind, "--at", ours, "-o", back)

    assert (imported.exit_code, exported.exit_code) == (0, 0), imported.output + exported.output
    assert "has no counterpart" in imported.output
    again = tmp_path / "again.yaml"
    sidecar("import", back, "--from", kind, "--name", "mine", "-o", again)
    assert again.read_text() == ours.read_text()


def test_what_is_lost_of_several_models_is_one_line() -> None:
    assert grouped(
        [
            "models[a/b].prices: has no counterpart",
            "name: has no counterpart",
            "models[c].prices: has no counterpart",
            "routes[x].examples: has no counterpart",
        ]
    ) == [
        "models[*].prices: has no counterpart (a/b, c)",
        "name: has no counterpart",
        "routes[x].examples: has no counterpart",
    ]


def test_import_names_the_models_that_can_do_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "model_list:\n"
        "  - {model_name: a, litellm_params: {model: b}}\n"
        "  - {model_name: c, litellm_params: {model: d}, model_info: {supports_vision: true}}\n"
    )

    result = sidecar("import", file, "--from", "litellm", "-o", tmp_path / "ours.yaml")

    (line,) = result.output.splitlines()
    assert "models[*].capabilities: is not in the file" in line
    assert line.endswith("(a)")


def test_import_names_the_models_whose_apis_it_knows(tmp_path: Path) -> None:
    file, ours = tmp_path / "x.yaml", tmp_path / "ours.yaml"
    file.write_text("model_providers: [{model: anthropic/opus}, {model: groq/x}]\n")

    result = sidecar("import", file, "--from", "plano", "-o", ours)

    (line,) = [each for each in result.output.splitlines() if "dialects" in each]
    assert "models[*].dialects: is not in the file; " in line
    assert line.endswith("(anthropic/opus)")
    assert "    dialects:\n      - anthropic-messages\n" in ours.read_text()


def test_import_of_another_kind_of_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("a: 1\n")

    result = sidecar("import", file, "--from", "plano")

    assert (result.exit_code, str(file) in result.output) == (1, True)


async def beside(api: Stored, *arguments: object) -> Result:
    """Runs a command while the sidecar of this event loop answers it."""
    address = f"127.0.0.1:{api.server.port}"
    return await asyncio.to_thread(sidecar, *arguments, "--at", address)


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


@pytest.mark.parametrize("arguments", [("get", "support"), ("list",)], ids=lambda each: each[0])
async def test_policy_of_a_newer_sidecar_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    def newer(record: PolicyRecord) -> policy_pb2.Policy:
        message = record_to_proto(record)
        message.pin = 9  # type: ignore[assignment]
        return message

    monkeypatch.setattr("sidecar.grpc_api.policy_service.record_to_proto", newer)
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        result = await beside(api, *arguments)

    assert result.exit_code == 1
    assert "Error: this version cannot read what the sidecar sent" in result.stderr
    assert "policy.pin: 9 is not a known value" in result.stderr


BILLING = """\
apiVersion: llmrouter.v1
kind: Policy
name: trial
default: {models: [acme/fast]}
routes:
  - name: billing
    description: Invoices and payments, and everything about being charged for something.
    models: [acme/fast]
    examples: [Where is my invoice?]
  - name: refunds
    description: Invoices and payments, and everything about being charged for it.
    models: [acme/fast]
    examples: [I want my money back]
"""


async def test_examples_are_tests_of_their_routes(tmp_path: Path) -> None:
    """The stand-in takes every request for `billing`."""
    file = tmp_path / "trial.yaml"
    file.write_text(BILLING)
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        failed = await beside(api, "test", file)
        details = await beside(api, "test", file, "--output", "json")
        file.write_text(BILLING[: BILLING.index("  - name: refunds")])
        passed = await beside(api, "test", file)

    assert (failed.exit_code, passed.exit_code) == (1, 0), passed.output
    assert "1 of 2 examples go to their route" in failed.output
    assert [(d["expected"], d["route"], d["passed"]) for d in json.loads(details.output)] == [
        ("billing", "billing", True),
        ("refunds", "billing", False),
    ]


def said(*texts: str, image: bool = False) -> str:
    """A line of a file of conversations."""
    messages: list[dict[str, object]] = [{"role": "user", "content": text} for text in texts]
    if image:
        url = {"type": "image_url", "image_url": {"url": "https://acme.example/a.png"}}
        messages[-1]["content"] = [{"type": "text", "text": texts[-1]}, url]
    return json.dumps({"messages": messages})


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    file = tmp_path / "conversations.jsonl"
    file.write_text("\n".join([said("Where is my invoice?"), said("What is this?", image=True)]))
    return file


async def test_conversations_that_another_policy_routes_otherwise_are_told(
    tmp_path: Path, conversations: Path
) -> None:
    """The stand-in takes every request for `billing`: fast before, large after. The image is for
    `large` in both, as `fast` reads none."""
    before, after = tmp_path / "before.yaml", tmp_path / "after.yaml"
    before.write_text(BILLING.replace("[acme/fast]", "[acme/fast, acme/large]"))
    after.write_text(BILLING.replace("[acme/fast]", "[acme/large, acme/fast]"))
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        arguments = ("test", after, "--conversations", conversations)
        result = await beside(api, *arguments, "--against", before, "--output", "json")
        shown = await beside(api, *arguments, "--against", before)
        same = await beside(api, *arguments, "--against", after)
        unknown = await beside(api, *arguments)
        await beside(api, "apply", before)
        applied = await beside(api, *arguments)

    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["conversations"], told["different"]) == (2, 1)
    (row,) = told["differences"]
    assert (row["number"], row["request"]) == (1, "Where is my invoice?")
    assert [row[side]["model"] for side in ("before", "after")] == ["acme/fast", "acme/large"]
    assert [row[side]["route"] for side in ("before", "after")] == ["billing", "billing"]
    assert all(isinstance(row[side]["confidence"], float) for side in ("before", "after"))
    assert "billing: acme/fast" in shown.stdout
    assert f"1 of 2 conversations are routed otherwise by {after} than by {before}" in shown.stdout
    assert "0 of 2 conversations" in same.stdout
    assert unknown.exit_code == 4
    assert f"1 of 2 conversations are routed otherwise by {after} than by" in applied.stdout


async def test_conversations_of_any_kind_find_a_model_that_can_take_them(
    tmp_path: Path, conversations: Path
) -> None:
    """One model reads images, another has tools, none has both."""
    store = parts.sqlite(tmp_path, policy())
    seeing = replace(FAST, id="acme/seeing", capabilities=frozenset({Capability.IMAGES}))
    acting = replace(FAST, id="acme/acting", capabilities=frozenset({Capability.TOOLS}))
    parts.write_catalog(store, FAST, replace(LARGE, capabilities=frozenset()), acting, seeing)
    file = tmp_path / "trial.yaml"
    file.write_text(BILLING)
    async with stored(store) as api:
        await beside(api, "test", file, "--conversations", conversations, "--against", file)
        asked = [request.policy for request in api.router.requests]

    assert asked
    for tried in asked:
        assert isinstance(tried, Policy)
        named = {entry.id for entry in tried.routes[0].models.models}
        assert {acting.id, seeing.id} <= named


async def test_only_one_policy_can_be_compared(tmp_path: Path, conversations: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(BILLING + "---\n" + BILLING.replace("name: trial", "name: another"))
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        result = await beside(api, "test", file, "--conversations", conversations)

    assert result.exit_code == 1
    assert f"{file}: 2 policies ({name_of('trial')}, {name_of('another')})" in result.output


async def test_what_to_compare_with_that_is_too_long_is_told(
    tmp_path: Path, conversations: Path
) -> None:
    file = tmp_path / "trial.yaml"
    file.write_text(BILLING)
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        arguments = ("test", file, "--conversations", conversations, "--against", "a" * 300)
        result = await beside(api, *arguments)

    assert result.exit_code == 1
    assert "Error: --against aaa" in result.stderr
    assert "File name too long; name another\n" in result.stderr


def test_what_to_compare_with_takes_conversations(folder: Path) -> None:
    assert sidecar("test", folder, "--against", "support").exit_code == 2


def test_what_to_compare_with_is_not_empty(folder: Path, conversations: Path) -> None:
    result = sidecar("test", folder, "--conversations", conversations, "--against", "")

    assert result.exit_code == 2
    assert "--against is empty; " in result.stderr


@pytest.mark.parametrize("reason", [Reason.NOTHING_TO_ROUTE, Reason.MODEL_UNAVAILABLE])
async def test_what_no_routing_model_decides_is_told_apart(
    tmp_path: Path, conversations: Path, monkeypatch: pytest.MonkeyPatch, reason: Reason
) -> None:
    """A conversation without text is the default's; without an answer nothing can be said."""
    monkeypatch.setattr("sidecar.cli.policy_trial._AGAIN_S", 0.0)
    file = tmp_path / "trial.yaml"
    file.write_text(BILLING)
    fallen = replace(decision(), route="", source=Source.FALLBACK, reason=reason, confidence=None)
    monkeypatch.setattr("tests.grpc_api.standins.decision", lambda request: fallen)
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        arguments = ("test", file, "--conversations", conversations, "--against", file)
        result = await beside(api, *arguments)

    assert ("0 of 2 conversations" in result.output) is (reason is Reason.NOTHING_TO_ROUTE)
    assert (
        "conversation 1: the routing model of the sidecar does not answer" in result.output
    ) is (reason is Reason.MODEL_UNAVAILABLE)


async def test_what_was_asked_before_keeps_no_route(tmp_path: Path) -> None:
    file = tmp_path / "trial.yaml"
    file.write_text(BILLING.replace("default:", "pin: conversation\ndefault:"))
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        await beside(api, "test", file)
        asked = [request.policy for request in api.router.requests]

    assert {each.pin for each in asked if isinstance(each, Policy)} == {PinMode.OFF}


async def test_examples_gate_what_is_applied(tmp_path: Path) -> None:
    """The stand-in takes every request for `billing`."""
    file = tmp_path / "trial.yaml"
    file.write_text(BILLING)
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        refused = await beside(api, "apply", file, "--require-examples-pass")
        missing = await beside(api, "get", "trial")
        file.write_text(BILLING[: BILLING.index("  - name: refunds")])
        applied = await beside(api, "apply", file, "--require-examples-pass")

    assert (refused.exit_code, missing.exit_code, applied.exit_code) == (1, 4, 0), applied.output
    assert "would not be routed as it says" in refused.stderr
    assert f"{name_of('trial')}: created (revision 1)" in applied.stdout


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("acme/fast", "would not be routed as it says"),
        ("acme/new", "apply the model catalog first"),
    ],
)
async def test_dry_run_with_another_catalog_routes_the_examples(
    tmp_path: Path, model: str, says: str
) -> None:
    file = tmp_path / "all.yaml"
    new = replace(FAST, id="acme/new")
    catalog = yaml_text(catalog_document([FAST, LARGE, new]))
    file.write_text(f"{catalog}---\n{BILLING.replace('acme/fast', model)}")
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        foreseen = await beside(api, "apply", file, "--dry-run")
        refused = await beside(api, "apply", file, "--dry-run", "--require-examples-pass")

    assert f"{name_of('trial')}: would be created (revision 1)" in foreseen.stdout
    assert refused.exit_code == 1
    assert says in refused.stderr


async def test_lint_names_what_is_doubtful(tmp_path: Path) -> None:
    file = tmp_path / "trial.yaml"
    models = [Model("acme/fast", "f", input_price=1.0, output_price=1.0)]
    file.write_text(yaml_text(catalog_document(models)) + "---\n" + BILLING)
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        alone = sidecar("lint", file)
        asked = await beside(api, "lint", file, "--by-model", "--output", "json")
        strict = sidecar("lint", file, "--strict")

    assert alone.exit_code == 0
    assert "of its words in common with that of" in alone.output
    assert strict.exit_code == 1
    assert f"{file}:20: warning: routes[1].description: has" in alone.output
    findings = [(f["path"], f["message"]) for f in json.loads(asked.output)]
    paths = [path for path, _ in findings]
    assert paths == [
        "routes[1].description",
        "routes[1].description",
        "routes[1].examples[0]",
        "routes[1]",
    ]
    assert "the routing model takes it for" in findings[1][1]
    assert "no example reaches" in findings[3][1]


async def test_lint_names_what_leaves_no_room_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "trial.yaml"
    file.write_text(BILLING.replace("trial", "huge") + "---\n" + BILLING)

    def bounded(registry: PolicyRegistry, content: Policy) -> CompiledPrompt:
        if content.name == "huge":
            raise SidecarError(ErrorCode.POLICY_TOO_LARGE, "the routes take 600 tokens of 512")
        return StubPrompt(content)

    monkeypatch.setattr(PolicyRegistry, "prompt_of", bounded)
    async with stored(parts.sqlite(tmp_path, policy())) as api:
        asked = await beside(api, "lint", file, "--by-model", "--output", "json")

    errors = [each for each in json.loads(asked.stdout) if each["severity"] == "error"]
    assert [each["message"] for each in errors] == ["the routes take 600 tokens of 512"]
    assert asked.exit_code == 1
    assert any("no example reaches" in each["message"] for each in json.loads(asked.stdout))


@pytest.mark.parametrize(("limit", "old"), [([], True), (["--max-price-age", "100000"], False)])
def test_lint_names_prices_that_are_old(tmp_path: Path, limit: list[str], old: bool) -> None:
    file = tmp_path / "dated.yaml"
    day = date(2020, 1, 1)
    models = [Model("acme/fast", "f", input_price=1.0, output_price=1.0, prices_as_of=day)]
    file.write_text(yaml_text(catalog_document(models)) + "---\n" + BILLING)

    result = sidecar("lint", file, *limit)

    assert ('"acme/fast": priced as of more than 180 days ago' in result.output) is old


@pytest.mark.parametrize(
    ("clusters", "named"),
    [(("", "acme"), True), (("acme", "acme"), False), (("acme", ""), False), (("", ""), False)],
    ids=["another has one", "both have one", "not one of the policy's", "none has one"],
)
def test_lint_names_models_that_have_no_cluster_where_others_have(
    tmp_path: Path, clusters: tuple[str, str], named: bool
) -> None:
    file = tmp_path / "trial.yaml"
    ids = ("acme/fast", "acme/large")
    models = [Model(id, id, cluster=each) for id, each in zip(ids, clusters, strict=True)]
    file.write_text(yaml_text(catalog_document(models)) + "---\n" + BILLING)

    result = sidecar("lint", file)

    said = '"acme/fast": no cluster in the catalog, while "acme/large" has "acme"'
    assert (said in result.output) is named
    assert ("no cluster" in result.output) is named


@pytest.mark.parametrize("running", [False, True])
async def test_list_that_lacks_what_cannot_be_read_names_it_and_fails(
    tmp_path: Path, running: bool
) -> None:
    store = parts.sqlite(tmp_path, policy(), policy("other"))
    parts.write(store, ChangeKind.UPDATE, policy(description="second"))
    file = tmp_path / "policies.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        newer = "UPDATE changes SET content = '17' WHERE name LIKE '%/support' AND revision = 2"
        database.execute(newer)

    async with stored(store) as api:
        at = f"127.0.0.1:{api.server.port}" if running else f"sqlite:{file}"
        listed = await asyncio.to_thread(sidecar, "list", "--at", at)
        history = await asyncio.to_thread(sidecar, "history", "support", "--at", at)

    what = (SUPPORT, f"{SUPPORT}@2") if running else (f"{SUPPORT}, revision 2,",) * 2
    assert (listed.exit_code, history.exit_code) == (1, 1)
    assert f"Error: {what[0]} cannot be read" in listed.stderr
    assert f"Error: {what[1]} cannot be read" in history.stderr
    assert name_of("other") in listed.stdout
    assert SUPPORT not in listed.stdout
    assert [line.split()[0] for line in history.stdout.splitlines()] == ["REV", "1"]


@pytest.mark.parametrize("after", [0, None])
async def test_watch_ends_where_the_sidecar_is_gone_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int | None
) -> None:
    monkeypatch.setattr("sidecar.cli.policy_remote._KEEPALIVE_MS", 500)
    monkeypatch.setattr("sidecar.cli.policy_remote._KEEPALIVE_TIMEOUT_MS", 500)

    async with stored(parts.sqlite(tmp_path, policy())) as api:
        async with way_to(api.server.port) as way:
            begin = ("--after", after) if after is not None else ()
            watching = asyncio.to_thread(sidecar, "watch", *begin, "--at", way.address)
            watch = asyncio.create_task(watching)
            shown = (SUPPORT.encode(), b"WatchPolicies")
            await until(lambda: all(each in way.received for each in shown))
            way.silent = True
            ended, _ = await asyncio.wait({watch}, timeout=10)
        result = await watch

    assert ended
    assert result.exit_code == 5
    assert "go on with --after 2" in result.stderr


def test_watch_of_files_says_when_they_are_wrong_and_right_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "default-support.yaml"
    texts = iter(["kind: Nothing\n", "kind: Nothing\n", "[", edited(policy(description="second"))])
    monkeypatch.setattr("sidecar.policies.stores.files._LOOK_S", 0.0)
    monkeypatch.setattr(FileStore, "wait", lambda *_: file.write_text(next(texts)))

    watched = sidecar("watch", "--count", 1, "--at", folder)

    assert watched.exit_code == 0
    unknown, broken, again = watched.stderr.splitlines()
    assert f"{file}:1: error: apiVersion: missing" in unknown
    assert f"{file}:1: error: not YAML" in broken
    for each in (unknown, broken):
        assert each.endswith("; policies and models stay as they were")
    assert again == "the files can be used again"
    assert re.fullmatch(rf"\d+  update   {SUPPORT}, revision 1\n", watched.stdout)


def test_watch_of_a_database_that_is_gone_tells_where_to_go_on(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        for file in tmp_path.glob("policies.db*"):
            file.unlink()

    monkeypatch.setattr(SqliteStore, "wait", gone)

    watched = sidecar("watch", "--at", at)

    assert watched.exit_code == 5
    assert "the file is gone; " in watched.stderr
    assert watched.stderr.endswith("; go on with --after 2\n")


@pytest.mark.parametrize("begin", [(), ("--after", 2), ("--after", 1)], ids=str)
def test_watch_of_a_database_that_was_replaced_says_so(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: tuple[object, ...]
) -> None:
    (tmp_path / "backup").mkdir()
    backup = parts.sqlite(tmp_path / "backup", policy(description="of the backup"))
    parts.write(backup, ChangeKind.UPDATE, policy(description="second"))
    backup.close()

    def replaced(*_: object) -> None:
        for file in tmp_path.glob("policies.db-*"):
            file.unlink()
        (tmp_path / "backup" / "policies.db").replace(tmp_path / "policies.db")

    monkeypatch.setattr(SqliteStore, "wait", replaced)

    watched = sidecar("watch", *begin, "--count", 2, "--at", at)

    assert watched.exit_code == 1
    assert "2 is not the change any more that was sent; list the policies" in watched.stderr
    assert "3  update" not in watched.stdout


@pytest.mark.parametrize("running", [False, True])
async def test_policy_that_cannot_be_read_is_deleted_and_applied_anew(
    tmp_path: Path, folder: Path, running: bool
) -> None:
    file = tmp_path / "policies.db"
    # The default policy of the sidecar is not to be deleted.
    store = parts.sqlite(tmp_path, policy(), policy("other"))
    parts.write_files(folder, policy("other"))
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("UPDATE changes SET content = '17' WHERE name LIKE '%/other'")

    async with stored(store) as api:
        at = f"127.0.0.1:{api.server.port}" if running else f"sqlite:{file}"

        async def run(*arguments: object) -> Result:
            return await asyncio.to_thread(sidecar, *arguments, "--at", at)

        deleted = await run("delete", "other")
        applied = await run("apply", folder)

    assert f"{name_of('other')}: deleted (revision 2)" in deleted.stdout
    assert f"{name_of('other')}: created (revision 3)" in applied.stdout


@pytest.mark.parametrize("running", [False, True])
async def test_watch_prints_what_is_before_a_change_that_cannot_be_read(
    tmp_path: Path, running: bool
) -> None:
    store = parts.sqlite(tmp_path, policy())
    parts.write(store, ChangeKind.UPDATE, policy(description="second"))
    file = tmp_path / "policies.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("UPDATE changes SET content = '17' WHERE change = 3")

    async with stored(store) as api:
        at = f"127.0.0.1:{api.server.port}" if running else f"sqlite:{file}"
        watched = await asyncio.to_thread(sidecar, "watch", "--after", 0, "--at", at)

    assert watched.exit_code == 5
    # Beside what the sidecar of this process logs.
    printed = re.findall(r"^(\d+)  (\w+) ", watched.stdout, re.MULTILINE)
    assert printed == [("1", "catalog"), ("2", "create")]
    assert f"{SUPPORT}, revision 2, cannot be read" in watched.stderr
    assert watched.stderr.endswith("; go on behind it with --after 3\n")
