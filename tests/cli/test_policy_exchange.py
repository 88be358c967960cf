"""`sidecar policy import` and `export`."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.cli.policy_exchange import grouped
from tests.cli.policy_commands import sidecar
from tests.policies.exchange.test_exchange import SAMPLES


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
