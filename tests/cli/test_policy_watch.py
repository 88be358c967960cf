"""`sidecar policy watch`: what it prints, how it ends."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from sidecar.policies.stores import ChangeKind, FileStore
from sidecar.policies.stores.sqlite import SqliteStore
from tests.cli.policy_commands import SUPPORT, done, edit, edited, sidecar
from tests.grpc_api.stored import stored
from tests.policies.stores import parts
from tests.policies.stores.parts import policy
from tests.silenced import way_to
from tests.waiting import until


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
