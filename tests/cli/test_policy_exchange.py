"""`sidecar policy import` and `export`."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.cli.policy_exchange import grouped
from sidecar.core.policy import CatalogRecord
from sidecar.policies.stores.sqlite import SqliteStore
from tests.cli.policy_commands import sidecar
from tests.policies.exchange.test_exchange import SAMPLES
from tests.policies.stores.parts import FAST, LARGE


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


@pytest.mark.parametrize("out", ["x.yaml", "sub/../x.yaml", "link.yaml"])
def test_import_does_not_overwrite_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    file = tmp_path / "x.yaml"
    file.write_text("model_list: [{model_name: a, litellm_params: {model: b}}]\n")
    (tmp_path / "link.yaml").symlink_to(file)
    before = file.read_bytes()

    result = sidecar("import", file, "--from", "litellm", "-o", out)

    assert (result.exit_code, file.read_bytes()) == (2, before)
    assert f"--out {out} is the file that is imported; name another" in result.stderr


@pytest.mark.parametrize("at", [".", "default-support.yaml"])
def test_export_does_not_overwrite_what_it_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.chdir(folder)
    file = folder / "default-support.yaml"
    before = file.read_bytes()

    result = sidecar("export", "support", "--to", "plano", "--at", at, "-o", file.name)

    assert (result.exit_code, file.read_bytes()) == (2, before)
    assert "is a file that --at names; name another" in result.stderr


@pytest.mark.parametrize("kind", ["archgw", "plano"])
@pytest.mark.parametrize("again", [False, True])
def test_export_while_the_catalog_changes(
    at: str, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, again: bool
) -> None:
    """The catalog is read before it has a model that the policy names a moment later."""
    read = SqliteStore.catalog
    lacking = CatalogRecord({FAST.id: FAST})

    def meanwhile(store: SqliteStore) -> CatalogRecord:
        if not again:
            monkeypatch.setattr(SqliteStore, "catalog", read)
        return lacking

    monkeypatch.setattr(SqliteStore, "catalog", meanwhile)

    result = sidecar("export", "support", "--to", kind, "--at", at)

    assert result.exit_code == (1 if again else 0)
    assert (LARGE.id in result.stdout) is not again
    assert ('names the model "acme/large", which the model catalog lacks' in result.stderr) is again
