"""Every rule has a file that breaks it, and the exact lines a user gets to read beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.policies import PolicySet, Severity, load_policies

FIXTURES = Path(__file__).parent / "fixtures"
CATALOG = "catalog.yaml"
STEMS = sorted(path.stem for path in FIXTURES.glob("*.yaml") if path.name != CATALOG)
WITHOUT_CATALOG = ("catalog_", "policy_no_catalog")


def load(stem: str, monkeypatch: pytest.MonkeyPatch) -> PolicySet:
    monkeypatch.chdir(FIXTURES)
    catalog = [] if stem.startswith(WITHOUT_CATALOG) else [CATALOG]
    return load_policies([*catalog, f"{stem}.yaml"])


@pytest.mark.parametrize("stem", STEMS)
def test_fixture_gives_exactly_the_lines_beside_it(
    stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (FIXTURES / f"{stem}.txt").read_text(encoding="utf-8").splitlines()
    assert [str(finding) for finding in load(stem, monkeypatch).findings] == expected


@pytest.mark.parametrize("stem", STEMS)
def test_fixture_is_refused_unless_it_is_good_or_only_doubtful(
    stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load(stem, monkeypatch)
    severities = {finding.severity for finding in found.findings}
    doubtful = stem.startswith("warning_") or stem == "yaml_empty"
    if stem.startswith("good_"):
        assert severities == set()
    else:
        assert severities == {Severity.WARNING if doubtful else Severity.ERROR}
    assert found.valid == (Severity.ERROR not in severities)


def test_every_expectation_has_its_fixture() -> None:
    assert sorted(path.stem for path in FIXTURES.glob("*.txt")) == STEMS
