from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar.cli.policy import policy

FIXTURES = Path(__file__).parent / "fixtures"


def validate(*arguments: str) -> Result:
    return CliRunner().invoke(policy, ["validate", *arguments])


@pytest.fixture(autouse=True)
def in_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("catalog", "policy_own_domain", "warning_dialects", "good_all_fields"):
        shutil.copy(FIXTURES / f"{name}.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)


def test_valid_files_end_with_0_and_name_what_they_hold() -> None:
    result = validate("catalog.yaml", "good_all_fields.yaml")
    assert result.exit_code == 0
    first, last = result.output.splitlines()
    assert first.startswith("ok namespaces/eu-west/policies/example: 2 routes, sha256:")
    assert last == "2 files, 3 models: 0 errors, 0 warnings"


def test_errors_end_with_1_one_line_each() -> None:
    result = validate("catalog.yaml", "policy_own_domain.yaml")
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        'policy_own_domain.yaml:9: error: routes[0].domain: the route "billing" names itself; '
        "remove the key",
        "2 files, 3 models: 1 error, 0 warnings",
    ]


def test_warnings_end_with_0() -> None:
    result = validate("catalog.yaml", "warning_dialects.yaml")
    assert result.exit_code == 0
    assert "warning_dialects.yaml:8: warning: routes[0].models: no model speaks" in result.output


def test_missing_path_ends_with_2() -> None:
    result = validate("catalog.yaml", "nothing.yaml")
    assert result.exit_code == 2
    assert "Path 'nothing.yaml' does not exist" in result.output


def test_no_path_ends_with_2() -> None:
    assert validate().exit_code == 2


def test_json_has_every_part_of_a_finding() -> None:
    result = validate("--output", "json", "catalog.yaml", "policy_own_domain.yaml")
    assert result.exit_code == 1
    assert json.loads(result.output) == {
        "valid": False,
        "files": ["catalog.yaml", "policy_own_domain.yaml"],
        "models": 3,
        "policies": [],
        "findings": [
            {
                "severity": "error",
                "file": "policy_own_domain.yaml",
                "line": 9,
                "path": "routes[0].domain",
                "message": 'the route "billing" names itself; remove the key',
            }
        ],
    }


def test_markup_in_a_policy_is_shown_as_written(tmp_path: Path) -> None:
    path = tmp_path / "policy_own_domain.yaml"
    path.write_text(path.read_text().replace("billing", '"[red]bills[/red]"'))
    assert '"[red]bills[/red]"' in validate("catalog.yaml", path.name).output
