"""What `sidecar policy` makes of policies that this version cannot read."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from sidecar._generated.llmrouter.v1 import policy_pb2
from sidecar.cli.gateway import GatewayWish
from sidecar.cli.up import _of_catalog, up
from sidecar.core.policy import CatalogRecord, PolicyRecord
from sidecar.grpc_api.convert.policies import record_to_proto
from sidecar.policies.editing import PolicyEditing
from sidecar.policies.stores import ChangeKind
from tests.cli.policy_commands import SUPPORT, beside, sidecar
from tests.grpc_api.stored import stored
from tests.policies.stores import parts
from tests.policies.stores.parts import CATALOG, FAST, LARGE, name_of, policy
from tests.waiting import until


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


async def test_what_is_said_of_deleted_policies_that_cannot_be_read_leads_to_why(
    tmp_path: Path,
) -> None:
    store = parts.sqlite(tmp_path, policy(), policy("other"))
    parts.write(store, ChangeKind.DELETE, "other")
    with closing(sqlite3.connect(tmp_path / "policies.db", isolation_level=None)) as database:
        database.execute("UPDATE changes SET content = '17' WHERE name LIKE '%/other'")

    async with stored(store) as api:
        said, told = await beside(api, "list", "--deleted"), []
        while (advised := re.search("`sidecar policy ([^`]*)`", said.stderr)) is not None:
            said = await beside(api, *advised[1].split())
            told.append(advised[1].split()[0])

    assert told == ["history", "get"]
    assert "other, revision 2, cannot be read: its content is no JSON" in said.stderr


@pytest.mark.parametrize("running", [False, True])
async def test_catalog_that_cannot_be_read_is_replaced_by_another(
    tmp_path: Path, folder: Path, running: bool
) -> None:
    store = parts.sqlite(tmp_path, policy())
    file = tmp_path / "policies.db"
    alone = folder / "default-support.yaml"
    new = replace(LARGE, upstream_model="large-2")
    async with stored(store) as api:
        at = f"127.0.0.1:{api.server.port}" if running else f"sqlite:{file}"

        async def run(*arguments: object) -> Result:
            return await asyncio.to_thread(sidecar, *arguments, "--at", at)

        parts.write_catalog(store, FAST, new)
        with closing(sqlite3.connect(file, isolation_level=None)) as database:
            database.execute("UPDATE changes SET content = '17' WHERE change = 3")
        await until(lambda: "cannot be read" in api.live.problem)

        read = await run("catalog")
        refused = await run("apply", alone)
        foreseen = await run("apply", folder, "--dry-run")
        applied = await run("apply", folder)
        await until(lambda: not api.live.problem)
        served = api.live.snapshot.catalog

    assert (read.exit_code, refused.exit_code) == (5, 5)
    for result in (read, refused):
        assert "modelCatalog, revision 2, cannot be read" in result.stderr
        assert "or apply another model catalog" in result.stderr
    assert "model catalog: would be updated (revision 3)" in foreseen.stdout, foreseen.output
    assert "model catalog: updated (revision 3)" in applied.stdout, applied.output
    assert f"{SUPPORT}: unchanged (revision 1)" in applied.stdout
    assert (served.revision, served.models) == (3, CATALOG)


@pytest.mark.parametrize("running", [False, True])
async def test_catalog_that_another_has_replaced_meanwhile_stays(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    store = parts.sqlite(tmp_path, policy())
    file = tmp_path / "policies.db"
    write = PolicyEditing.update_catalog
    other = replace(LARGE, upstream_model="large-2")

    def after_another(*asked: Any) -> CatalogRecord:
        monkeypatch.undo()
        parts.write_catalog(store, FAST, other)
        return write(*asked)

    async with stored(store) as api:
        at = f"127.0.0.1:{api.server.port}" if running else f"sqlite:{file}"
        parts.changed(
            f"sqlite:{file}", "UPDATE changes SET content = '17' WHERE name = 'modelCatalog'"
        )
        monkeypatch.setattr(PolicyEditing, "update_catalog", after_another)
        applied = await asyncio.to_thread(sidecar, "apply", folder, "--at", at)
        kept = store.catalog()

    assert applied.exit_code == 3, applied.output
    assert "is not that of the model catalog" in applied.stderr
    assert (kept.revision, kept.models[LARGE.id]) == (2, other)


@pytest.mark.parametrize(
    ("content", "said"),
    [("'17'", "^modelCatalog, revision 1, cannot be read"), ("content", '^"acme/fast" has no')],
)
def test_up_tells_of_a_catalog_that_cannot_be_read_as_of_one_that_is_doubtful(
    tmp_path: Path, content: str, said: str
) -> None:
    parts.sqlite(tmp_path, policy()).close()
    at = f"sqlite:{tmp_path / 'policies.db'}"
    parts.changed(at, f"UPDATE changes SET content = {content} WHERE name = 'modelCatalog'")

    with click.Context(up):
        warnings = _of_catalog(at, GatewayWish(1))

    assert re.search(said, warnings[0])
