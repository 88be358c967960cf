"""`sidecar policy apply`: what it changes, and what it leaves as it is."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.policy import CatalogRecord, ModelList, Policy, PolicyRecord, WeightedModel
from sidecar.policies import PolicySet, load_policies
from sidecar.policies.documents import catalog_document, yaml_text
from sidecar.policies.editing import PolicyEditing
from sidecar.policies.stores import ChangeKind, refusals
from sidecar.policies.stores.sqlite import SqliteStore
from tests.cli.policy_commands import (
    BILLING,
    SUPPORT,
    beside,
    done,
    edit,
    edited,
    only_fast,
    plain,
    sidecar,
)
from tests.grpc_api.stored import stored
from tests.policies.stores import parts
from tests.policies.stores.parts import CATALOG, FAST, LARGE, name_of, policy


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


@pytest.mark.parametrize("command", ["apply", "diff", "validate", "lint"])
def test_policy_comes_by_standard_input(at: str, folder: Path, command: str) -> None:
    """As `policy get` writes it."""
    arguments = {
        "apply": ["apply", "-", "--at", at],
        "diff": ["diff", "support", "--file", "-", "--at", at],
    }.get(command, [command, str(folder / "catalog.yaml"), "-"])
    told = {
        "apply": f"{SUPPORT}: updated (revision 2)\n",
        "diff": "+description: second\n",
        "validate": f"ok {SUPPORT}: 2 routes",
        "lint": "/dev/stdin",
    }[command]

    result = subprocess.run(
        [sys.executable, "-m", "sidecar.cli", "policy", *arguments],
        input=edit(folder).read_bytes(),
        capture_output=True,
    )

    assert told in result.stdout.decode(), result.stderr.decode()


def test_dry_run_shows_the_difference_and_changes_nothing(at: str, folder: Path) -> None:
    shown = done("apply", edit(folder), "--at", at, "--dry-run")

    assert "would be updated (revision 2)" in shown
    assert "-description: first\n+description: second" in shown
    assert plain("get", "support", "--at", at)["revision"] == 1


def test_difference_that_is_not_shown_is_not_made(
    at: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longer than all the rest, of each of thousands of policies."""
    for name in ("unified_diff", "catalog_diff"):
        monkeypatch.delattr(f"sidecar.cli.policy_change.{name}")
    file = folder / "catalog.yaml"
    file.write_text(file.read_text().replace("input: 0.5", "input: 0.6"))
    edit(folder)

    applied = done("apply", folder, "--at", at)

    assert applied.count("updated (revision 2)") == 2


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


@pytest.mark.parametrize("running", [False, True])
async def test_what_is_not_shown_of_a_refusal_is_a_line_like_the_others(
    tmp_path: Path, folder: Path, running: bool
) -> None:
    store = parts.sqlite(tmp_path, policy(), *(policy(f"p{number}") for number in range(20)))
    file = folder / "catalog.yaml"
    file.write_text(yaml_text(catalog_document([FAST])))
    async with stored(store) as api:
        at = f"127.0.0.1:{api.server.port}" if running else f"sqlite:{tmp_path / 'policies.db'}"
        result = await asyncio.to_thread(sidecar, "apply", file, "--at", at)

    assert result.exit_code == 1
    named = [each for each in result.stderr.splitlines() if each.startswith("  ")]
    assert len(named) > 5
    assert not [each for each in named if each.startswith("  :")]
    assert "more" in named[-1]


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


@pytest.mark.parametrize(("same", "status"), [(True, 0), (False, 3)])
def test_policy_that_somebody_else_creates_meanwhile_is_theirs(
    at: str, folder: Path, monkeypatch: pytest.MonkeyPatch, same: bool, status: int
) -> None:
    file = folder / "default-support.yaml" if same else edit(folder)

    def not_yet(store: SqliteStore, name: str) -> PolicyRecord:
        monkeypatch.undo()
        raise refusals.not_found(name)

    monkeypatch.setattr(SqliteStore, "policy", not_yet)

    result = sidecar("apply", file, "--at", at)

    assert result.exit_code == status
    assert (f"{SUPPORT}: unchanged (revision 1)" in result.stdout) is same
    assert (f"{SUPPORT} exists already" in result.stderr) is not same
    assert plain("get", "support", "--at", at)["revision"] == 1


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("running", [False, True])
async def test_first_catalog_that_somebody_else_writes_meanwhile_is_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: bool, same: bool
) -> None:
    store = SqliteStore(tmp_path / "policies.db")
    file = tmp_path / "catalog.yaml"
    file.write_text(yaml_text(catalog_document([FAST])))
    update_catalog = PolicyEditing.update_catalog

    def after_another(editing: PolicyEditing, *given: Any) -> CatalogRecord:
        monkeypatch.undo()
        parts.write_catalog(store, FAST if same else LARGE)
        return update_catalog(editing, *given)

    monkeypatch.setattr(PolicyEditing, "update_catalog", after_another)
    async with stored(store) as api:
        at = f"127.0.0.1:{api.server.port}" if running else f"sqlite:{tmp_path / 'policies.db'}"
        result = await asyncio.to_thread(sidecar, "apply", file, "--at", at)
        kept = await asyncio.to_thread(store.catalog)

    assert (kept.revision, list(kept.models)) == (1, [FAST.id if same else LARGE.id])
    if same:
        assert result.exit_code == 0
        assert "model catalog: unchanged (revision 1)\n" in result.stdout
    else:
        assert result.exit_code == 3
        assert 'etag: "0" is not that of the model catalog' in result.stderr


@pytest.mark.parametrize(("same", "status"), [(True, 0), (False, 3)])
def test_policy_that_somebody_else_updates_meanwhile_is_theirs(
    at: str, folder: Path, monkeypatch: pytest.MonkeyPatch, same: bool, status: int
) -> None:
    update = PolicyEditing.update

    def after_another(editing: PolicyEditing, *given: Any) -> PolicyRecord:
        monkeypatch.undo()
        theirs = edited(policy(description="second" if same else "theirs"))
        theirs_file = folder.parent / "theirs.yaml"
        theirs_file.write_text(theirs)
        done("apply", theirs_file, "--at", at)
        return update(editing, *given)

    file = edit(folder)
    monkeypatch.setattr(PolicyEditing, "update", after_another)

    result = sidecar("apply", file, "--at", at)

    assert result.exit_code == status
    assert (f"{SUPPORT}: unchanged (revision 2)" in result.stdout) is same
    assert ("whose etag now is" in result.stderr) is not same
    assert plain("get", "support", "--at", at)["revision"] == 2


@pytest.mark.parametrize(("same", "status"), [(True, 0), (False, 3)])
def test_catalog_that_somebody_else_updates_meanwhile_is_theirs(
    at: str, folder: Path, monkeypatch: pytest.MonkeyPatch, same: bool, status: int
) -> None:
    """Between the update of the policies and that of the models that they do not name any more."""
    file = folder / "all.yaml"
    file.write_text(yaml_text(catalog_document([FAST]), only_fast()))
    theirs = folder.parent / "theirs.yaml"
    their_models = [FAST] if same else [FAST, LARGE, replace(FAST, id="acme/theirs")]
    theirs.write_text(yaml_text(catalog_document(their_models)))
    update = PolicyEditing.update

    def before_another(editing: PolicyEditing, *given: Any) -> PolicyRecord:
        monkeypatch.undo()
        made = update(editing, *given)
        done("apply", theirs, "--at", at)
        return made

    monkeypatch.setattr(PolicyEditing, "update", before_another)

    result = sidecar("apply", file, "--at", at)

    assert result.exit_code == status
    assert ("somebody else has changed the model catalog" in result.stderr) is not same
    models = plain("catalog", "--at", at)["catalog"]["models"]
    assert [model["id"] for model in models] == [model.id for model in their_models]


@pytest.mark.parametrize("running", [False, True])
async def test_deleted_policy_whose_models_are_gone_is_applied_anew(
    tmp_path: Path, folder: Path, running: bool
) -> None:
    store = parts.sqlite(tmp_path, policy("other"), policy())
    parts.write(store, ChangeKind.DELETE, "other")
    parts.write(store, ChangeKind.UPDATE, policy_of_fast("support"))
    parts.write_catalog(store, FAST)
    file = folder / "other.yaml"
    file.write_text(edited(policy_of_fast("other")))
    async with stored(store) as api:
        at = f"127.0.0.1:{api.server.port}" if running else f"sqlite:{tmp_path / 'policies.db'}"
        refused = await asyncio.to_thread(sidecar, "undelete", "other", "--at", at)
        foreseen = await asyncio.to_thread(sidecar, "apply", file, "--at", at, "--dry-run")
        applied = await asyncio.to_thread(sidecar, "apply", file, "--at", at)

    assert refused.exit_code == 1
    assert 'unknown model "acme/large"' in refused.stderr
    assert f"{name_of('other')}: would be created (revision 3)\n" in foreseen.stdout
    assert f"{name_of('other')}: created (revision 3)\n" in applied.stdout


def policy_of_fast(name: str) -> Policy:
    return Policy(name, (), ModelList((WeightedModel(FAST.id),)))
