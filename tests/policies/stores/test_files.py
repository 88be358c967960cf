"""Files as a store: what changes are noticed, and what is not taken for one."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import pytest

from sidecar.policies.stores import ChangeKind, FileStore, InvalidFilesError
from sidecar.policies.stores.files import _LOOK_S
from tests.policies.stores.parts import name_of, policy, write_files

FIRST, SECOND = policy(description="first"), policy(description="second")
SUPPORT = name_of("support")


def look(store: FileStore) -> int:
    """What following does, twice: a change is taken when two looks have seen the same."""
    store.last_change()
    time.sleep(_LOOK_S)
    return store.last_change()


def text_of(store: FileStore) -> str:
    return store.policy(SUPPORT).policy.description


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_files(tmp_path / "policies", FIRST, policy("other"))
    for file in (tmp_path / "policies").iterdir():
        # Within one tick of the kernel's clock an edit would leave the time as it is.
        os.utime(file, (0, 0))
    return tmp_path / "policies"


def test_edits_additions_and_removals_are_changes(folder: Path) -> None:
    store = FileStore([folder])
    begun = store.last_change()
    (folder / "default-other.yaml").unlink()
    write_files(folder, SECOND, policy("new"))

    assert look(store) == begun + 3

    changes = store.changes_after(begun, 10)
    made = {change.record.policy.name: change.kind for change in changes}  # type: ignore[union-attr]
    assert made == {
        "support": ChangeKind.UPDATE,
        "new": ChangeKind.CREATE,
        "other": ChangeKind.DELETE,
    }
    assert [change.number for change in changes] == [begun + 1, begun + 2, begun + 3]
    assert changes[-1].record.deleted  # type: ignore[union-attr]
    assert text_of(store) == "second"


def test_what_changes_nothing_is_no_change(folder: Path) -> None:
    store = FileStore([folder])
    begun = store.last_change()
    file = folder / "default-support.yaml"
    file.write_text("# a comment\n" + file.read_text())
    (folder / ".default-support.yaml.swp").write_text("editor")

    assert look(store) == begun


def test_file_that_is_being_written_is_not_read(folder: Path) -> None:
    store = FileStore([folder])
    begun = store.last_change()
    file = folder / "default-support.yaml"
    whole = file.read_text()
    # Cut short at each look, as by a slow copy: never the same twice.
    for size in (0, 10, 200):
        file.write_text(whole[:size])
        assert store.last_change() == begun
        assert not store.problem
    file.write_text(whole)

    assert look(store) == begun
    assert text_of(store) == "first"


def test_other_files_of_the_folder_hold_nothing_up(folder: Path) -> None:
    """As a log that is written all the time: the folder is never the same for two looks."""
    store = FileStore([folder])
    begun = store.last_change()
    write_files(folder, SECOND)
    store.last_change()
    time.sleep(_LOOK_S)
    (folder / "sidecar.log").write_text("a line\n")

    assert store.last_change() == begun + 1
    assert text_of(store) == "second"


def test_copy_that_keeps_time_and_size_is_a_change(tmp_path: Path, folder: Path) -> None:
    """As `cp -p` of what a build or an archive gives one time to."""
    file, copy = folder / "default-support.yaml", tmp_path / "copy.yaml"
    begins = file.stat()
    store = FileStore([folder])
    begun = store.last_change()
    copy.write_text(file.read_text().replace("description: first", "description: third"))
    while copy.stat().st_ctime_ns <= begins.st_ctime_ns:
        copy.touch()  # The kernel's clock ticks every few milliseconds.
    os.utime(copy, ns=(begins.st_atime_ns, begins.st_mtime_ns))
    shutil.copy2(copy, file)
    ends = file.stat()
    assert (ends.st_ino, ends.st_size, ends.st_mtime_ns) == (
        begins.st_ino,
        begins.st_size,
        begins.st_mtime_ns,
    )

    assert look(store) == begun + 1
    assert text_of(store) == "third"


def test_looks_right_behind_each_other_are_no_proof_that_a_file_is_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of callers who list policies while the store is followed."""
    monkeypatch.setattr("sidecar.policies.stores.files._LOOK_S", 60.0)
    store = FileStore([folder])
    begun = store.last_change()
    (folder / "default-other.yaml").unlink()  # As the first step of an editor.

    assert {store.last_change() for _ in range(3)} == {begun}

    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert store.last_change() == begun + 1


def test_invalid_files_leave_the_last_good_ones(folder: Path) -> None:
    store = FileStore([folder])
    begun = store.last_change()
    file = folder / "default-support.yaml"
    whole = file.read_text()
    file.write_text(whole.replace("acme/fast", "acme/fats"))

    assert look(store) == begun
    assert "acme/fats" in store.problem
    assert "default-support.yaml" in store.problem
    assert text_of(store) == "first"

    file.write_text(whole.replace("description: first", "description: third"))
    assert look(store) == begun + 1
    assert not store.problem
    assert text_of(store) == "third"


def test_file_that_was_emptied_leaves_its_policies_and_one_that_was_deleted_does_not(
    folder: Path,
) -> None:
    store = FileStore([folder])
    begun = store.last_change()
    file = folder / "default-support.yaml"
    file.write_text("")

    assert look(store) == begun
    assert text_of(store) == "first"
    assert f"{file}: error: held policies and is empty now" in store.problem

    file.unlink()

    assert look(store) == begun + 1
    assert not store.problem
    assert SUPPORT not in store.snapshot().records


def test_policy_says_which_file_it_is_in(folder: Path) -> None:
    store = FileStore([folder])

    assert store.file_of(SUPPORT) == str(folder / "default-support.yaml")
    assert store.file_of(name_of("gone")) == ""


def test_configmap_of_kubernetes_is_followed(tmp_path: Path, folder: Path) -> None:
    """A mounted ConfigMap: files are links through `..data`, which is swapped in one step."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    publish(mounted, folder, "..2026_01")
    for file in folder.iterdir():
        (mounted / file.name).symlink_to(Path("..data") / file.name)
    store = FileStore([mounted])
    begun = store.last_change()
    assert text_of(store) == "first"

    write_files(folder, SECOND)
    publish(mounted, folder, "..2026_02")

    assert look(store) == begun + 1
    assert text_of(store) == "second"


def publish(mounted: Path, files: Path, version: str) -> None:
    """As pkg/volume/util/atomic_writer.go does it, times of the files included."""
    shutil.copytree(files, mounted / version)
    for file in (mounted / version).iterdir():
        os.utime(file, (0, 0))
    (mounted / "..data_tmp").symlink_to(version)
    (mounted / "..data_tmp").rename(mounted / "..data")


def test_files_with_errors_are_refused_at_the_start(folder: Path) -> None:
    (folder / "broken.yaml").write_text("kind: [")

    with pytest.raises(InvalidFilesError, match=r"broken\.yaml"):
        FileStore([folder])


def test_what_could_not_be_read_is_tried_again_though_it_looks_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore([folder])
    begun = store.last_change()
    write_files(folder, SECOND)

    def refused(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refused)
        assert look(store) == begun
        assert "Too many open files" in store.problem
        assert store.last_change() == begun
    later = time.monotonic() + 6
    monkeypatch.setattr(time, "monotonic", lambda: later)

    assert store.last_change() == begun + 1
    assert not store.problem
    assert text_of(store) == "second"


def test_folder_that_vanishes_leaves_the_last_good_files(tmp_path: Path, folder: Path) -> None:
    store = FileStore([folder])
    begun = store.last_change()
    folder.rename(tmp_path / "elsewhere")

    assert look(store) == begun
    assert store.problem
    assert text_of(store) == "first"
