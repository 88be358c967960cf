"""What is of databases alone: tables and their versions, addresses, servers that hang."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event, text

from sidecar.core.errors import ErrorCode, SidecarError
from sidecar.core.policy import CatalogRecord, ModelList, Policy, PolicyRecord, WeightedModel
from sidecar.local import PostgresServer
from sidecar.policies.editing import PolicyEditing
from sidecar.policies.stores import (
    ChangeKind,
    Listed,
    StoreUrlError,
    UnreadableRevisionError,
    check_url,
    migrations,
    open_store,
)
from sidecar.policies.stores.postgres import PostgresStore
from sidecar.policies.stores.sql import SqlStore
from sidecar.policies.stores.tables import metadata
from tests.policies.stores import parts
from tests.policies.stores.parts import (
    CATALOG,
    FAST,
    LARGE,
    changed,
    name_of,
    plain_url,
    policy,
    write,
)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'policies.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    parts.empty_tables(server.url)
    return server.url


def test_migrations_make_the_tables_that_the_code_has(url: str) -> None:
    open_store(url).close()
    engine = create_engine(plain_url(url))

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, metadata)
    engine.dispose()

    assert differences == []


def test_head_is_the_last_step() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))

    assert ScriptDirectory.from_config(config).get_current_head() == migrations.HEAD


def test_tables_of_a_newer_version_are_left_alone(url: str) -> None:
    open_store(url).close()
    engine = create_engine(plain_url(url))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(SidecarError, match="'9999' by a newer version") as caught:
        open_store(url)

    assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    engine.dispose()


def test_tables_are_made_only_where_that_is_wanted(url: str) -> None:
    if url.startswith("postgresql:"):
        changed(url, "DROP SCHEMA public CASCADE")
        changed(url, "CREATE SCHEMA public")

    with pytest.raises(SidecarError, match=r"cannot be opened: .* no .*; name another one"):
        open_store(url, make=False)
    open_store(url).close()
    store = open_store(url, make=False)

    assert store.last_change() == 0
    store.close()


def test_catalog_of_a_newer_version_is_named(url: str) -> None:
    store = parts.seeded(open_store(url), policy())
    newer = "UPDATE changes SET content = replace(content, '\"host\"', '\"colour\"')"
    changed(url, f"{newer} WHERE name = 'modelCatalog'")

    for read in (store.snapshot, store.catalog, lambda: store.changes_after(0, 1)):
        with pytest.raises(SidecarError, match="modelCatalog, revision 1, cannot be") as caught:
            read()
        assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
    store.close()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("replace(content, '\"name\"', '\"colour\"')", "colour"),
        ("'{\"name'", "no JSON"),
        ("'17'", "no JSON"),
        ("'{}'", "apiVersion: missing"),
    ],
)
def test_policy_that_cannot_be_read_is_named_and_leaves_the_others(
    url: str, content: str, why: str
) -> None:
    store = parts.seeded(open_store(url), policy(), policy("other"))
    changed(url, f"UPDATE changes SET content = {content} WHERE name LIKE '%/support'")

    snapshot = store.snapshot()

    assert list(snapshot.records) == [name_of("other")]
    assert why in snapshot.unreadable[name_of("support")]
    says = f"support, revision 1, cannot be read.*{why}.*newer version"
    with pytest.raises(SidecarError, match=f"{says}.*, or roll the policy back, or delete it$"):
        store.policy(name_of("support"))
    other, support = store.policies(None, "", 10, deleted=True)
    assert isinstance(store, SqlStore)
    (revision,) = store.revisions(name_of("support"), None, 10)
    assert isinstance(other, PolicyRecord)
    for listed in (support, revision):
        assert isinstance(listed, UnreadableRevisionError)
        assert re.search(says, listed.message)
        assert (listed.name, listed.revision) == (name_of("support"), 1)
    store.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("content", "'" + "[" * 50_000 + "'"),
        ("content", f"""replace(content, '"support"', '{"[" * 900}{"]" * 900}')"""),
        ("time", "9000000000000000000"),
        ("kind", "'merged'"),
    ],
    ids=["content", "nesting", "time", "kind"],
)
def test_row_that_is_damaged_is_named_and_leaves_the_others(
    url: str, column: str, value: str
) -> None:
    store = parts.seeded(open_store(url), policy(), policy("other"))
    changed(url, f"UPDATE changes SET {column} = {value} WHERE change = 2")
    assert isinstance(store, SqlStore)

    assert name_of("other") in store.snapshot().records
    with pytest.raises(UnreadableRevisionError, match="cannot be read: it is damaged"):
        store.changes_after(1, 1)
    listed = store.policies(None, "", 10)
    assert [isinstance(each, PolicyRecord) for each in listed] == [True, column == "kind"]
    store.close()


def test_revision_that_cannot_be_read_can_be_rolled_back(url: str) -> None:
    """As where the sidecars go back to an earlier version."""
    store = parts.seeded(open_store(url), policy())
    write(store, ChangeKind.UPDATE, policy(description="second"))
    changed(url, "UPDATE changes SET content = '17' WHERE revision = 2")
    assert isinstance(store, SqlStore)
    editing, name = PolicyEditing(store, lambda _: None), name_of("support")

    with pytest.raises(SidecarError, match="etag"):
        editing.rollback(name, 1, parts.note(etag="1-x"))
    foreseen = editing.rollback(name, 1, parts.note(), validate_only=True)
    made = editing.rollback(name, 1, parts.note())

    assert (foreseen.revision, made.revision, made.policy.description) == (3, 3, "first")
    assert store.policy(name).policy == made.policy
    store.close()


def test_of_several_who_write_the_first_catalog_at_once_one_wins(url: str) -> None:
    store = open_store(url)
    assert isinstance(store, SqlStore)
    editing, given = PolicyEditing(store, lambda _: None), parts.note(etag=store.catalog().etag)

    def first(writer: int) -> CatalogRecord | SidecarError:
        try:
            return editing.update_catalog((replace(FAST, id=f"acme/{writer}"),), given)
        except SidecarError as error:
            return error

    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(first, range(4)))

    (won,) = (each for each in outcomes if isinstance(each, CatalogRecord))
    lost = [each for each in outcomes if isinstance(each, SidecarError)]
    assert store.catalog() == replace(won, change=1)
    assert won.revision == 1
    assert {each.code for each in lost} == {ErrorCode.POLICY_CONFLICT}
    assert {each.metadata["current_etag"] for each in lost} == {won.etag}
    store.close()


def test_catalog_that_cannot_be_read_can_be_replaced(url: str) -> None:
    store = parts.seeded(open_store(url), policy(), policy("other"))
    etag = store.catalog().etag
    changed(url, "UPDATE changes SET content = '17' WHERE name = 'modelCatalog'")
    changed(url, "UPDATE changes SET content = '17' WHERE name LIKE '%/other'")
    assert isinstance(store, SqlStore)
    editing, both = PolicyEditing(store, lambda _: None), tuple(CATALOG.values())

    with pytest.raises(SidecarError, match="etag"):
        editing.update_catalog(both, parts.note(etag="1-x"))
    with pytest.raises(SidecarError, match="would be wrong with this catalog"):
        editing.update_catalog((FAST,), parts.note(etag=etag))
    foreseen = editing.update_catalog(both, parts.note(etag=etag), validate_only=True)
    made = editing.update_catalog(both, parts.note(etag=etag))

    assert (foreseen.etag, made.etag) == (store.catalog().etag,) * 2
    assert store.catalog().models == CATALOG
    store.close()


def test_catalog_that_cannot_be_read_is_not_replaced_unchecked(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy comes between the check and the write, and names a model that would go."""
    only_large = ModelList((WeightedModel(LARGE.id),))
    store = parts.seeded(open_store(url))
    changed(url, "UPDATE changes SET content = '17' WHERE name = 'modelCatalog'")
    assert isinstance(store, SqlStore)
    list_ = store.policies

    def meanwhile(*asked: Any) -> Sequence[Listed]:
        found = list_(*asked)
        monkeypatch.undo()
        write(store, ChangeKind.CREATE, Policy("late", (), only_large))
        return found

    monkeypatch.setattr(store, "policies", meanwhile)

    with pytest.raises(SidecarError, match="late would be wrong with this catalog"):
        PolicyEditing(store, lambda _: None).update_catalog((FAST,), parts.note())
    store.close()


def test_policy_that_cannot_be_read_can_be_deleted_and_created_anew(url: str) -> None:
    store = parts.seeded(open_store(url), policy())
    etag = store.policy(name_of("support")).etag
    changed(url, "UPDATE changes SET content = '17' WHERE name LIKE '%/support'")
    assert isinstance(store, SqlStore)
    editing, name = PolicyEditing(store, lambda _: None), name_of("support")

    with pytest.raises(SidecarError, match="etag"):
        editing.delete(name, parts.note(etag="1-x"))
    foreseen = editing.delete(name, parts.note(etag=etag), validate_only=True)
    gone = editing.delete(name, parts.note(etag=etag, request_id="r", request_digest="d"))
    again = editing.delete(name, parts.note(etag=etag, request_id="r", request_digest="d"))

    assert gone == again == replace(foreseen, change=3, attribution=gone.attribution)
    assert (gone.policy.resource_name, gone.revision, gone.deleted) == (name, 2, True)
    assert [each.record for each in store.changes_after(2, 10)] == [gone]
    for refused in (store.policy, lambda name: editing.undelete(name, parts.note())):
        with pytest.raises(SidecarError, match="there is no policy") as caught:
            refused(name)
        assert caught.value.code is ErrorCode.POLICY_NOT_FOUND

    foreseen = editing.create(policy(), parts.note(), validate_only=True)
    made = editing.create(policy(), parts.note())

    assert (made.revision, made.etag) == (foreseen.revision, foreseen.etag)
    assert (made.revision, store.policy(name)) == (3, made)
    assert store.snapshot().records == {name: made}
    store.close()


def test_names_are_sorted_by_character_whatever_the_order_of_the_database(
    postgres: PostgresServer,
) -> None:
    """The statements are looked at: this PostgreSQL is built without the orders of languages."""
    parts.empty_tables(postgres.url)
    store = parts.seeded(open_store(postgres.url), policy())
    said: list[str] = []

    def note(*given: Any) -> None:
        said.append(given[2])

    event.listen(Engine, "before_cursor_execute", note)

    try:
        store.snapshot()
        store.policies(None, "a", 10)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
        store.close()

    sorting = [each for each in said if "ORDER BY" in each]
    assert [each.count('COLLATE "C"') for each in sorting] == [1, 2]


def test_opening_at_the_same_time_makes_the_tables_once(url: str) -> None:
    if url.startswith("postgresql:"):
        engine = create_engine(plain_url(url))
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        engine.dispose()
    start = threading.Barrier(4)
    failures: list[BaseException] = []

    def begin() -> None:
        start.wait()
        try:
            open_store(url).close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
    store = open_store(url)
    assert store.last_change() == 0
    store.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:", "names no file"),
        ("sqlite::memory:", "keeps nothing"),
        ("mysql://localhost/policies", "'mysql' is no kind of store"),
        ("postgresql://me:secret@db/policies", "PGPASSWORD"),
        ("postgresql://me@db/policies?password=secret", "PGPASSWORD"),
        ("postgresql://me@a:5432,b:5432/policies", "host=one:5432&host=two:5432"),
        ("postgresql://me@db", "names no database"),
        ("postgresql://me@db:port/policies", "is not an address"),
        ("postgresql://me@db..internal/policies", "is not an address"),
        ("postgresql://me@db/policies?plugin=secret", '"plugin", which is no parameter of libpq'),
        ("postgresql://me@db/policies?prepare_threshold=0", '"prepare_threshold", which'),
        ("postgresql://me@db/policies?conninfo=password%3Dsecret", '"conninfo", which'),
        ("postgresql://me@db/policies?sslmode=require&sslmode=allow", '"sslmode" more than once'),
        ("postgresql://me@/policies?host=db&port=abc", "hosts or ports .*abc.*; write several"),
        ("postgresql://me@/policies?host=one:1&host=two:b", "hosts or ports .*'b'.*; write"),
        ("postgresql://me@/policies?host=one&port=1&port=2", "hosts or ports .*; write several"),
        ("postgresql://me@/policies?host=one&host=two:2&port=1", "hosts or ports .*; write"),
        ("postgresql://me@db/\udcff", "not UTF-8"),
        ("sqlite:/policies\udcff.db", "not UTF-8"),
        ("sqlite:/policies\0.db", "has a NUL"),
    ],
)
def test_address_that_no_store_has_is_refused(url: str, says: str) -> None:
    with pytest.raises(StoreUrlError, match=says) as caught:
        check_url(url)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:{folder}/text.db", "text.db cannot be opened: file is not a database; name"),
        ("sqlite:{folder}/none/x.db", "none/x.db cannot be opened: .*; {folder}/none is no folder"),
        ("sqlite:{folder}/text.db/x.db", "{folder}/text.db is no folder"),
        ("sqlite:{folder}", "it is a folder; name a file in it"),
        ("sqlite:{folder}/pipe", "pipe cannot be opened: it is a pipe, .*; name a regular file"),
        ("sqlite:/dev/null", "it is a pipe, a socket or a device; name a regular file"),
        ("sqlite:/proc/x.db", "let this process write it and the folder /proc"),
        ("postgresql://me@127.0.0.1:1/x", "1/x cannot be opened: .*refused; .*PGPASSWORD"),
    ],
)
def test_store_that_cannot_be_opened_says_what_to_do(tmp_path: Path, url: str, says: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    text_file = tmp_path / "text.db"
    text_file.write_text("this is not a database, and long enough to be looked at as one" * 20)

    with pytest.raises(SidecarError, match=says.format(folder=tmp_path)) as caught:
        open_store(url.format(folder=tmp_path))

    assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
    assert "try again" not in str(caught.value)


@pytest.mark.parametrize("make", [True, False])
def test_file_that_cannot_be_looked_at_is_not_taken_for_none(tmp_path: Path, make: bool) -> None:
    """By rights, which a test that runs as root has all, or by its name."""
    path = tmp_path / ("a" * 300)

    with pytest.raises(SidecarError, match=r"unable to open database file; .*let this process"):
        open_store(f"sqlite:{path}", make)


def test_file_that_another_process_holds_is_to_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.policies.stores.sqlite._BUSY_MS", 50)
    with closing(sqlite3.connect(tmp_path / "policies.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SidecarError, match="locked; another process holds it; try again"):
            open_store(f"sqlite:{tmp_path / 'policies.db'}")


def test_user_that_may_make_no_tables_is_told_so(postgres: PostgresServer) -> None:
    changed(postgres.url, "DROP SCHEMA public CASCADE")
    changed(postgres.url, "CREATE SCHEMA public")
    changed(postgres.url, "CREATE ROLE reader LOGIN")
    try:
        with pytest.raises(SidecarError, match=r"cannot be opened: .*; let its user make tables"):
            open_store(postgres.url.replace("policies@", "reader@"))
    finally:
        changed(postgres.url, "DROP ROLE reader")


@pytest.mark.parametrize(("encoding", "kept"), [("SQL_ASCII", True), ("LATIN1", False)])
def test_what_a_database_of_another_encoding_cannot_hold_is_refused(
    postgres: PostgresServer, encoding: str, kept: bool
) -> None:
    name = encoding.lower()
    server = create_engine(
        postgres.url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name}"))
        options = f"ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'"
        connection.execute(text(f"CREATE DATABASE {name} {options}"))
    server.dispose()
    said = policy("new", description="\u65e5\u672c, f\xfcr")

    with closing(open_store(f"{postgres.url.rpartition('/')[0]}/{name}")) as store:
        if kept:
            made = write(store, ChangeKind.CREATE, said).record
            assert made.policy == said  # type: ignore[union-attr]
            assert list(store.snapshot().records.values()) == [made]
        else:
            with pytest.raises(SidecarError, match="make the database anew, with ENCODING 'UTF8'"):
                write(store, ChangeKind.CREATE, said)
            assert store.last_change() == 0


def test_of_several_hosts_the_primary_is_written_and_listened_to(postgres: PostgresServer) -> None:
    parts.empty_tables(postgres.url)
    user, place = postgres.url.removeprefix("postgresql://").split("@")
    host, database = place.split("/")
    hosts = f"host=127.0.0.1:1&host={host}&target_session_attrs=read-write"
    url = f"postgresql://{user}@/{database}?{hosts}"
    store, other = parts.seeded(open_store(url), policy()), open_store(postgres.url)
    store.wait(0.1)
    told = threading.Timer(0.2, lambda: write(other, ChangeKind.UPDATE, policy()))
    begun = time.monotonic()

    told.start()
    store.wait(600)

    assert time.monotonic() - begun < 300
    assert store.last_change() == 3
    told.join()
    store.close()
    other.close()


def sqlite_files(folder: Path) -> list[Path]:
    return [folder / f"policies.db{end}" for end in ("", "-wal", "-shm")]


def test_file_that_another_process_is_writing_is_opened_and_read(tmp_path: Path) -> None:
    parts.sqlite(tmp_path, policy()).close()
    with closing(sqlite3.connect(tmp_path / "policies.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")

        store = open_store(f"sqlite:{tmp_path / 'policies.db'}")

        assert list(store.snapshot().records) == [name_of("support")]
        store.close()


def test_file_that_was_removed_takes_no_writes(tmp_path: Path) -> None:
    store = parts.sqlite(tmp_path, policy())
    kept = tmp_path / "kept"
    kept.mkdir()
    for file in sqlite_files(tmp_path):
        file.rename(kept / file.name)

    for ask in (lambda: write(store, ChangeKind.UPDATE, policy()), store.last_change):
        with pytest.raises(
            SidecarError, match=r"policies\.db cannot be used now: .*is gone"
        ) as caught:
            ask()
        assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
    assert not sqlite_files(tmp_path)[0].exists()

    for file in sqlite_files(kept):
        file.rename(tmp_path / file.name)
    assert write(store, ChangeKind.UPDATE, policy()).number == 3
    store.close()


def test_file_that_was_replaced_is_the_one_that_is_used(tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    backup = parts.sqlite(tmp_path / "backup", policy(), policy("other"))
    backup.close()
    store = parts.sqlite(tmp_path, policy())
    for file in sqlite_files(tmp_path)[1:]:
        file.unlink()
    sqlite_files(tmp_path / "backup")[0].replace(sqlite_files(tmp_path)[0])

    assert list(store.snapshot().records) == [name_of("other"), name_of("support")]
    assert write(store, ChangeKind.UPDATE, policy()).number == 4
    store.close()
    again = open_store(f"sqlite:{tmp_path / 'policies.db'}")
    assert again.last_change() == 4
    again.close()


def test_closing_ends_what_waits_for_a_server_that_hangs(postgres: PostgresServer) -> None:
    parts.empty_tables(postgres.url)
    store = parts.seeded(open_store(postgres.url), policy())
    outcome: list[object] = []

    def ask() -> None:
        try:
            outcome.append(write(store, ChangeKind.UPDATE, policy()))
        except SidecarError as error:
            outcome.append(error.code)

    asking = threading.Thread(target=ask)
    postgres.pause()
    try:
        asking.start()
        asking.join(0.3)
        assert asking.is_alive()
        store.close()
        asking.join(60)
    finally:
        postgres.resume()

    assert outcome == [ErrorCode.STORE_UNAVAILABLE]


def test_database_that_takes_no_writes_says_what_would(url: str) -> None:
    """As a standby, or a file that was made read-only."""
    store = parts.seeded(open_store(url), policy())
    assert isinstance(store, SqlStore)
    sqlite = url.startswith("sqlite:")
    statement = "PRAGMA query_only = ON" if sqlite else "SET TRANSACTION READ ONLY"
    event.listen(store._engine, "begin", lambda each: each.exec_driver_sql(statement))
    remedy = "let this process write it" if sqlite else "name the server that takes writes"

    with pytest.raises(SidecarError, match=f"cannot be used now: .*read-?only.*; .*{remedy}") as no:
        write(store, ChangeKind.DELETE, "support")

    assert "try again" not in str(no.value)
    assert store.policy(name_of("support")).revision == 1
    store.close()


def test_history_of_what_cannot_be_read_is_not_pruned(url: str) -> None:
    store = parts.seeded(open_store(url), policy(), policy("other"))
    for name in ("support", "other"):
        write(store, ChangeKind.UPDATE, policy(name, "second"))
    changed(url, "UPDATE changes SET content = '17' WHERE name LIKE '%/support' AND revision = 2")
    assert isinstance(store, SqlStore)

    assert store.prune(1) == 1
    assert [each.revision for each in store.revisions(name_of("other"), None, 9)] == [2]
    editing = PolicyEditing(store, lambda _: None)
    assert editing.rollback(name_of("support"), 1, parts.note()).policy == policy()
    store.close()


def test_what_the_address_says_of_the_connection_counts(postgres: PostgresServer) -> None:
    """In another schema tables would be made, and policies missed, without a word."""
    parts.empty_tables(postgres.url)
    more = "application_name=mine&options=-csearch_path%3Dpublic%2Cmine%20-clock_timeout%3D7s"
    address = f"{postgres.url}?{more}"
    store = open_store(address)
    assert isinstance(store, PostgresStore)
    shown = ("application_name", "search_path", "lock_timeout", "statement_timeout")

    with store._engine.connect() as connection:
        asked = [connection.execute(text(f"SHOW {each}")).scalar() for each in shown]
    listened = [store._listening().execute(f"SHOW {each}").fetchone() for each in shown]
    store.close()

    assert asked == ["mine", "public,mine", "7s", "10s"]
    assert listened == [(each,) for each in asked]
